"""The step: what changes from one submit to the next, in the layout of shaders/lib/step.glsl.

A few slots lie in host memory, one for each submit in flight; the kernel `begin_step` copies a slot to the device.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.kernels import MAX_NARROW, MAX_ROWS
from vkllm.model.memory.kernel_sizes import N_SLOTS as N_SLOTS

Words = npt.NDArray[np.uint32]

HEADER_WORDS = 8

PARTS_WORD: Final = HEADER_WORDS + 4 * MAX_ROWS
RESULTS_WORD: Final = PARTS_WORD + 4 * MAX_NARROW
TABLE_WORD: Final = RESULTS_WORD + 8 * MAX_NARROW
"""Where the parts, the results and the table of blocks begin in a slot."""

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 256, MAX_ROWS)
"""Numbers of rows that steps are recorded for; a step runs in the smallest that holds it."""

TO_HOST, IS_MASKED, IS_GREEDY, IS_LAST = 1, 2, 4, 8
"""Flags of results; `RESULT_` in shaders/lib/step.glsl."""

CHOSEN_TOKEN = 1 << 31
"""In the last word of a row whose token the last step chose, and whose first word is its sequence."""

KEEP_ALL = 0xFFFFFFFF
"""The `top_p` of a draw that keeps all candidates."""


@dataclass(frozen=True)
class Draw:
    """How a step draws its token, in the numbers that `pick` in engine/sampler.py explains.

    top_k: candidates. top_p: share of the weights that is kept, in units of 2^-32. min_p: least weight. slope: the
    temperature, as a float32. number: 32 random bits, the row's own.
    """

    top_k: int
    top_p: int
    min_p: int
    slope: float
    number: int


@dataclass(frozen=True)
class Result:
    """What to make of a row of a step.

    draw: how to draw a token from its logits on the GPU; None takes the likeliest. mask: the tokens that may be chosen
    there, token t as bit t % 32 of word t // 32; None is all. wants_logits: the logits come to the host, and nothing is
    chosen.
    """

    draw: Draw | None = None
    mask: Words | None = None
    wants_logits: bool = False

    @property
    def flags(self) -> int:
        """As the kernels read them."""
        is_greedy = self.draw is None and not self.wants_logits
        return TO_HOST * self.wants_logits | IS_MASKED * (self.mask is not None) | IS_GREEDY * is_greedy


LIKELIEST: Final = (Result(),)
"""The results of a part whose last row chooses the likeliest token."""

LOGITS: Final = (Result(wants_logits=True),)
"""The results of a part whose last row's logits come to the host."""


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of one sequence in a step.

    sequence: below Program.n_sequences, a sequence that no other part of the step has. tokens: ids; None, for the first
    row only, takes the token that the last step with a result of this sequence chose. position: of the first row.
    blocks: block p // 32 holds position p in the caches of layers that see the whole context. window_blocks: the same
    for layers with a window, as many; blocks behind the window may be any. state_slot: where the states of layers
    before the first row lie, which must not be stored there too; None: they are zeros. stored: the slots that the
    states behind rows of the part are stored in, by row; in a wide step, only behind the last row and behind multiples
    of STATE_ROWS. results: of the last rows. row_before: of the sequence's last step, the row that the first row
    follows; 0 for the last row of a wide step, and None where there is none. n_padding: rows behind its own that nobody
    reads, so that the next part of a wide step begins where it may (`Operations.rows_apart`); blocks has room for them.
    """

    sequence: int
    tokens: Sequence[int | None]
    position: int
    blocks: Sequence[int]
    window_blocks: Sequence[int] = ()
    state_slot: int | None = None
    stored: Mapping[int, int] = field(default_factory=dict)
    results: Sequence[Result] = ()
    row_before: int | None = None
    n_padding: int = 0

    @property
    def n_rows(self) -> int:
        """Its rows, with those that nobody reads."""
        return len(self.tokens) + self.n_padding


class StepSlots:
    """n_slots steps in host memory. n_table: most cache blocks that all parts of a step can name together. has_windows:
    each with a block for layers with a window."""

    def __init__(self, device: Device, n_slots: int, n_table: int, *, has_windows: bool = False) -> None:
        self._entry_words = 1 + has_windows
        self._n_table = n_table
        self.slot_words = -(-(TABLE_WORD + self._entry_words * n_table) // 4) * 4
        self.buffer: Buffer = device.buffer(n_slots * self.slot_words, is_host=True)
        self.on_device: Buffer = device.buffer(self.slot_words)

    def write(self, slot: int, parts: Sequence[Part], first_exchange: int = 0, n_text: int = 0) -> None:
        """Fills a slot with up to MAX_ROWS rows, of several sequences with results up to MAX_NARROW.

        The i-th result that wants logits gets place i of those of the slot. first_exchange: how many exchanges all
        steps before had (shaders/lib/exchange.glsl). n_text: tokens of the text that the rows are a part of, where its
        steps go through the layers together (shaders/lib/seen.glsl)."""
        assert self.buffer.words is not None
        words = self.buffer.words[slot * self.slot_words : (slot + 1) * self.slot_words]
        # arrays are filled faster than lists become arrays
        rows, heads, results, table, window_table = (array("I") for _ in range(5))
        n_rows = n_results = n_read = 0
        for number, part in enumerate(parts):
            n = len(part.tokens)
            assert n > 0 and len(part.results) <= n and None not in part.tokens[1:]
            before = _slot_word(part.row_before) | part.sequence << 16
            heads.extend((n_rows, n, _slot_word(part.state_slot), before))
            for i, token in enumerate(part.tokens):
                last = _slot_word(part.stored.get(i)) | number << 16 | CHOSEN_TOKEN * (token is None)
                rows.extend((part.sequence if token is None else token, part.position + i, len(table), last))
            end = part.position + n
            for position in range(end, end + part.n_padding):
                rows.extend((0, position, len(table), number << 16))
            n_rows += n
            for row, result in enumerate(part.results, n_rows - len(part.results)):
                flags = result.flags | IS_LAST * (row == n_rows - 1)
                results.extend((row, part.sequence, flags, *_draw_words(result, n_read)))
                n_read += result.wants_logits
            n_rows += part.n_padding
            n_results += len(part.results)
            table.extend(part.blocks)
            if self._entry_words > 1:
                assert len(part.window_blocks) == len(part.blocks)
                window_table.extend(part.window_blocks)
        assert 0 < n_rows <= MAX_ROWS and len(parts) <= MAX_NARROW >= n_results and len(table) <= self._n_table
        assert len(parts) == 1 or n_rows <= MAX_NARROW or n_results == 0
        n_table = self._entry_words * len(table)
        words[:HEADER_WORDS] = (n_rows, n_table, len(parts), n_results, slot, first_exchange % 2**32, n_text, 0)
        for first_word, fours in ((HEADER_WORDS, rows), (PARTS_WORD, heads), (RESULTS_WORD, results)):
            words[first_word : first_word + len(fours)] = np.asarray(fours)
        entries = words[TABLE_WORD : TABLE_WORD + n_table]
        entries[:: self._entry_words] = np.asarray(table)
        if self._entry_words > 1:
            entries[1::2] = np.asarray(window_table)


def _slot_word(slot: int | None) -> int:
    """A slot of states, or a row, plus 1, or 0 for none."""
    return 0 if slot is None else slot + 1


def _draw_words(result: Result, place: int) -> tuple[int, int, int, int, int]:
    """The last words of a result. place: of its logits on the host."""
    if (draw := result.draw) is None:
        return 0, 0, 0, 0, place
    return draw.top_k, draw.top_p, draw.min_p, float_bits(draw.slope), draw.number


def step_width(n_rows: int, *, is_prompt: bool) -> int:
    """The width of WIDTHS in which a step of n_rows runs."""
    # decode's own kernels may round differently, so prompts never use them
    least = max(n_rows, WIDTHS[1]) if is_prompt else n_rows
    return next(width for width in WIDTHS if width >= least)
