"""Requests in the shape of llama.cpp's own API: bodies of /completion and /infill become requests for answers.

It knows their fields, as llama.cpp 0.5.0 has them; those that other requests have too are fields.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vkllm.api.answer import SamplingOptions
from vkllm.api.async_llm import AsyncLLM
from vkllm.api.async_stream import AsyncStream
from vkllm.api.chat_request import SAMPLING_NAMES
from vkllm.api.llama_cpp.fields import refuse_what_is_not_here, samplers_left_out, tokens_to_predict, uncached_origin
from vkllm.api.llama_cpp.prompts import Prompt, prompts_of, token_ids_of
from vkllm.engine.params import RANDOM_SEED, SamplingParams
from vkllm.errors import InvalidParameter
from vkllm.parameters import truth, whole_number
from vkllm.text.tokenizer import Tokenizer

_OUR_NAMES = SAMPLING_NAMES | {name: name for name in ("ignore_eos", "grammar", "json_schema")}
_MAX_ANSWERS = 128
_MOST_LOGPROBS = 1000


@dataclass(frozen=True)
class CompletionRequest:
    """Prompts to continue. has_several: the answer is a list. n: answers to each prompt.

    n_sampled: alternatives to report for each token with their probabilities after the samplers; None for what the
    model finds likely. returns_tokens: whole answers name their tokens too. fields: those of the answer that are
    wanted, all if there are none. times_tokens: every chunk has timings. reports_progress: chunks say how far the
    prompt is.
    """

    prompts: list[Prompt]
    has_several: bool
    options: SamplingOptions
    bias: Any
    n: int
    n_sampled: int | None
    is_stream: bool
    returns_tokens: bool
    fields: tuple[str, ...]
    times_tokens: bool
    reports_progress: bool
    slot: int

    def streams(self, llm: AsyncLLM, tokenizer: Tokenizer, n_ctx: int) -> list[AsyncStream]:
        """The answers by a model, prompt by prompt. Raises InvalidParameter."""
        options: SamplingOptions = {**self.options}
        if self.n_sampled is not None:  # all that may be drawn are needed
            top_k = SamplingParams(top_k=options.get("top_k", llm.llm.default_params.top_k)).top_k
            options["logprobs"] = min(max(top_k, self.n_sampled) if top_k else _MOST_LOGPROBS, _MOST_LOGPROBS)
        if self.bias:
            options["logit_bias"] = biases(self.bias, tokenizer)
        seed = SamplingParams(seed=options.get("seed")).seed
        streams = []
        for prompt in self.prompts:
            ids = token_ids_of(prompt, tokenizer)
            for number in range(self.n):
                seeded: SamplingOptions = {**options}
                if number and seed is not None and seed != RANDOM_SEED:
                    seeded["seed"] = (seed + number) % 2**64
                streams.append(llm.stream(ids, **seeded))
        return streams


def completion_request(body: Mapping[str, Any], prompts: Any = None) -> CompletionRequest:
    """The body of POST /completion. prompts: instead of those in the body. Raises InvalidParameter."""
    prompts = body.get("prompt") if prompts is None else prompts
    if prompts is None:
        raise InvalidParameter("prompt is required: text, token ids, or a list of these")
    found, has_several = prompts_of(prompts)
    options = _options(body)
    n = whole_number("n", body.get("n_cmpl", body.get("n")) or 1, 1, _MAX_ANSWERS)
    fields = body.get("response_fields") or []
    if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
        raise InvalidParameter("response_fields must be a list of names")
    is_sampled = truth("post_sampling_probs", body.get("post_sampling_probs") or False)
    return CompletionRequest(
        prompts=found,
        has_several=has_several or n > 1,
        options=options,
        bias=body.get("logit_bias"),
        n=n,
        n_sampled=SamplingParams(logprobs=options.get("logprobs")).logprobs if is_sampled else None,
        is_stream=truth("stream", body.get("stream") or False),
        returns_tokens=truth("return_tokens", body.get("return_tokens") or False),
        fields=tuple(fields),
        times_tokens=truth("timings_per_token", body.get("timings_per_token") or False),
        reports_progress=truth("return_progress", body.get("return_progress") or False),
        slot=whole_number("id_slot", body.get("id_slot") or 0, -1),
    )


def _options(body: Mapping[str, Any]) -> SamplingOptions:
    refuse_what_is_not_here(body)
    options: dict[str, Any] = {}
    for theirs, ours in _OUR_NAMES.items():
        if body.get(theirs) not in (None, "", []):
            options[ours] = body[theirs]
    options |= samplers_left_out(body)
    n_predict = next((body[name] for name in ("n_predict", "max_tokens") if body.get(name) is not None), None)
    if n_predict is not None:
        options["max_tokens"] = tokens_to_predict(n_predict)
    if n_probs := body.get("n_probs", body.get("logprobs")):
        options["logprobs"] = n_probs
    if (origin := uncached_origin(body)) is not None:
        options["origin"] = origin
    return cast(SamplingOptions, options)


def biases(bias: Any, tokenizer: Tokenizer) -> dict[int, float]:
    """Pairs of a token id or a text, whose tokens all get it, and a number, or false for never. Raises
    InvalidParameter."""
    if isinstance(bias, Mapping):
        pairs = [[int(key) if key.isascii() and key.isdecimal() else key, value] for key, value in bias.items()]
    elif isinstance(bias, list):
        pairs = bias
    else:
        raise InvalidParameter("logit_bias must be a list of pairs of a token and a number, or an object")
    made: dict[int, float] = {}
    for pair in pairs:
        match pair:
            case [int() | str() as token, value] if not isinstance(token, bool):
                ids = [token] if isinstance(token, int) else tokenizer.encode(token, add_special=False)
                if value is False:
                    value = -100.0
                elif isinstance(value, int | float):
                    value = max(-100.0, min(100.0, value))
                made.update(dict.fromkeys(ids, value))
            case _:
                raise InvalidParameter(f"logit_bias has {pair!r:.60}; each entry is a pair of a token and a number")
    return made
