"""A program for models that read in both directions: texts of any length, up to the context.

A text of more rows than a step has is several steps, which go through the layers together (`model/segments.py`): all
of them run a segment of the graph before any of them runs the next. What a step's rows leave for the next segment is
copied to a buffer of its own meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from vkllm.gpu.device.kompute import Buffer, Dispatch
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.results import Floats, Place
from vkllm.gpu.program.step import N_SLOTS, Part, step_width
from vkllm.model.graph import widths
from vkllm.model.memory.needs import n_text_steps
from vkllm.model.segments import carried, segments

COPY_SIZE, COPY_GROUPS = 64, 1024

LEAST_ROWS = 2 * MAX_NARROW
"""Rows of a recorded step, at least: narrow ones store activations in another order."""


class WholeTexts(Program):
    """Used as a Program, which it is for texts of up to MAX_ROWS tokens. longest_text: tokens of one, at most."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Arguments and errors as of Program."""
        super().__init__(*args, **fields)
        n_steps = n_text_steps(self.spec, self.plan.n_ctx, MAX_ROWS)
        self.longest_text = self.plan.n_ctx if n_steps else MAX_ROWS
        self._columns = widths(self.spec)
        self._between = {
            name: [self.device.buffer(n_steps * n_words) for _, n_words in self._used(name, MAX_ROWS)]
            for name in (carried(self.spec) if n_steps else ())
        }

    def submit(
        self,
        parts: Sequence[Part],
        *,
        is_prompt: bool = False,
        n_submits: int = 1,
        is_read: bool = False,
        received: Floats | None = None,
    ) -> Submitted:
        """As `Program.submit`; or one part of more than MAX_ROWS rows, a whole text without results, which returns when
        its last layers run."""
        if len(parts[0].tokens) <= MAX_ROWS:
            return super().submit(parts, is_prompt=is_prompt, n_submits=n_submits, is_read=is_read, received=received)
        (part,) = parts
        assert not part.results and part.position == 0 and len(part.tokens) <= (self.longest_text or 0)
        self.settle()  # a text before it may still read the slots
        n, submitted_s = len(part.tokens), time.perf_counter()
        widths = [self._write(part, first) for first in range(0, n, MAX_ROWS)]
        before = 0
        for number in range(len(segments(self.spec))):
            for step, width in enumerate(widths):
                make = partial(self._segment, number, step, width)
                (recording,) = self._recordings.of(("text", number, step, width), make)
                ticket = self._slot_tickets[0] = self.device.submit(recording)
            self.device.wait(before)  # no wait should take much longer than a layer
            before = ticket
        return Submitted(ticket, Place(), submitted_s, n)

    def recall(self, first_row: int) -> int:
        """Makes one of the steps of the text that was submitted last the last step, as far as `final_norm_of` goes.

        first_row: of the text, a multiple of MAX_ROWS.
        """
        step = first_row // MAX_ROWS
        (recording,) = self._recordings.of(
            ("recalled", step), lambda: [self._begin_step(N_SLOTS + step), *self._copies(["x"], step, MAX_ROWS)]
        )
        return self.device.submit(recording)

    def _write(self, part: Part, first: int) -> int:
        """Writes a step of a text, whose rows begin at row `first` of it; returns the width that it is recorded for."""
        tokens, slot = part.tokens[first : first + MAX_ROWS], N_SLOTS + first // MAX_ROWS
        windows = part.window_blocks or (self.blocks_in_turn(len(part.blocks)) if self.window else ())
        step = Part(part.sequence, tokens, first, part.blocks, windows)
        self._slots.write(slot, [step], n_text=len(part.tokens))
        return step_width(max(len(tokens), LEAST_ROWS), is_prompt=True)

    def _segment(self, number: int, step: int, width: int) -> list[Dispatch]:
        """A segment of the graph for one of the steps of a text."""
        segment, *others = segments(self.spec)[number:]
        after = others[0].carried if others else ("x",)
        return [
            self._begin_step(N_SLOTS + step),
            *self._copies(segment.carried, step, width),
            *self.operations.of_all(segment.ops, width),
            *self._copies(after, step, width, is_kept=True),
        ]

    def _copies(self, names: Sequence[str], step: int, width: int, *, is_kept: bool = False) -> list[Dispatch]:
        """Copies activations of a step from where they are kept, or, with is_kept, there."""
        copies: list[Dispatch] = []
        for name in names:
            for kept, (used, n_words), (_, most) in zip(
                self._between[name], self._used(name, width), self._used(name, MAX_ROWS), strict=True
            ):
                first = step * most
                copies.append(
                    self.device.dispatch(
                        KERNELS["copy_words"],
                        (used, kept) if is_kept else (kept, used),
                        constants=(COPY_SIZE,),
                        groups=(min(-(-n_words // COPY_SIZE), COPY_GROUPS), 1),
                        push=(n_words, first, 0) if is_kept else (n_words, 0, first),
                        is_independent=bool(copies),
                    )
                )
        return copies

    def _used(self, name: str, width: int) -> list[tuple[Buffer, int]]:
        """The buffers of an activation, and how many words a step of so many rows uses of them."""
        activation, columns = self._buffers.activations[name], self._columns[name]
        used = [(activation.values, width * columns)]
        if activation.q16 is not None and activation.scales is not None:
            used += [(activation.q16, width * columns // 2), (activation.scales, width * columns // 16)]
        return used
