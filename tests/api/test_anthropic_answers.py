"""Answers in the shape of Anthropic's Messages API, which anthropic's own types must take."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message

from vkllm.api.answer import Generation, Piece
from vkllm.api.anthropic.answers import MessageAnswer
from vkllm.engine.events import RunStats
from vkllm.text.answers.parts import ToolCall

STATS = RunStats(n_prompt=30, n_cached=10, n_generated=4, prompt_s=1, first_token_s=1, generate_s=1)
ROME = ToolCall("call_1", "weather", {"city": "Rom"})


def generation(text: str = "", **fields: Any) -> Generation:
    fields = {"token_ids": [1, 2, 3, 4], "finish_reason": "stop"} | fields
    return Generation(text=text, prompt_token_ids=[], logprobs=None, stats=STATS, **fields)


def test_a_whole_message_has_anthropics_fields() -> None:
    made = MessageAnswer("m").whole(generation("Hi", reasoning="hm", tool_calls=[ROME]))
    message = Message.model_validate(made)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.to_dict() == made
    assert made["id"].startswith("msg_") and made["content"][2]["input"] == {"city": "Rom"}
    assert made["stop_reason"] == "tool_use" and made["stop_sequence"] is None
    assert made["usage"] == {
        "input_tokens": 20,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 10,
        "output_tokens": 4,
    }


def test_an_empty_answer_is_an_empty_text() -> None:
    assert MessageAnswer("m").whole(generation())["content"] == [{"type": "text", "text": ""}]
    types = [event["type"] for event in MessageAnswer("m").end(generation())]
    assert types == ["content_block_start", "content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("fields", "max_tokens", "reason"),
    [
        ({}, None, "end_turn"),
        ({"stop_string": "X"}, None, "stop_sequence"),
        ({"finish_reason": "length"}, 4, "max_tokens"),
        ({"finish_reason": "length"}, 5, "model_context_window_exceeded"),
        ({"finish_reason": "length"}, None, "model_context_window_exceeded"),
    ],
)
def test_why_an_answer_ended(fields: dict[str, Any], max_tokens: int | None, reason: str) -> None:
    made = MessageAnswer("m", max_tokens).whole(generation("a", **fields))
    assert (made["stop_reason"], made["stop_sequence"]) == (reason, fields.get("stop_string"))


def test_events_come_block_by_block() -> None:
    answer = MessageAnswer("m")
    pieces = [
        Piece("", reasoning="h"),
        Piece("", reasoning="m"),
        Piece("A"),
        Piece("b"),
        Piece("", tool_calls=[ROME, ROME]),
        Piece("c"),
    ]
    events = [*answer.begin(30), *(event for piece in pieces for event in answer.push(piece))]
    events += answer.end(generation("Abc"))
    told = [(event["type"], event.get("index"), event.get("delta", {}).get("type")) for event in events]
    call = [
        ("content_block_start", 2, None),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
    ]
    assert told == [
        ("message_start", None, None),
        ("ping", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        *call,
        *((kind, 3, delta) for kind, _, delta in call),
        ("content_block_start", 4, None),
        ("content_block_delta", 4, "text_delta"),
        ("content_block_stop", 4, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 30
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts[2] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
