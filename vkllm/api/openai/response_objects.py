"""Answers in the shape of OpenAI's Responses API: a response with its items, and the events of a stream.

It knows the fields; what they are made of comes piece by piece, for streams and whole answers alike.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from vkllm.api.answer import Generation, Piece
from vkllm.api.openai.completions import chat_logprobs
from vkllm.api.openai.response_requests import ResponseRequest
from vkllm.text.answers.parts import CutCall, ToolCall
from vkllm.text.tokenizer import Tokenizer

Event = dict[str, Any]

_TOLD: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its response repeats, and what they are by default."""


class ResponseAnswer:
    """One response, filled piece by piece; each step returns the events that tell of it.

    model: the name that it is served under.
    """

    def __init__(self, request: ResponseRequest, model: str, tokenizer: Tokenizer) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self._tokenizer = tokenizer
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that still grows
        self._number = 0
        self._n_thought = 0
        reasoning = request.body.get("reasoning")
        given = {name: value for name in _TOLD if (value := request.body.get(name)) is not None}
        self._head = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "model": model,
            "background": False,
            "previous_response_id": None,
            "reasoning": reasoning if isinstance(reasoning, dict) else {"effort": None, "summary": None},
            "store": False,
            **_TOLD,
            **given,
        }

    def begin(self) -> list[Event]:
        """Before the first piece."""
        begun = self.response("in_progress")
        return [self._event(f"response.{kind}", response=begun) for kind in ("created", "in_progress")]

    def progress(self, fields: Mapping[str, Any]) -> Event:
        """That the prompt is being read. fields: how far."""
        return self._event("response.in_progress", response=self.response("in_progress"), **fields)

    def push(self, piece: Piece) -> list[Event]:
        """A piece of the answer."""
        piece = piece.with_cut_call()
        events: list[Event] = []
        if piece.reasoning:
            self._n_thought += len(piece.token_ids)
            events += self._grow("reasoning", piece.reasoning, piece)
        if piece:
            events += self._grow("message", str(piece), piece)
        for call in piece.tool_calls:
            events += [*self._close(), *self._call(call)]
        return events

    def finish(self, generation: Generation) -> list[Event]:
        """The end of the answer."""
        kind = "incomplete" if generation.finish_reason == "length" else "completed"
        events = self._close(kind)
        if not self._items:  # an empty answer is a message all the same
            events += [*self._grow("message", "", Piece("")), *self._close(kind)]
        return [*events, self._event(f"response.{kind}", response=self.whole(generation))]

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The response when the answer has ended."""
        stats, is_cut = generation.stats, generation.finish_reason == "length"
        n_generated = len(generation.token_ids)
        usage = {
            "input_tokens": stats.n_prompt,
            "input_tokens_details": {"cached_tokens": stats.n_cached},
            "output_tokens": n_generated,
            "output_tokens_details": {"reasoning_tokens": self._n_thought},
            "total_tokens": stats.n_prompt + n_generated,
        }
        made = self.response("incomplete" if is_cut else "completed") | {"usage": usage}
        if is_cut:
            made["incomplete_details"] = {"reason": "max_output_tokens"}
            if made["output"]:
                made["output"][-1] = {**made["output"][-1], "status": "incomplete"}
        else:
            made["completed_at"] = int(time.time())
        return made

    def failed(self, message: str, code: str) -> list[Event]:
        """The end of an answer that failed."""
        response = self.response("failed") | {"error": {"code": code, "message": message}}
        return [self._event("response.failed", response=response)]

    def response(self, status: str) -> dict[str, Any]:
        """The response as it is now."""
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(self._items),
            "usage": None,
        }

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _grow(self, kind: str, text: str, piece: Piece) -> Iterator[Event]:
        """Adds text to the item of a kind, which begins if it is not the open one."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            yield from self._begin(kind)
        item = self._open
        assert item is not None
        part = item["content"][0]
        part["text"] += text
        what = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0, "delta": text}
        if kind == "reasoning":
            yield self._event("response.reasoning_text.delta", **what)
            return
        found = chat_logprobs(piece.logprobs, self._tokenizer)
        logprobs = [] if found is None else found.model_dump()["content"]
        part["logprobs"] += logprobs
        yield self._event("response.output_text.delta", **what, logprobs=logprobs)

    def _begin(self, kind: str) -> Iterator[Event]:
        part: dict[str, Any]
        item: dict[str, Any]
        if kind == "reasoning":
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": f"rs_{uuid.uuid4().hex}", "type": "reasoning", "summary": [], "encrypted_content": None}
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        item |= {"status": "in_progress", "content": []}
        index = len(self._items)
        yield self._event("response.output_item.added", output_index=index, item=dict(item))
        what = {"item_id": item["id"], "output_index": index, "content_index": 0}
        yield self._event("response.content_part.added", **what, part=dict(part))
        item["content"] = [part]
        self._open = item

    def _close(self, status: str = "completed") -> list[Event]:
        """Ends the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return []
        part = item["content"][0]
        what = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}
        if item["type"] == "reasoning":
            events = [self._event("response.reasoning_text.done", **what, text=part["text"])]
        else:
            events = [self._event("response.output_text.done", **what, text=part["text"], logprobs=part["logprobs"])]
        events.append(self._event("response.content_part.done", **what, part=part))
        item["status"] = status
        events.append(self._event("response.output_item.done", output_index=len(self._items), item=item))
        self._items.append(item)
        return events

    def _call(self, call: ToolCall) -> list[Event]:
        """A call of a tool, which comes as a whole."""
        index = len(self._items)
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments_json,
            "status": "incomplete" if isinstance(call, CutCall) else "completed",
        }
        self._items.append(item)
        what = {"item_id": item["id"], "output_index": index}
        empty = item | {"arguments": "", "status": "in_progress"}
        done = {**what, "name": call.name, "arguments": call.arguments_json}
        return [
            self._event("response.output_item.added", output_index=index, item=empty),
            self._event("response.function_call_arguments.delta", **what, delta=call.arguments_json),
            self._event("response.function_call_arguments.done", **done),
            self._event("response.output_item.done", output_index=index, item=item),
        ]
