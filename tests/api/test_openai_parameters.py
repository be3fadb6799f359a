"""Every parameter of the openai package's `create` is taken, or refused by a sentence that names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import openai
import pytest
from openai.resources.chat import Completions as OpenAIChat
from pydantic import BaseModel

from vkllm import LLM, InvalidParameter
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def llm(tiny_gguf: Any) -> Iterator[LLM]:
    """A model whose engine echoes the prompt from its second token on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vkllm.api.loading.EngineProcess", partial(EngineProcess, factory="fake_engine:FakeEngine"))
        with LLM(tiny_gguf) as made:
            yield made


@pytest.fixture
def sent(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that were sent."""
    requests: list[Request] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: requests.append(request) or submit(request))
    return requests


class Colour(BaseModel):
    """A schema."""

    name: str


# A value of each parameter that is taken.
COMMON = {
    "extra_body": {"top_k": 5},
    "extra_headers": {"X": "y"},
    "extra_query": {"a": "b"},
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -100},
    "max_tokens": 3,
    "model": "any",
    "n": 2,
    "presence_penalty": 0.5,
    "seed": 1,
    "stop": ["x"],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 1,
    "timeout": 5.0,
    "top_p": 0.5,
    "user": "me",
}
TAKEN = {
    "chat": COMMON
    | {
        "function_call": "none",
        "functions": [],
        "logprobs": True,
        "max_completion_tokens": 3,
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "a"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
        "safety_identifier": "me",
        "service_tier": "auto",
        "store": False,
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "verbosity": "low",
    },
    "text": COMMON | {"best_of": 1, "echo": True, "logprobs": 2, "suffix": ""},
    "embedding": {"dimensions": 32, "encoding_format": "float", "model": "any", "user": "me", "timeout": 1,
                  "extra_body": {"origin": "me"}, "extra_headers": {}, "extra_query": {}},
}  # fmt: skip
REFUSED = {
    "chat": {
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": {"name": "f"},
        "functions": [{"name": "f"}],
        "logprobs": 5,
        "modalities": False,
        "moderation": {"model": "m"},
        "n": 129,
        "store": True,
        "tool_choice": "sometimes",
        "web_search_options": {},
    },
    "text": {"best_of": 3, "suffix": "the end", "logit_bias": {"9999": 1}, "echo": "yes"},
    "embedding": {"dimensions": 8, "encoding_format": "int8"},
}


def create(llm: LLM, kind: str) -> Callable[..., Any]:
    return {
        "chat": partial(llm.chat.completions.create, messages=HI),
        "text": partial(llm.completions.create, prompt="Xab"),
        "embedding": partial(llm.embeddings.create, input="ab"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "theirs", "explicit"),
    [
        ("chat", OpenAIChat.create, {"messages"}),
        ("text", openai.resources.Completions.create, {"prompt"}),
        ("embedding", openai.resources.Embeddings.create, {"input"}),
    ],
)
def test_every_parameter_is_taken_or_refused_by_name(llm: LLM, kind: str, theirs: Any, explicit: set[str]) -> None:
    names = inspect.signature(theirs).parameters.keys() - {"self"} - explicit
    assert names <= TAKEN[kind].keys() | REFUSED[kind].keys()
    cap = {} if kind == "embedding" else {"max_tokens": 2}
    for name, value in TAKEN[kind].items():
        more = {"logprobs": True} if name == "top_logprobs" else cap if "max" not in name else {}
        more = more | {"stream": True} if name == "stream_options" else more
        create(llm, kind)(**{**more, name: value})
        create(llm, kind)(**{**cap, name: None})
        create(llm, kind)(**{**cap, name: openai.NOT_GIVEN})
    for name, value in REFUSED[kind].items():
        with pytest.raises(InvalidParameter, match=name):
            create(llm, kind)(**{name: value})


def test_biases_and_the_parameters_in_extra_body_reach_the_engine(llm: LLM, sent: list[Request]) -> None:
    llm.completions.create(
        prompt="Xab", max_tokens=2, logit_bias={"97": -100}, extra_body={"top_k": 7, "repetition_penalty": 1.5}
    )
    params = sent[0].params
    assert (params.biases, params.top_k, params.repetition_penalty) == ({97: -100}, 7, 1.5)
    with pytest.raises(InvalidParameter, match="mirostat is no parameter"):
        llm.completions.create(prompt="Xab", extra_body={"mirostat": 2})
    with pytest.raises(InvalidParameter, match="repetition_penalty and repeat_penalty are the same"):
        llm.completions.create(prompt="Xab", repetition_penalty=1.5, repeat_penalty=1.5)


def test_minus_one_means_what_it_means_in_llama_cpp(llm: LLM, sent: list[Request]) -> None:
    made = llm.completions.create(prompt="Xab", seed=-1, top_k=-1, max_tokens=-1, n=2, stop="x")
    assert len(made.choices) == 2
    assert [(r.params.seed, r.params.top_k) for r in sent] == [(-1, 0)] * 2
    assert all(r.params.max_tokens == llm.n_ctx - 3 for r in sent)


def test_echo_puts_the_prompt_before_each_answer_streamed_or_not(llm: LLM) -> None:
    made = llm.completions.create(prompt=["Xab", "Xcd"], echo=True, max_tokens=2)
    assert [choice.text for choice in made.choices] == ["Xabab", "Xcdcd"]
    chunks = list(llm.completions.create(prompt="Xab", echo=True, max_tokens=2, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Xabab"
    for logprobs in (0, 1, True):
        with pytest.raises(InvalidParameter, match="echo has no logprobs of the prompt"):
            llm.completions.create(prompt="Xab", echo=True, logprobs=logprobs)
    assert llm.completions.create(prompt="Xab", echo=True, logprobs=False, max_tokens=2).choices[0].text == "Xabab"


def test_tools_are_told_unless_none_shall_be_called(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    encode = llm._prompts._template.encode_chat
    monkeypatch.setattr(
        llm._prompts._template, "encode_chat", lambda m, tools, **_: told.append(tools or None) or encode(m)
    )
    chat = partial(llm.chat.completions.create, messages=HI, max_tokens=1)
    chat(tools=[TOOL])
    chat(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True)
    chat(tools=[TOOL], tool_choice="none", parallel_tool_calls=False)
    chat(parallel_tool_calls=False)
    assert told == [[TOOL], [TOOL], None, None]
    for choice, problem in (
        ("sometimes", "tool_choice must be"),
        ({"type": "function", "function": {"name": "other"}}, "names the tool 'other', which is not among tools"),
    ):
        with pytest.raises(InvalidParameter, match=problem):
            chat(tools=[TOOL], tool_choice=choice)
    with pytest.raises(InvalidParameter, match="tool_choice must be left out where there are no tools"):
        chat(tool_choice="required")
    with pytest.raises(InvalidParameter, match="tool_choice asks for a call of a tool"):
        chat(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"})


def test_a_format_may_be_a_class_of_pydantic_or_llama_cpps(llm: LLM, sent: list[Request]) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}, "required": ["name"]}
    for response_format in (
        Colour,
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": schema}},
    ):
        llm.chat.completions.create(messages=HI, response_format=response_format, max_tokens=1)
        assert '"name"' in (sent[-1].params.json_schema or "")
    with pytest.raises(InvalidParameter, match="response_format and json_schema are the same"):
        llm.chat.completions.create(messages=HI, response_format=Colour, json_schema={})


@pytest.mark.parametrize(
    ("name", "message"),
    [("mesages", "did you mean messages?"), ("temprature", "temperature?"), ("toolchoice", "tool_choice?")],
)
def test_mistyped_names_are_told_the_nearest(llm: LLM, name: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{name} is no parameter that vkllm knows; .*{message}"):
        llm.chat.completions.create(**{name: HI})
