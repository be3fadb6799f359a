"""Texts that were there before, and where each of their n-grams was last followed by another token.

Knows token ids only. Prompt lookup (Saxena 2023, "Prompt Lookup Decoding") copies from them what may come next.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

SIZES = (8, 3)
"""Tokens of the n-grams that are found, the longest first."""

INDEXED_TOKENS = 65_536
"""Of a longer text, about the newest so many tokens are found: a token takes some 250 bytes."""

KEPT_TOKENS = 65_536
"""Tokens of texts that are kept when a new one begins, the newest."""

KEPT_TEXTS = 64
"""Texts that are kept, the newest, whatever their length."""

SEARCHED_TEXTS = 4
"""Other texts of the same origin that are searched, the newest."""


class History:
    """The tokens of one sequence, which only grows.

    A token takes about a microsecond. Keys are the bytes of n-grams, so different n-grams are never confused.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.tokens = array("I")
        self._places: dict[bytes, int] = {}  # of each n-gram: where the token lies that followed it last
        self._older: dict[bytes, int] = {}
        self._n_indexed = 0  # tokens since `_places` was begun
        self.extend(token_ids)

    def append(self, token_id: int) -> None:
        """Adds a token."""
        tokens, end = self.tokens, len(self.tokens)
        for size in SIZES:
            if end >= size:
                self._places[tokens[end - size :].tobytes()] = end
        tokens.append(token_id)
        self._n_indexed += 1
        if self._n_indexed >= INDEXED_TOKENS // 2:
            self._older, self._places, self._n_indexed = self._places, {}, 0

    def extend(self, token_ids: Sequence[int]) -> None:
        """Adds tokens."""
        for token_id in token_ids:
            self.append(token_id)

    def ending(self, size: int) -> bytes:
        """The key of its last n-gram of that size; it has as many tokens."""
        return self.tokens[-size:].tobytes()

    def place_behind(self, key: bytes) -> int | None:
        """Where the token lies that followed an n-gram last; None if none did."""
        return self._places.get(key) or self._older.get(key)

    def following(self, place: int, most: int, *, is_continued: bool) -> list[int]:
        """Up to `most` tokens from a place on; is_continued: behind its end, they repeat those from the place on."""
        found = self.tokens[place : place + most].tolist()
        while is_continued and len(found) < most:
            found += found[: most - len(found)]
        return found

    def n_alike(self, place: int, other: History, most: int) -> int:
        """How many tokens before a place, up to `most`, are the last ones of another history."""
        mine, theirs, n = self.tokens, other.tokens, 0
        while n < min(most, place, len(theirs)) and mine[place - 1 - n] == theirs[-1 - n]:
            n += 1
        return n


class Histories:
    """The histories of all sequences, by origin: what is of one origin is never copied for another."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, History]] = []  # the newest last

    def begin(self, origin: str) -> History:
        """A new history, in which later sequences of the same origin may find something. A history that is dropped
        here stays with the sequence that it belongs to."""
        sizes = [len(history.tokens) for _, history in self._texts]
        while self._texts and (len(sizes) >= KEPT_TEXTS or sum(sizes) > KEPT_TOKENS):
            del self._texts[0], sizes[0]
        history = History()
        self._texts.append((origin, history))
        return history

    def before(self, origin: str, own: History) -> list[History]:
        """The other histories of an origin that are searched, the newest first."""
        texts = [history for name, history in self._texts if name == origin and history is not own]
        return texts[: -SEARCHED_TEXTS - 1 : -1]
