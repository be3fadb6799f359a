"""How many tokens are worth drafting: by the measured times of steps, and by how often guesses were right.

Knows widths, seconds and counts, no tokens and no device.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

MATCHES = (1, 3, 4, 6, 8, 12, 20)
"""Guesses behind matches of at least so many tokens, up to the next number, are counted together."""

EXPECTED = (0.3, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
"""How many of them are right, before any were counted."""

EXPECTED_COUNT = 4.0
"""As much as so many counted guesses weigh these numbers."""

KEPT = 0.96
"""What an earlier guess weighs beside the next one of the same kind: texts change."""

LEAST_GAIN = 1.05
"""Drafting begins where it makes so many times the tokens a second."""

SLOWER = 1.5
"""How many times as long a step of twice as many rows may take, before one was measured."""

LOSS_SHARE = 0.015
"""Drafting may cost this share of the time of an answer; where it has cost more, it waits."""

FIRST_LOSS, MOST_LOSS = 1.0, 8.0
"""Steps that may be lost at the beginning of an answer, and after drafts have gained more than that."""

MOST_RISKED = 4.0
"""A step with drafts may take so many times as long as one without, and longer as far as there is more to lose."""

SURE_GAIN, MOST_ROUNDS = 1.3, 64
"""After so many rounds of drafts that gain less than this, some steps go without, to measure them again."""


class Acceptance:
    """How often guesses were right, by the length of the match that they came from."""

    def __init__(self) -> None:
        self._right = [EXPECTED_COUNT * share for share in EXPECTED]
        self._all = [EXPECTED_COUNT] * len(EXPECTED)

    def counted(self, n_matched: int, was_right: bool) -> None:
        """Records a guess behind a match of n_matched tokens."""
        kind = bisect_right(MATCHES, n_matched) - 1
        self._right[kind] = KEPT * self._right[kind] + was_right
        self._all[kind] = KEPT * self._all[kind] + 1

    def probabilities(self, n_matched: int, n_guessed: int) -> list[float]:
        """Of each guessed token: how likely it is right, if those before it are."""
        kinds = (bisect_right(MATCHES, n_matched + i) - 1 for i in range(n_guessed))
        return [self._right[kind] / self._all[kind] for kind in kinds]


class StepSeconds:
    """How long steps take. A step that was submitted while others ran takes less than one that waited for the token
    before it, so both are kept."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}
        self._n_measured: dict[tuple[int, bool], int] = {}

    def measured(self, width: int, seconds: float, *, is_ahead: bool) -> bool:
        """Records the time from the result before to that of a step; returns whether it was the first of its width,
        which includes its recording where a model is split by layers (`Submitted.is_new`)."""
        key = width, is_ahead
        n = self._n_measured[key] = self._n_measured.get(key, 0) + 1
        if n <= 2 or seconds < self._seconds[key]:
            self._seconds[key] = seconds
        else:
            # now and then a step is held up by other programs
            self._seconds[key] += 0.2 * (min(seconds, 2 * self._seconds[key]) - self._seconds[key])
        return n == 1

    def of(self, width: int, *, is_ahead: bool) -> float | None:
        """Seconds of a step of that width; where it was not measured more than once, a guess for a step that waits, if
        anything was measured, and None for one that runs ahead."""
        key = width, is_ahead
        if self._n_measured.get(key, 0) > 1:
            return self._seconds[key]
        narrower = [(each, seconds) for (each, _), seconds in self._seconds.items() if each <= width]
        if is_ahead or not narrower:
            return None
        return min(seconds * math.pow(SLOWER, math.log2(max(width / each, 2))) for each, seconds in narrower)


class DraftLengths:
    """Decides how many tokens are drafted. widths: rows of the steps that there are.

    Without drafts, steps run ahead: they are submitted before the tokens before them were read. With drafts they
    cannot, and what that costs is in the measured seconds.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.acceptance = Acceptance()
        self.seconds = StepSeconds()
        self._widths = sorted(widths)
        self._room_s = 0.0  # how much more may be lost
        self._is_first = True
        self._n_rounds = 0  # since the last step without drafts

    def begin(self) -> None:
        """An answer begins; what earlier ones have gained does not count for it."""
        self._is_first = True

    def measured(self, n_rows: int, n_drafted: int, n_tokens: int, seconds: float, *, is_ahead: bool) -> None:
        """Records a step of n_rows, of which n_drafted were drafts, that has made n_tokens in the seconds since the
        result before. is_ahead: whether it was submitted before that result was read."""
        is_first = self.seconds.measured(self._width(n_rows), seconds, is_ahead=is_ahead)
        n_plain = n_rows - n_drafted
        plain_s = self.seconds.of(self._width(n_plain), is_ahead=True)
        if plain_s is None or (n_drafted and is_first):
            return
        if self._is_first:
            self._is_first, self._room_s = False, min(self._room_s, FIRST_LOSS * plain_s) or FIRST_LOSS * plain_s
        if n_drafted or not is_ahead:
            self._room_s += plain_s * n_tokens / n_plain - seconds
            self._room_s = min(self._room_s, MOST_LOSS * plain_s)
            self._n_rounds += 1
        else:
            self._n_rounds = 0
        if self._room_s < FIRST_LOSS * plain_s:
            self._room_s += LOSS_SHARE * seconds

    def timed(self, n_rows: int, seconds: float) -> None:
        """Records the seconds of a step of sequences that wait for each token in any case."""
        self.seconds.measured(self._width(n_rows), seconds, is_ahead=False)

    def best(self, probabilities: Sequence[float], n_rows: int = 1, *, waits: bool = False) -> int:
        """How many of the guessed tokens to draft in a step of n_rows rows without them, each of which makes a token.

        probabilities: of each guess, that it is right if those before it are. Beside other sequences, a sequence with
        drafts misses every second step, because those go on while it waits for its token. waits: it waits in any case.
        """
        plain_s = self.seconds.of(self._width(n_rows), is_ahead=not waits)
        if plain_s is None or (self._room_s <= 0 and not waits):
            return 0
        best, best_gain, likely, n_accepted = 0, LEAST_GAIN, 1.0, 0.0
        for n, probability in enumerate(probabilities, 1):
            likely *= probability
            n_accepted += likely
            is_end = n == len(probabilities) or n_rows + n in self._widths
            step_s = self.seconds.of(self._width(n_rows + n), is_ahead=False) if is_end else None
            if step_s is None or (step_s > self._room_s + MOST_RISKED * plain_s and not waits):
                continue
            shares_turns = n_rows > 1 and not waits
            n_expected = n_rows - 1 + (1 + n_accepted) / (2 if shares_turns else 1)
            gain = n_expected / n_rows * plain_s / step_s
            if gain > best_gain:
                best, best_gain = n, gain
        return 0 if self._n_rounds >= MOST_ROUNDS and best_gain < SURE_GAIN and not waits else best

    def _width(self, n_rows: int) -> int:
        return next(width for width in self._widths if width >= n_rows)
