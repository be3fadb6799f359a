"""OpenAI's objects as they are sent: with the name that the model is served under, and llama.cpp's timings.

It knows shapes; how answers come is openai.py's.
"""

from __future__ import annotations

import json
from typing import Any

from vkllm.api.answer import Generation, Piece
from vkllm.faces.server.answers import json_bytes
from vkllm.faces.server.llama_cpp_models import build_info
from vkllm.faces.server.models import ServedModel


def as_sent(shape: Any, model: ServedModel) -> dict[str, Any]:
    """An object as a dictionary; deltas have only what they change, and nothing is null that clients would read."""
    made: dict[str, Any] = shape.model_dump()
    made["model"] = model.name
    made["system_fingerprint"] = build_info()
    if made.get("usage", ...) is None:
        del made["usage"]
    for choice in made["choices"]:
        if "delta" in choice:
            delta = {name: value for name, value in choice["delta"].items() if value is not None}
            choice["delta"] = {**delta, "content": None} if delta.get("role") else delta
        elif "message" in choice:
            choice["message"] = {
                name: value for name, value in choice["message"].items() if value is not None or name == "content"
            }
    return made


class TextChunks:
    """Writes chunks of a chat that only add text, which most are, quickly: they differ in this text alone."""

    def __init__(self) -> None:
        self._heads: dict[int, bytes] = {}

    def like(self, first: dict[str, Any], index: int) -> dict[str, Any]:
        """Takes the first chunk of an answer as the pattern; returns it."""
        if first["choices"] and "delta" in first["choices"][0]:
            head = {name: value for name, value in first.items() if name != "choices"}
            self._heads[index] = (
                b"data: " + json_bytes(head)[:-1] + b',"choices":[{"index":%d,"delta":{"content":' % index
            )
        return first

    def event(self, index: int, piece: Piece) -> bytes | None:
        """The event of a piece, or None for one that is more than text."""
        head = self._heads.get(index)
        if head is None or not piece or not piece.is_text or piece.logprobs is not None:
            return None
        text = json.dumps(piece, ensure_ascii=False).encode()
        return head + text + b'},"logprobs":null,"finish_reason":null}]}\n\n'


def prompt_of(generation: Generation, model: ServedModel) -> str:
    """The prompt that an answer was made for, with its control tokens."""
    return model.llm.llm.tokenizer.decode(generation.prompt_token_ids, skip_special=False)
