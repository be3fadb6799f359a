"""Times the choices of `gpu/tuning/space.py` on a loaded model, and keeps the best for its device and kind.

Decoding counts by the mean of a step's time in an empty and in a deep cache, prefill by the mean of a token's time in a
narrow and in a wide step. Choices that give other logits than the table's are ruled out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt

from vkllm.errors import DeviceError, InvalidParameter
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, LOGITS, N_SLOTS, Part, Result
from vkllm.gpu.tuning.cache import KeptTuning, TokenSpeeds, TuningKey, keep, tuning_key
from vkllm.gpu.tuning.search import MIN_GAIN, Trial, search
from vkllm.gpu.tuning.space import DECODE_FIELDS, PREFILL_FIELDS, fields_to_try, is_possible, model_kind

DEEP = 4096
"""Tokens in the deep cache, if the context is long enough."""

SPARE = 2 * KV_BLOCK
"""Tokens behind those of the deep cache, which timed steps write."""

TRIED_WIDTHS = (8, 64, MAX_ROWS)
"""Rows of the steps of prompts that are measured."""

WIDE_S = 1.0
"""Longest time of a wide step that is measured; if all take longer, the narrowest is measured."""

MOST_SLOWDOWN = 4
"""A choice whose narrow step takes this many times the table's is not tried in a wide one: long submits reset GPUs."""

STEPS_S = 0.06
"""How long the steps of one measurement take, roughly."""

FEWEST_STEPS, MOST_STEPS = 2, SPARE - 1

REPEATS = 2
"""How often a measurement is repeated, unless steps are slow; the fastest counts."""

MOST_ERROR = 1e-3
"""How far logits may be from the table's, as squared difference relative to squared logits: a thousand times what
another order of rounding causes, a thousandth of what a wrong result causes."""

FILL_SHARE, DECODE_SHARE, END_SHARE = 0.15, 0.75, 0.9
"""Shares of the budget that may have passed when the cache is full, when decoding is done, and when the search ends."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TuningReport:
    """What tuning did. table, choice: before and after it, with their speeds; path: where the choice is kept.

    is_kept: False where the file could not be written. seconds: how long it took.

    >>> report = llm.tune(budget_s=10)
    >>> len(report.trials), report.choice == report.table
    (3, False)
    """

    device: str
    key: TuningKey
    table: Tuning
    choice: Tuning
    before: TokenSpeeds
    after: TokenSpeeds
    trials: tuple[Trial, ...]
    seconds: float
    is_kept: bool


def tune(
    program: Program,
    budget_s: float,
    *,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> TuningReport:
    """Finds the best choices for a program, applies and stores them; overwrites its key/value cache.

    budget_s: how long it may take, roughly. Raises InvalidParameter, nothing kept, if it is interrupted; DeviceError.
    """
    info, used = program.device.info, program.tuning
    kind = model_kind(program.spec, program.tensors)
    table = tuning(info)
    start_s = time.perf_counter()
    trials: list[Trial] = []

    def note(trial: Trial) -> None:
        trials.append(trial)
        on_trial(trial)

    def is_over(share: float) -> Callable[[], bool]:
        return lambda: is_interrupted() or time.perf_counter() - start_s > share * budget_s

    timer = _Timer(program)
    timer.prepare(table, is_over(FILL_SHARE))
    choice = table
    for fields, measure, share in (
        (DECODE_FIELDS, timer.decode_s, DECODE_SHARE),
        (PREFILL_FIELDS, timer.prefill_s, END_SHARE),
    ):
        choice = search(
            choice,
            fields_to_try(choice, fields),
            measure,
            lambda choices: is_possible(choices, info, kind),
            is_over(share),
            note,
        )
    if is_interrupted():
        program.use(used)
        raise InvalidParameter("the tuning was interrupted by another request, and kept nothing; repeat it when idle")
    # in turn, since the clock varies
    measured = [timer.speeds(choices) for choices in (table, choice, table, choice)]
    before, after = measured[0].best(measured[2]), measured[1].best(measured[3])
    choice, after = _proven(table, before, choice, after)
    program.use(choice)
    key = tuning_key(info, kind)
    try:
        keep(KeptTuning(key, choice, before, after))
        is_kept = True
    except OSError:
        is_kept = False
    seconds = time.perf_counter() - start_s
    return TuningReport(info.name, key, table, choice, before, after, tuple(trials), seconds, is_kept)


def _proven(table: Tuning, before: TokenSpeeds, choice: Tuning, after: TokenSpeeds) -> tuple[Tuning, TokenSpeeds]:
    """The choices; those for decode or for prefill are the table's again if they are no faster in the end."""
    if choice.decode == table.decode or not _is_faster(after.decode, before.decode):
        choice, after = replace(choice, decode=table.decode), replace(after, decode=before.decode)
    prefill_of_table = replace(table, decode=choice.decode)
    if choice == prefill_of_table or not _is_faster(after.prefill, before.prefill):
        choice, after = prefill_of_table, replace(after, prefill=before.prefill)
    return choice, after


def _is_faster(after: Mapping[int, float], before: Mapping[int, float]) -> bool:
    return fmean(1 / after[n] for n in before) < fmean(1 / before[n] for n in before) * (1 - MIN_GAIN)


class _Timer:
    """Times steps of a program with any choices. The first blocks of its cache hold the deep context, the last ones
    take what timed steps write."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._n_ctx = program.n_blocks * KV_BLOCK
        self._depths = [0]
        self._widths: list[int] = []
        self._narrow_s = 0.0
        self._n_steps, self._n_repeats = FEWEST_STEPS, REPEATS
        self._expected: dict[tuple[str, int], Logits] = {}
        self._seen: set[tuple[str, Tuning]] = set()
        self._taken: Tuning | None = None

    def prepare(self, table: Tuning, is_over: Callable[[], bool]) -> None:
        """Fills the cache, and learns the table's logits and how long steps take."""
        self._take(table)
        self._widths = self._affordable_widths()
        deepest = (min(self._n_ctx - SPARE, DEEP)) // KV_BLOCK * KV_BLOCK
        depth, width = 0, max(self._widths)
        while depth < deepest and not is_over():
            n_rows = min(width, deepest - depth)
            self._run_rows(depth, n_rows)
            depth += n_rows
        if depth := depth // KV_BLOCK * KV_BLOCK:
            self._depths.append(depth)
        self._expected = {("decode", n): self._decode_logits(n) for n in self._depths}
        self._expected |= {("prefill", n): self._prefill_logits(n) for n in self._widths}
        n_steps = round(STEPS_S / self._steps_s(0))
        self._narrow_s = self._rows_s(self._widths[0])
        self._n_steps = min(max(n_steps, FEWEST_STEPS), MOST_STEPS)
        self._n_repeats = REPEATS if n_steps >= FEWEST_STEPS else 1

    def decode_s(self, choices: Tuning) -> float:
        """Seconds of a step of one token. Raises DeviceError."""
        self._take(choices)
        self._check("decode", choices, {n: self._decode_logits for n in self._depths})
        return fmean(self._step_s(depth) for depth in self._depths)

    def prefill_s(self, choices: Tuning) -> float:
        """Seconds of a step, for a token of it. Raises DeviceError."""
        self._take(choices)
        if (narrow_s := self._rows_s(self._widths[0])) > MOST_SLOWDOWN * self._narrow_s:
            raise DeviceError(f"{1000 * narrow_s:.0f} ms for {self._widths[0]} rows, too slow to be tried with more")
        self._check("prefill", choices, {n: self._prefill_logits for n in self._widths})
        return fmean(self._rows_s(width) / width for width in self._widths)

    def speeds(self, choices: Tuning) -> TokenSpeeds:
        """Tokens a second at all depths and widths."""
        self._take(choices)
        return TokenSpeeds(
            {depth: 1 / self._step_s(depth) for depth in self._depths},
            {width: width / self._rows_s(width) for width in self._widths},
        )

    def _take(self, choices: Tuning) -> None:
        """Has the program use the choices, with the recordings of timed steps made."""
        if choices == self._taken:
            return
        self._program.use(choices)
        table = self._table(1, is_scratch=True)
        for step in [self._program.submit([Part(0, [0], 0, table, results=LIKELIEST)]) for _ in range(N_SLOTS)]:
            self._program.wait(step)
        self._taken = choices

    def _check(self, kind: str, choices: Tuning, logits_at: Mapping[int, Callable[[int], Logits]]) -> None:
        """Compares logits with the table's, once for each choice. Raises DeviceError."""
        if (kind, choices) in self._seen:
            return
        for n, logits in logits_at.items():
            wanted = self._expected[kind, n]
            error = float(np.mean(np.square(logits(n) - wanted)) / np.mean(np.square(wanted)))
            if not error <= MOST_ERROR:  # NaN is refused too
                raise DeviceError(f"{self._program.device.info.name}: its logits are wrong (error {error:.1e})")
        self._seen.add((kind, choices))

    def _affordable_widths(self) -> list[int]:
        """A narrow and a wide step, as far as they take at most WIDE_S, or else the narrowest of all."""
        widths, best = [], min(TRIED_WIDTHS[0], self._n_ctx - 1)
        per_row_s = self._rows_s(best) / best
        for width in TRIED_WIDTHS[1:]:
            # a wider step takes less time a row
            if width > self._n_ctx or per_row_s * width / 2 > WIDE_S or (seconds := self._rows_s(width)) > WIDE_S:
                break
            widths.append(width)
            per_row_s = seconds / width
        return widths or [best]

    def _table(self, n_tokens: int, *, is_scratch: bool) -> list[int]:
        """Blocks for n tokens: the first of the cache in order, or its last."""
        n_blocks = -(-n_tokens // KV_BLOCK)
        all_blocks = range(self._program.n_blocks)
        return list(all_blocks[-n_blocks:] if is_scratch else all_blocks[:n_blocks])

    def _part(self, first: int, n_rows: int, results: Sequence[Result] = (), *, is_scratch: bool = False) -> Part:
        """Rows of a text that is always the same."""
        n_vocab, table = self._program.spec.n_vocab, self._table(first + n_rows, is_scratch=is_scratch)
        tokens = [(7919 * position + 11) % n_vocab for position in range(first, first + n_rows)]
        return Part(0, tokens, first, table, results=results)

    def _run_rows(self, first: int, n_rows: int) -> float:
        """Seconds of a step of prompt tokens, without those of recording it."""
        step = self._program.submit([self._part(first, n_rows)], is_prompt=True)
        self._program.wait(step)
        return time.perf_counter() - step.submitted_s

    def _rows_s(self, width: int) -> float:
        return min(self._run_rows(0, width) for _ in range(self._n_repeats))

    def _step_s(self, depth: int) -> float:
        """Seconds of a step of one token after `depth` others."""
        return min(self._steps_s(depth) for _ in range(self._n_repeats))

    def _steps_s(self, depth: int) -> float:
        n_steps = min(self._n_steps, self._n_ctx - depth - 1)
        table = self._table(depth + 1 + n_steps, is_scratch=depth == 0)
        step = self._program.submit([Part(0, [0], depth, table, results=LIKELIEST)])
        self._program.wait(step)
        start_s = time.perf_counter()
        for i in range(n_steps):
            step = self._program.submit([Part(0, [None], depth + 1 + i, table, results=LIKELIEST)])
        self._program.wait(step)
        return (time.perf_counter() - start_s) / n_steps

    def _decode_logits(self, depth: int) -> Logits:
        self._program.forget_states()
        part = self._part(depth, 1, LOGITS, is_scratch=depth == 0)
        return self._program.logits(self._program.submit([part]))

    def _prefill_logits(self, width: int) -> Logits:
        return self._program.logits(self._program.submit([self._part(0, width, LOGITS)], is_prompt=True))
