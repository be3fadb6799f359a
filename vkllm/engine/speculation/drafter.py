"""Drafts for the sequences of an engine: tokens that are likely to come next, which one step verifies together.

A drafter only guesses. What a sequence says does not depend on it: the engine takes a drafted token only where the
model chooses the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.engine.constraint import Constraint
from vkllm.engine.speculation.gain import DraftLengths
from vkllm.engine.speculation.heads import HeadGain
from vkllm.engine.speculation.history import Histories
from vkllm.engine.speculation.lookup import Lookup

MOST_DRAFTED = 31
"""Tokens of a draft: the widest narrow step less the known token."""

FIRST_DRAFTED = 3
"""A draft is at most as long as the match behind it, or this."""


MOST_WAITING = 15
"""Tokens of a draft where a grammar has to look ahead over them, or the logits behind each of them come to the host."""

MOST_AT_ONCE = 2048
"""Tokens of a prompt that are taken in at once, which takes some milliseconds."""


class Speculation:
    """What the drafters of an engine share. widths: rows of the steps that there are. has_lookup: whether earlier text
    is copied. has_head: whether the model's head for further tokens is loaded."""

    def __init__(self, widths: Sequence[int], *, has_lookup: bool = True, has_head: bool = False) -> None:
        self.lengths = DraftLengths(widths)
        self.head = HeadGain(self.lengths.seconds) if has_head else None
        self._histories = Histories() if has_lookup else None

    def drafter(self, origin: str, prompt_token_ids: Sequence[int], *, has_head: bool = True) -> Drafter:
        """A drafter for a new sequence, which only copies from texts of its own origin. has_head: whether the head may
        draft for it."""
        self.lengths.begin()
        lookup = Lookup(self._histories, origin) if self._histories is not None else None
        head = self.head if has_head and self.head is not None and self.head.begin() else None
        return Drafter(self.lengths, lookup, head, prompt_token_ids)

    def measured(self, n_rows: int, n_drafted: int, n_taken: int, seconds: float, *, is_ahead: bool) -> None:
        """Records a step, as `DraftLengths.measured` does; its drafts were not the head's."""
        self.lengths.measured(n_rows, n_drafted, n_taken, seconds, is_ahead=is_ahead)
        if self.head is not None and n_rows == 1:
            self.head.passed(seconds)


class Drafter:
    """Drafts for one sequence. It has to be told all of the sequence's tokens, drafted or not.

    lookup: None where nothing is copied. head: None where the head does not read the sequence. prompt_token_ids: taken
    in by and by (`catch_up`), so that long prompts hold nothing up; nothing is copied before.
    """

    def __init__(
        self, lengths: DraftLengths, lookup: Lookup | None, head: HeadGain | None, prompt_token_ids: Sequence[int]
    ) -> None:
        self.head = head
        self._lengths = lengths
        self._lookup = lookup
        self._pending: list[int] = list(prompt_token_ids) if lookup is not None else []
        self._n_taken_in = 0

    def catch_up(self) -> None:
        """Takes in some more of the tokens that are pending."""
        if self._pending and self._lookup is not None:
            first = self._n_taken_in
            self._n_taken_in = min(first + MOST_AT_ONCE, len(self._pending))
            self._lookup.extend(self._pending[first : self._n_taken_in])
            if self._n_taken_in == len(self._pending):
                self._pending = []

    def append(self, token_id: int) -> None:
        """The sequence goes on with this token, which the model has chosen."""
        if self._lookup is None:
            return
        if self._pending:
            self._pending.append(token_id)
            return
        n_matched = self._lookup.n_matched
        was_right = self._lookup.append(token_id)
        if was_right is not None:
            self._lengths.acceptance.counted(n_matched, was_right)

    def n_worthwhile(self, most: int = MOST_DRAFTED, n_rows: int = 1) -> int:
        """How many tokens would be copied now, in a step of n_rows rows without them; 0 where none pay."""
        n_matched = self._lookup.n_matched if self._lookup is not None else 0
        if self._pending or not n_matched or most <= 0:
            return 0
        most = min(most, max(n_matched, FIRST_DRAFTED), MOST_DRAFTED + 1 - n_rows)
        return self._lengths.best(self._lengths.acceptance.probabilities(n_matched, most), n_rows)

    def draft(
        self,
        most: int = MOST_DRAFTED,
        n_rows: int = 1,
        constraint: Constraint | None = None,
        *,
        waits: bool = False,
    ) -> list[int]:
        """Up to `most` tokens that are likely to come next, as many as pay in a step of n_rows rows without them.

        constraint: of the sequence, which then looks ahead over the drafts; tokens that must come are drafted too.
        waits: whether the sequence waits for each token in any case, as it does with a constraint.
        """
        if waits or constraint is not None:
            return self._draft_waiting(constraint, min(most, MOST_WAITING), n_rows)
        return self._lookup.guess(self.n_worthwhile(most, n_rows)) if self._lookup is not None else []

    def _draft_waiting(self, constraint: Constraint | None, most: int, n_rows: int) -> list[int]:
        guess: list[int] = []
        probabilities: list[float] = []
        if self._lookup is not None and self._lookup.n_matched and not self._pending and most > 0:
            guess = self._lookup.guess(min(most, max(self._lookup.n_matched, FIRST_DRAFTED)))
            probabilities = self._lengths.acceptance.probabilities(self._lookup.n_matched, len(guess))
        token_ids, forced = (guess, set()) if constraint is None else constraint.look_ahead(guess, most)
        likely = [1.0 if i in forced else probabilities[i] for i in range(len(token_ids))]
        return token_ids[: self._lengths.best(likely, n_rows, waits=True)]

    def n_predicted(self, most: int) -> int:
        """How many tokens the head is to draft, for a sequence that runs alone."""
        return 0 if self.head is None else self.head.n_predicted(most)
