"""The parameters of `create(...)`: which there are, and what of them becomes options of vkllm's own.

They have the openai package's names, beside which there are those of llama.cpp's server and of `SamplingParams`. One
that asks for what vkllm cannot do is refused by name; one that means nothing here, such as `user`, is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from vkllm.api.prompts import Message
from vkllm.errors import InvalidParameter
from vkllm.parameters import check_names, truth, whole_number
from vkllm.text.answers.tool_choice import ToolChoice, tool_choice

_MAX_CHOICES = 128  # as OpenAI has it
_ANY_OBJECT = {"type": "object"}


class TransportOptions(TypedDict, total=False):
    """What the openai package's client takes for its requests. Only extra_body matters: it holds more parameters."""

    user: str | None
    extra_headers: Mapping[str, Any] | None
    extra_query: Mapping[str, Any] | None
    extra_body: Mapping[str, Any] | None
    timeout: Any


class CommonOptions(TransportOptions, total=False):
    """What chats and texts take; None is the default of `SamplingParams`."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repeat_penalty: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_window: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    context_shift: bool | None
    seed: int | None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None
    json_schema: str | Mapping[str, Any] | bool | None
    regex: str | None
    grammar: str | None
    origin: str | None
    n: int | None
    stream_options: Mapping[str, bool] | None


class ChatCompletionOptions(CommonOptions, total=False):
    """The parameters of `chat.completions.create` beside messages, model and stream."""

    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    response_format: Any
    tools: Sequence[Message] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    enable_thinking: bool | None
    continue_final_message: bool | None
    reasoning_effort: str | None
    verbosity: str | None
    modalities: Sequence[str] | None
    audio: Any
    functions: Any
    function_call: Any
    moderation: Any
    web_search_options: Any
    metadata: Mapping[str, str] | None
    prediction: Any
    prompt_cache_key: str | None
    prompt_cache_options: Any
    prompt_cache_retention: str | None
    safety_identifier: str | None
    service_tier: str | None
    store: bool | None


class TextOptions(CommonOptions, total=False):
    """The parameters of `completions.create` beside prompt, model and stream."""

    logprobs: int | bool | None
    best_of: int | None
    echo: bool | None
    suffix: str | None


class EmbeddingOptions(TransportOptions, total=False):
    """The parameters of `embeddings.create` beside input and model."""

    dimensions: int | None
    encoding_format: str | None
    origin: str | None


_OUR_NAMES = {"repeat_penalty": "repetition_penalty", "max_completion_tokens": "max_tokens"}
_OTHER = TransportOptions.__annotations__.keys() | {"n", "stream_options"}
_SAMPLING = CommonOptions.__annotations__.keys() - _OTHER | {"max_completion_tokens"}

_NOT_HERE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio": (lambda value: False, "answers are text"),
    "function_call": (lambda value: value in ("none", "auto"), "describe functions in tools"),
    "functions": (lambda value: not value, "describe functions in tools"),
    "modalities": (lambda value: value in (["text"], ("text",)), 'answers are text; give ["text"] or leave it out'),
    "moderation": (lambda value: False, "nothing checks the texts; leave it out"),
    "store": (lambda value: not value, "nothing is kept after an answer; give False or leave it out"),
    "suffix": (lambda value: value == "", "a text is continued at its end only; leave it out"),
    "web_search_options": (lambda value: False, "nothing is searched; leave it out"),
}
"""Parameters that ask for what vkllm cannot do: which values ask for nothing, and what to do instead."""


def given_options(options: Mapping[str, Any], known: type[Any]) -> dict[str, Any]:
    """The options that are given, also in extra_body. Raises InvalidParameter for one that cannot be met."""
    names = known.__annotations__
    more = options.get("extra_body")
    if is_left_out(more):
        more = {}
    if not isinstance(more, Mapping):
        raise InvalidParameter(f"extra_body must map names to values, not be {more!r}")
    options = {**options, **more}
    check_names(options, names)
    given = {name: value for name, value in options.items() if not is_left_out(value)}
    for name, (asks_for_nothing, advice) in _NOT_HERE.items():
        if name in given and not asks_for_nothing(given[name]):
            raise InvalidParameter(f"{name} is not in vkllm: {advice}")
    return given


def is_left_out(value: object) -> bool:
    """Whether it is None, or what the openai package passes for a parameter that is left out."""
    return value is None or (
        type(value).__name__ in ("NotGiven", "Omit") and type(value).__module__.partition(".")[0] == "openai"
    )


def sampling_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options becomes `SamplingOptions`."""
    for theirs, ours in _OUR_NAMES.items():
        if theirs in given and ours in given:
            raise InvalidParameter(f"{ours} and {theirs} are the same; give one of them")
    return {_OUR_NAMES.get(name, name): value for name, value in given.items() if name in _SAMPLING}


def chat_logprobs_option(given: Mapping[str, Any]) -> int | None:
    """How many alternatives to report for each token, or None."""
    wanted = truth("logprobs", given.get("logprobs", False))
    if not wanted and given.get("top_logprobs"):
        raise InvalidParameter("top_logprobs needs logprobs=True")
    return whole_number("top_logprobs", given.get("top_logprobs", 0), 0, 1000) if wanted else None


def choice_of_tools(given: Mapping[str, Any]) -> ToolChoice:
    """Whether and which tools the model calls. Raises InvalidParameter."""
    choice = tool_choice(given.get("tool_choice"))
    is_parallel = truth("parallel_tool_calls", given.get("parallel_tool_calls", True))
    return choice if is_parallel else replace(choice, most=1)


def template_variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is given besides messages and tools. Raises InvalidParameter.

    An effort of "none" is no thinking, where the template knows that word.
    """
    variables = given.get("chat_template_kwargs", {})
    if not isinstance(variables, Mapping):
        raise InvalidParameter(f"chat_template_kwargs must map names to values, not be {variables!r:.60}")
    variables = dict(variables)
    if variables.get("enable_thinking") is not None:
        truth("enable_thinking in chat_template_kwargs", variables["enable_thinking"])
    effort = given.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str):
            raise InvalidParameter(f"reasoning_effort must be a string, not {effort!r:.60}")
        if effort == "none":
            variables.setdefault("enable_thinking", False)
        else:
            variables.setdefault("reasoning_effort", effort)
    if "enable_thinking" in given:
        variables["enable_thinking"] = truth("enable_thinking", given["enable_thinking"])
    if truth("continue_final_message", given.get("continue_final_message", False)):
        variables["continues_last"] = True
    return variables


def n_choices(given: Mapping[str, Any]) -> int:
    """How many answers to each prompt."""
    n = whole_number("n", given.get("n", 1), 1, _MAX_CHOICES)
    best_of = whole_number("best_of", given.get("best_of", n), 1, _MAX_CHOICES)
    if best_of != n:
        raise InvalidParameter(
            f"best_of must be the same as n, {n}, not {best_of}: vkllm does not choose among answers"
        )
    return n


def includes_usage(given: Mapping[str, Any], *, is_stream: bool) -> bool:
    """Whether counts come last in a stream. Raises InvalidParameter, also for options of a stream where there is none,
    as OpenAI's API does."""
    if "stream_options" in given and not is_stream:
        raise InvalidParameter("stream_options is for streams; give stream=True too, or leave it out")
    options = given.get("stream_options", {})
    if not isinstance(options, Mapping) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise InvalidParameter(f'stream_options must be {{"include_usage": True}} or left out, not {options!r}')
    return truth("include_usage", options.get("include_usage") or False)


def schema_of(response_format: Any) -> Any:
    """The JSON schema that answers must follow, or None."""
    if hasattr(response_format, "model_json_schema"):  # a class of pydantic
        return response_format
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object", "schema": schema} if schema is not None:  # as llama.cpp's server has it
            return schema
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema}} if schema is not None:
            return schema
    raise InvalidParameter(
        'response_format must be {"type": "text"}, {"type": "json_object"} or '
        f'{{"type": "json_schema", "json_schema": {{"name": ..., "schema": ...}}}}, not {response_format!r}'
    )
