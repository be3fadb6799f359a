"""Drafts by the head of a model that predicts further tokens (multi-token prediction), and how long they should be.

The head reads every step of a sequence from its beginning on, whether it drafts or not, so its cache never has gaps.
Its steps run while the sequence waits, so it drafts only for one that runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from vkllm.engine.blocks import n_blocks_of
from vkllm.engine.prefix_cache import Held
from vkllm.engine.speculation.gain import FIRST_LOSS, KEPT, LEAST_GAIN, LOSS_SHARE, MOST_LOSS, StepSeconds
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.step import LIKELIEST, Part

MOST_PREDICTED = 3
"""Tokens that the head drafts at once, each from what it made of the one before: as many as steps may be in flight."""

EXPECTED, EXPECTED_COUNT = 0.6, 4.0
"""How many drafts are right if those before them are, before any were counted, and how much this number weighs."""

FIRST_ROUND_SHARE, ROUND_SHARE = 1.1, 0.2
"""How long a round may take, in plain steps, before one was measured: this, and more for each draft."""

JUDGED_ROUNDS, TRIED_SEQUENCES = 32, 8
"""After so many rounds that gained nothing, the head only reads one of so many new sequences."""

PLAIN_ROUNDS, SURE_GAIN = 64, 1.3
"""After so many rounds that gain less than this, some steps go without drafts, to measure them again."""


class Predicting(Protocol):
    """What runs the head; `vkllm.gpu.program.program.Program` is the real one."""

    def predict(self, part: Part, *, goes_on: bool = False) -> Submitted:
        """Submits a guess behind one token."""

    def tokens(self, submitted: Submitted) -> list[int]:
        """Waits for a step; the tokens of all its results."""


class HeadGain:
    """How many tokens the head drafts, by measured times and by how many were right. plain: times of other steps."""

    def __init__(self, plain: StepSeconds) -> None:
        self._plain = plain
        self._right = [EXPECTED * EXPECTED_COUNT] * MOST_PREDICTED
        self._all = [EXPECTED_COUNT] * MOST_PREDICTED
        self._round_s: dict[int, float] = {}
        self._n_measured = [0] * (MOST_PREDICTED + 1)
        self._room_s = 0.0  # how much more may be lost
        self._is_first = True
        self._n_rounds = self._n_rounds_in_turn = self._n_sequences = 0

    def begin(self) -> bool:
        """A sequence begins; whether the head is to read it."""
        self._is_first = True
        self._n_sequences += 1
        has_lost = self._n_rounds >= JUDGED_ROUNDS and self._best()[1] < LEAST_GAIN
        return not has_lost or self._n_sequences % TRIED_SEQUENCES == 0

    def counted(self, n_drafted: int, n_right: int, seconds: float) -> None:
        """Records a round: guesses, and the step that verified them, of which the first n_right were right."""
        for i in range(min(n_right + 1, n_drafted)):
            self._right[i] = KEPT * self._right[i] + (i < n_right)
            self._all[i] = KEPT * self._all[i] + 1
        self._n_rounds += 1
        self._n_rounds_in_turn += 1
        self._n_measured[n_drafted] += 1
        if self._n_measured[n_drafted] > 1:  # the first one includes its recording
            before_s = self._round_s.get(n_drafted, seconds)
            # now and then a step is held up by other programs
            self._round_s[n_drafted] = min(seconds, before_s + 0.2 * (min(seconds, 2 * before_s) - before_s))
        if (plain_s := self._plain.of(1, is_ahead=True)) is not None:
            gained_s = max(plain_s * (n_right + 1) - seconds, -MOST_LOSS * plain_s)
            self._room_s = min(self._room_s + gained_s, MOST_LOSS * plain_s)
            self._earn(plain_s, seconds)

    def passed(self, seconds: float) -> None:
        """A token came without the head."""
        self._n_rounds_in_turn = 0
        if (plain_s := self._plain.of(1, is_ahead=True)) is not None:
            if self._is_first:
                self._is_first, self._room_s = False, FIRST_LOSS * plain_s
            self._earn(plain_s, seconds)

    def n_predicted(self, most: int) -> int:
        """How many tokens the head is to draft now; 0 while it does not pay, or plain steps were not timed yet."""
        if most < 1 or self._room_s <= 0 or self._plain.of(1, is_ahead=True) is None:
            return 0
        n, gain = self._best()
        if gain < LEAST_GAIN or (gain < SURE_GAIN and self._n_rounds_in_turn >= PLAIN_ROUNDS):
            return 0
        return min(n, most)

    def _earn(self, plain_s: float, seconds: float) -> None:
        if self._room_s < FIRST_LOSS * plain_s:
            self._room_s += LOSS_SHARE * seconds

    def _best(self) -> tuple[int, float]:
        """The number of drafts that makes most tokens a second, and how many times those without; at most one more than
        were timed."""
        plain_s = self._plain.of(1, is_ahead=True) or 0.0
        gains, likely, n_expected = [], 1.0, 1.0
        most = 1 + max(self._round_s, default=0)
        for n, (right, count) in enumerate(zip(self._right[:most], self._all[:most], strict=True), 1):
            likely *= right / count
            n_expected += likely
            gains.append((n_expected * plain_s / (self._seconds(n, plain_s) or 1.0), n))
        gain, n = max(gains)
        return n, gain

    def _seconds(self, n: int, plain_s: float) -> float:
        """Of a round with n drafts; before one was measured, by the nearest that was."""
        measured = [m for m in range(1, n + 1) if m in self._round_s]
        if not measured:
            return (FIRST_ROUND_SHARE + ROUND_SHARE * n) * plain_s
        return self._round_s[measured[-1]] + (n - measured[-1]) * ROUND_SHARE * plain_s


class Head:
    """Runs the head of a program."""

    def __init__(self, program: Predicting) -> None:
        self._program = program

    def drafts(self, number: int, held: Held, tokens: Sequence[int], row_before: int | None, n: int) -> list[int]:
        """n tokens that may follow these, the last of which has not run; waits for them. held: what the sequence holds
        of the cache, with room for all rows. row_before: as in `vkllm.gpu.program.step.Part`."""
        position = len(tokens) - 1
        n_blocks = n_blocks_of(position + n)
        blocks, window_blocks = held.blocks[:n_blocks], held.window_blocks[:n_blocks]
        part = Part(number, tokens[-1:], position, blocks, window_blocks, results=LIKELIEST, row_before=row_before)
        steps = [self._program.predict(part)]
        for i in range(1, n):
            following = replace(part, tokens=[None], position=position + i)
            steps.append(self._program.predict(following, goes_on=True))
        return [self._program.tokens(step)[0] for step in steps]
