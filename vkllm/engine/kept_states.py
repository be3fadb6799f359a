"""Which slots hold the states of layers, by how many tokens of the sequence they are behind.

A state cannot be cut back to an earlier token, so some states of earlier tokens are kept: a request that begins with
the same tokens goes on from the last of them that its tokens share. Slots are chosen here; steps read and store them
(`gpu/program/step.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.gpu.program.kernels import STATE_ROWS

N_NEWEST = 3
"""Newest states of an answer: steps that are in flight when it ends have gone further than its tokens."""

ANSWER_TOKENS = 512
"""A state of an answer is kept after every so many tokens."""


class KeptStates:
    """The slots of a sequence. n_slots: 0 if no layer has a state; then every number of tokens has one."""

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._slots: dict[int, int] = {}  # by the number of tokens that a state is behind
        self._passing: list[int] = []  # of these, the states of an answer that are only kept for steps in flight
        self._shared = 0  # where two requests differed: a third one may begin like them
        self._before_answer = 0  # shortly before the end of a prompt: the next one may leave out what followed

    @property
    def are_there(self) -> bool:
        """Whether any layer has a state."""
        return self._n_slots > 0

    def usable(self, n_tokens: int) -> list[int]:
        """Numbers of tokens, at most n_tokens, that a sequence can go on from, the largest first."""
        if not self._n_slots:
            return [n_tokens]
        return [*sorted((n for n in self._slots if n <= n_tokens), reverse=True), 0]

    def cut(self, n_tokens: int) -> None:
        """Forgets the states behind more tokens."""
        self._slots = {n: slot for n, slot in self._slots.items() if n <= n_tokens}
        self._passing = [n for n in self._passing if n <= n_tokens]

    def share(self, n_tokens: int) -> None:
        """A request begins with so many tokens of the one before; the state behind them is to be kept."""
        self._shared = n_tokens

    def slot(self, n_tokens: int) -> int | None:
        """The slot with the states behind so many tokens; None for none: they are zeros, or there are no states."""
        return self._slots[n_tokens] if n_tokens and self._n_slots else None

    def restored(self, n_tokens: int) -> None:
        """The states behind so many tokens were put into slot 0; all others are free."""
        self._slots, self._passing = {n_tokens: 0}, []

    def store(self, start: int, n_rows: int, *, is_end: bool, is_prompt: bool) -> dict[int, int]:
        """Where a step stores its states, by row. start: tokens before it. is_end: of a prompt."""
        if not self._n_slots:
            return {}
        ends = [start + n_rows]
        whole = (n_rows - 1) // STATE_ROWS * STATE_ROWS
        if is_end and whole:  # the next prompt may differ shortly before the end of this one
            ends.insert(0, start + whole)
        if is_end:
            self._before_answer = start + whole
        for end in ends:
            self._slots[end] = self._free({start, *ends})
        if not is_prompt and ends[-1] % ANSWER_TOKENS:
            self._passing.append(ends[-1])
        return {end - start - 1: self._slots[end] for end in ends}

    def _free(self, needed: set[int]) -> int:
        """A slot without a state that is worth keeping. needed: numbers of tokens whose states may not go."""
        used = {slot for n, slot in self._slots.items()}
        if unused := set(range(self._n_slots)) - used:
            return min(unused)
        self._passing = [n for n in self._passing if n in self._slots]
        if len(self._passing) >= N_NEWEST:
            lost = self._passing.pop(0)
        else:
            lost = self._least_useful(sorted(self._slots), needed)
        return self._slots.pop(lost)

    def _least_useful(self, kept: Sequence[int], needed: set[int]) -> int:
        """One of the kept numbers of tokens: without it little must be run again, compared to how far back it is."""
        newest = kept[-1]
        others = [n for n in kept if n not in needed and n not in self._passing]
        gaps = {n: after - before for before, n, after in zip([0, *kept], kept, [*kept[1:], newest + 1], strict=False)}
        valued = (self._shared, self._before_answer)
        return min(others or kept, key=lambda n: (n in valued, gaps[n] / (newest + 1 - n)))
