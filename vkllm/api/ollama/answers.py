"""Answers in the shape of ollama's API: the lines of a stream, or one object. Durations are in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vkllm.api.answer import Generation, Logprob, Piece
from vkllm.engine.events import RunStats
from vkllm.text.answers.parts import ToolCall
from vkllm.text.tokenizer import Tokenizer


@dataclass
class OllamaAnswer:
    """One answer of a model. is_chat: of /api/chat, else of /api/generate. load_s: what loading the model took."""

    model: str
    is_chat: bool
    hides_thinking: bool = False
    load_s: float = 0.0
    tokenizer: Tokenizer | None = None
    _start_s: float = field(default_factory=time.monotonic)
    _n_calls: int = 0

    def line(self, piece: Piece) -> dict[str, Any] | None:
        """The line of a piece; None where it says nothing."""
        said = self._said(str(piece), piece.reasoning, piece.tool_calls)
        if not (piece or piece.tool_calls or (piece.reasoning and not self.hides_thinking) or piece.logprobs):
            return None
        return {**self._head(), **said, "done": False, **self._logprobs(piece.logprobs)}

    def last_line(self, generation: Generation) -> dict[str, Any]:
        """The end, with counts and durations."""
        return {**self._head(), **self._said("", "", ()), **self._end(generation)}

    def whole(self, generation: Generation) -> dict[str, Any]:
        """All of it in one object."""
        said = self._said(generation.text, generation.reasoning, generation.tool_calls)
        return {**self._head(), **said, **self._end(generation), **self._logprobs(generation.logprobs)}

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request without a prompt: the model was loaded ("load") or unloaded ("unload")."""
        return {**self._head(), **self._said("", "", ()), "done": True, "done_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": now()}

    def _said(self, text: str, reasoning: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        thinking = {"thinking": reasoning} if reasoning and not self.hides_thinking else {}
        if not self.is_chat:
            return {"response": text, **thinking}
        message: dict[str, Any] = {"role": "assistant", "content": text, **thinking}
        if calls:
            message["tool_calls"] = [self._call(call) for call in calls]
        return {"message": message}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        index, self._n_calls = self._n_calls, self._n_calls + 1
        return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}

    def _end(self, generation: Generation) -> dict[str, Any]:
        reason = "length" if generation.finish_reason == "length" else "stop"
        total_s = time.monotonic() - self._start_s + self.load_s
        return {
            "done": True,
            "done_reason": reason,
            "total_duration": nanoseconds(total_s),
            "load_duration": nanoseconds(self.load_s),
            **_counts(generation.stats),
        }

    def _logprobs(self, logprobs: Sequence[Logprob] | None) -> dict[str, Any]:
        if not logprobs or self.tokenizer is None:
            return {}
        token_bytes = self.tokenizer.token_bytes

        def told(token_id: int, text: str, logprob: float) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(token_bytes(token_id))}

        entries = []
        for entry in logprobs:
            top = [told(*each) for each in entry.top]
            entries.append(told(entry.token_id, entry.text, entry.logprob) | ({"top_logprobs": top} if top else {}))
        return {"logprobs": entries}


def nanoseconds(seconds: float) -> int:
    """At least 1: clients divide by durations."""
    return max(1, round(seconds * 1e9))


def now() -> str:
    """The time as ollama writes it."""
    return datetime.now(UTC).isoformat("T", "microseconds").replace("+00:00", "Z")


def _counts(stats: RunStats) -> dict[str, int]:
    return {
        "prompt_eval_count": stats.n_prompt,
        "prompt_eval_duration": nanoseconds(stats.prompt_s),
        "eval_count": stats.n_generated,
        "eval_duration": nanoseconds(stats.generate_s),
    }
