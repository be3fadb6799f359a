"""Finds tokens that a text contains literally, such as <|im_end|>, before anything is merged.

The search is the `tokenizers` package's automaton: its time grows with the text, however many and long the tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers.models import BPE

from vkllm.text.merging import encoded


@dataclass(frozen=True, slots=True)
class Found:
    """A token and where a text holds it, in characters."""

    start: int
    end: int
    token_id: int


class WholeTokens:
    """Finds tokens by their texts. ids: text -> token id; no text may be empty."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = list(ids.values())
        self._automaton = tokenizers.Tokenizer(BPE())  # without a vocabulary: what is between the tokens is no token
        self._automaton.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ids])

    def find(self, text: str, start: int = 0, end: int | None = None) -> list[Found]:
        """The tokens within a part of a text, none overlapping: the first ones, and the longest where several begin."""
        if not self._ids or start == end:
            return []
        found = encoded(self._automaton, text[start:end])
        return [
            Found(start + first, start + last, self._ids[index])
            for index, (first, last) in zip(found.ids, found.offsets, strict=True)
        ]
