"""Drafts for the sequences of an engine: tokens that are likely to come next, which one step verifies together.

A drafter only guesses. What a sequence says does not depend on it: the engine takes a drafted token only where the
model chooses the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.engine.speculation.gain import DraftLengths
from vkllm.engine.speculation.history import Histories
from vkllm.engine.speculation.lookup import Lookup

MOST_DRAFTED = 31
"""Tokens of a draft: the widest narrow step less the known token."""

FIRST_DRAFTED = 3
"""A draft is at most as long as the match behind it, or this."""


class Speculation:
    """What the drafters of an engine share. widths: rows of the steps that there are."""

    def __init__(self, widths: Sequence[int]) -> None:
        self.lengths = DraftLengths(widths)
        self._histories = Histories()

    def drafter(self, origin: str) -> Drafter:
        """A drafter for a new sequence, which only copies from texts of its own origin."""
        self.lengths.begin()
        return Drafter(self.lengths, Lookup(self._histories, origin))


class Drafter:
    """Drafts for one sequence. It has to be told all of the sequence's tokens, drafted or not."""

    def __init__(self, lengths: DraftLengths, lookup: Lookup) -> None:
        self._lengths = lengths
        self._lookup = lookup

    def extend(self, token_ids: Sequence[int]) -> None:
        """The sequence goes on with these tokens of a prompt."""
        self._lookup.extend(token_ids)

    def append(self, token_id: int) -> None:
        """The sequence goes on with this token, which the model has chosen."""
        n_matched = self._lookup.n_matched
        was_right = self._lookup.append(token_id)
        if was_right is not None:
            self._lengths.acceptance.counted(n_matched, was_right)

    def n_worthwhile(self, most: int = MOST_DRAFTED, n_rows: int = 1) -> int:
        """How many tokens a draft would have now, in a step of n_rows others; 0 where none pays."""
        n_matched = self._lookup.n_matched
        if not n_matched or most <= 0:
            return 0
        most = min(most, max(n_matched, FIRST_DRAFTED))
        return self._lengths.best(self._lengths.acceptance.probabilities(n_matched, most), n_rows)

    def draft(self, most: int = MOST_DRAFTED, n_rows: int = 1) -> list[int]:
        """Up to `most` tokens that are likely to come next, as many as pay in a step of n_rows others."""
        return self._lookup.guess(self.n_worthwhile(most, n_rows))
