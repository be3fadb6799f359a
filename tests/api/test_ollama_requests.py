"""Bodies in the shape of ollama's API become chats and prompts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vkllm.api.chat_request import ChatRequest
from vkllm.api.ollama.options import Common, keep_alive_s
from vkllm.api.ollama.requests import OllamaRequest, TextRequest, chat_request, generate_request
from vkllm.errors import InvalidParameter

HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}


def chat(**body: Any) -> OllamaRequest:
    return chat_request({"model": "m", "messages": [HI], **body})


def asked(request: OllamaRequest) -> ChatRequest:
    assert isinstance(request.asked, ChatRequest)
    return request.asked


def test_options_have_our_names() -> None:
    options = {"temperature": 0, "repeat_penalty": 1.1, "repeat_last_n": -1, "stop": ["X"], "num_predict": 5}
    request = chat(options={**options, "num_ctx": 512, "num_thread": 4, "mirostat": None, "top_k": None})
    assert asked(request).options == {
        "temperature": 0,
        "repetition_penalty": 1.1,
        "penalty_window": -1,
        "stop": ["X"],
        "max_tokens": 5,
        "context_shift": True,
    }
    assert request.common == Common("m", 512, None)
    assert request.is_stream and not chat(stream=False).is_stream
    assert not asked(chat(truncate=False)).options["context_shift"]


@pytest.mark.parametrize("n_predict", [-1, -2, None])
def test_no_limit_is_none(n_predict: int | None) -> None:
    assert "max_tokens" not in asked(chat(options={"num_predict": n_predict})).options


@pytest.mark.parametrize(("form", "schema"), [("json", {"type": "object"}), (SCHEMA, SCHEMA), ("", None), (None, None)])
def test_a_format_is_a_schema(form: Any, schema: Any) -> None:
    assert asked(chat(format=form)).options.get("json_schema") == schema


@pytest.mark.parametrize(
    ("think", "variables", "hides"),
    [
        (None, {}, False),
        (True, {"enable_thinking": True}, False),
        (False, {"enable_thinking": False}, True),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}, False),
    ],
)
def test_think(think: Any, variables: dict[str, Any], hides: bool) -> None:
    request = chat(think=think)
    assert (asked(request).variables, request.hides_thinking) == (variables, hides)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (30, 30),
        ("30", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        (-1, math.inf),
        ("-1m", math.inf),
        (0, 0),
        ("0s", 0),
    ],
)
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert keep_alive_s(value) == seconds


def test_results_of_tools_name_the_calls_that_they_belong_to() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Rome"}}} for name in ("rain", "sun", "rain")]
    results = [{"role": "tool", "content": text, "tool_name": text} for text in ("sun", "rain")]
    messages = [HI, {"role": "assistant", "tool_calls": calls}, *results, {"role": "tool", "content": "last"}]
    made = asked(chat(messages=messages)).messages
    assert [call["id"] for call in made[1]["tool_calls"]] == ["call_1_0", "call_1_1", "call_1_2"]
    assert made[1]["tool_calls"][0]["type"] == "function" and made[1]["content"] == ""
    assert [(result["tool_call_id"], result["name"]) for result in made[2:]] == [
        ("call_1_1", "sun"),
        ("call_1_0", "rain"),
        ("call_1_2", "rain"),
    ]


def test_no_messages_and_no_prompt_load_the_model() -> None:
    assert chat_request({"model": "m", "keep_alive": 0}) == OllamaRequest(Common("m", None, 0), None, True, False)
    assert generate_request({"name": "m", "prompt": ""}).asked is None


def test_a_prompt_is_a_question_or_text_as_it_is() -> None:
    request = generate_request({"model": "m", "prompt": "Hi", "system": "Be brief.", "think": False})
    assert asked(request).messages == [{"role": "system", "content": "Be brief."}, HI]
    assert asked(request).variables == {"enable_thinking": False}
    raw = generate_request({"model": "m", "prompt": "Hi", "raw": True, "system": "Be brief."}).asked
    assert raw == TextRequest("Hi", {"context_shift": True})


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert asked(chat(messages=[HI, {"role": "assistant", "content": "We"}])).variables == {"continues_last": True}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model is required"),
        ({"model": 5}, "model must be text"),
        ({"model": "m", "messages": "Hi"}, "messages must be a list"),
        ({"model": "m", "messages": ["Hi"]}, "message 0 must be an object"),
        ({"model": "m", "messages": [{**HI, "images": ["aGk="]}]}, "message 0 has images"),
        ({"model": "m", "messages": [{**HI, "tool_calls": [{}]}]}, "message 0 has a call without the name"),
        ({"model": "m", "messages": [HI], "tools": {"a": 1}}, "tools must be a list"),
        ({"model": "m", "messages": [HI], "format": "xml"}, 'format must be "json"'),
        ({"model": "m", "messages": [HI], "think": "deeply"}, "think must be true, false"),
        ({"model": "m", "messages": [HI], "options": 5}, "options must be an object"),
        ({"model": "m", "messages": [HI], "keep_alive": "soon"}, "keep_alive must be a number of seconds"),
        ({"model": "m", "messages": [HI], "options": {"num_ctx": "x"}}, "num_ctx must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_chat_is_said(body: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        chat_request(body)


@pytest.mark.parametrize(
    "field", [{"suffix": "x"}, {"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"images": ["aGk="]}]
)
def test_what_cannot_be_met_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=next(iter(field))):
        generate_request({"model": "m", "prompt": "Hi", **field})
