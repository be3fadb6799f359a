"""Answers in the shape of Anthropic's Messages API: messages, and the events of a stream in their order.

It knows fields and order, as the anthropic package 2.14 has them; not how answers are made, nor how events travel.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from vkllm.api.answer import Generation, Piece
from vkllm.text.answers.parts import ToolCall

Event = dict[str, Any]
"""An object of the API; its type is the event's name too."""

PING: Event = {"type": "ping"}


class MessageAnswer:
    """One answer: a whole message, or events as pieces come. max_tokens: that the request asked for, if it did."""

    def __init__(self, model: str, max_tokens: int | None = None) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._id = f"msg_{uuid.uuid4().hex[:24]}"
        self._n_blocks = 0
        self._open = ""  # type of the block that deltas go to
        self._has_text = False

    def whole(self, generation: Generation) -> Event:
        """The message."""
        generation = generation.with_cut_call()
        content: list[Event] = []
        if generation.reasoning:
            content.append({"type": "thinking", "thinking": generation.reasoning, "signature": ""})
        if generation.text or not (content or generation.tool_calls):
            content.append({"type": "text", "text": generation.text})
        content += [{**_tool_use(call), "input": call.arguments} for call in generation.tool_calls]
        return self._message(content, _usage(generation)) | self._stop(generation)

    def begin(self, n_prompt: int) -> Iterator[Event]:
        """The first events. n_prompt: tokens of the prompt."""
        usage = {"input_tokens": n_prompt, "output_tokens": 0}
        none = {"stop_reason": None, "stop_sequence": None}
        yield {"type": "message_start", "message": self._message([], usage) | none}
        yield PING

    def push(self, piece: Piece) -> Iterator[Event]:
        """The events of some reasoning, text or calls."""
        piece = piece.with_cut_call()
        if piece.reasoning:
            yield from self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": piece.reasoning})
        if piece:
            self._has_text = True
            yield from self._opened("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": str(piece)})
        for call in piece.tool_calls:
            yield from self._closed()
            yield from self._opened("tool_use", {**_tool_use(call), "input": {}})
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments_json})
            yield from self._closed()

    def end(self, generation: Generation) -> Iterator[Event]:
        """The last events."""
        if not (self._has_text or self._n_blocks):
            yield from self._opened("text", {"type": "text", "text": ""})
        yield from self._closed()
        yield {"type": "message_delta", "delta": self._stop(generation), "usage": _usage(generation)}
        yield {"type": "message_stop"}

    def _opened(self, kind: str, block: Event) -> Iterator[Event]:
        """Begins a block unless one of its type is open."""
        if self._open != kind:
            yield from self._closed()
            yield {"type": "content_block_start", "index": self._n_blocks, "content_block": block}
            self._open = kind
            self._n_blocks += 1

    def _closed(self) -> Iterator[Event]:
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open:
            yield {"type": "content_block_stop", "index": self._n_blocks - 1}
            self._open = ""

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta}

    def _message(self, content: list[Event], usage: Event) -> Event:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, "usage": usage}

    def _stop(self, generation: Generation) -> Event:
        if generation.stop_string is not None:
            reason = "stop_sequence"
        elif generation.finish_reason == "length":
            is_cut = self._max_tokens is not None and len(generation.token_ids) >= self._max_tokens
            reason = "max_tokens" if is_cut else "model_context_window_exceeded"
        else:
            reason = "tool_use" if generation.tool_calls else "end_turn"
        return {"stop_reason": reason, "stop_sequence": generation.stop_string}


def _tool_use(call: ToolCall) -> Event:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _usage(generation: Generation) -> Event:
    stats = generation.stats
    return {
        "input_tokens": stats.n_prompt - stats.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.n_cached,
        "output_tokens": len(generation.token_ids),
    }
