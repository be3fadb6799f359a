"""Prompt lookup for one sequence: what followed an earlier match of its last tokens may follow them again.

A match is followed from token to token, so that every guess turns out right or wrong, whether it was drafted or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.engine.speculation.history import SIZES, Histories

LONGEST_MATCH = 64
"""Tokens of matches are not counted further."""

NEAR = 8
"""Where a text leaves its source, because a word was replaced, left out or put in, its next tokens are looked for among
so many of the source's tokens before and behind that place, each alone."""


class Lookup:
    """The guesses for one sequence. origin: only texts of the same one are searched.

    n_matched: how many last tokens of the sequence its source has before the guessed ones; 0: there is no guess. 1 or 2
    tokens match only near a place where a longer match ended.
    """

    def __init__(self, histories: Histories, origin: str) -> None:
        self.n_matched = 0
        self._own = histories.begin(origin)
        self._histories = (self._own, *histories.before(origin, self._own))
        self._source, self._place = self._own, 0
        self._n_near = 0  # tokens for which the source is still searched near the place where it was left

    def extend(self, token_ids: Sequence[int]) -> None:
        """The sequence goes on with these tokens, such as a prompt, about which nothing was guessed."""
        self._own.extend(token_ids)
        self._find()

    def append(self, token_id: int) -> bool | None:
        """The sequence goes on with this token; returns whether that was guessed, None where nothing was."""
        was_right = self._source.tokens[self._place] == token_id if self.n_matched else None
        self._own.append(token_id)
        self._place += 1
        n_followed = 0
        if was_right and self._place < len(self._source.tokens):
            n_followed = self.n_matched = min(self.n_matched + 1, LONGEST_MATCH)
        elif was_right is False and self.n_matched > SIZES[-1]:
            self._n_near = NEAR
        if n_followed < SIZES[0]:
            self._find(n_followed)
        return was_right

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next."""
        if not self.n_matched:
            return []
        return self._source.following(self._place, most, is_continued=self._source is self._own)

    def _find(self, n_followed: int = 0) -> None:
        """Takes another match if it is longer than the one that is followed."""
        for size in SIZES:
            if not n_followed < size <= len(self._own.tokens):
                continue
            key = self._own.ending(size)
            for history in self._histories:
                place = history.place_behind(key)
                if place is not None:
                    self._source, self._place, self._n_near = history, place, 0
                    self.n_matched = history.n_alike(place, self._own, LONGEST_MATCH)
                    return
        if not n_followed:
            self.n_matched = 0
            if self._n_near:
                self._n_near -= 1
                self._find_near()

    def _find_near(self) -> None:
        """Looks for the last token in the source, near the place where the source's match ended."""
        tokens, last = self._source.tokens, self._own.tokens[-1]
        end = min(len(tokens), len(self._own.tokens) - 1) if self._source is self._own else len(tokens)
        near = range(max(self._place - NEAR, 1), min(self._place + NEAR, end))
        places = [place for place in near if tokens[place - 1] == last]
        if places:
            self._place = min(places, key=lambda place: (abs(place - self._place), place))
            self.n_matched = self._source.n_alike(self._place, self._own, SIZES[-1] - 1)
