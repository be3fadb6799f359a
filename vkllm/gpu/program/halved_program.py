"""A rank's program whose wide steps run in two halves (`halves.py`): one is computed while the sums over ranks of the
other travel. All ranks have one, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from vkllm.gpu.device.kompute import Recording
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.halves import Halves
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Ready
from vkllm.gpu.program.results import Floats, Kinds
from vkllm.gpu.program.step import N_SLOTS, Part, StepSlots, step_width
from vkllm.model.shards.row_halves import pieces_of

LEAST_WIDTH: Final = 256
"""Steps of fewer rows stay whole: half of one would fill no tile of a product (128 rows), and its sums are short."""


class HalvedProgram(Program):
    """Used as a Program with a share, of a model that has `pieces_of`."""

    def use(self, choices: Tuning) -> None:
        """As Program."""
        super().use(choices)
        assert self.share is not None and not self.states
        exchange, slots = self.share.exchange, [self._slots.more(N_SLOTS) for _ in range(2)]

        def of_half(half: int, n_rows: int) -> Operations:
            rows = self._buffers.of_rows(half * n_rows, n_rows)
            return Operations(self.device, rows, slots[half].on_device, self.tuning, exchange)

        self._half_slots: list[StepSlots] = slots
        self._halves = Halves(pieces_of(self.spec), self.operations, of_half)

    def ready(
        self, parts: Sequence[Part], is_prompt: bool, n_submits: int, is_read: bool, received: Floats | None
    ) -> Ready:
        """As Program."""
        width = step_width(sum(part.n_rows for part in parts), is_prompt=is_prompt)
        if width < LEAST_WIDTH or len(parts) > 1 or parts[0].n_rows <= width // 2:
            return super().ready(parts, is_prompt, n_submits, is_read, received)

        def recordings(kinds: Kinds | None, slot: int) -> list[Recording]:
            begin = self._recordings.of(
                (slot, "halves"), lambda: [self._begin_step(slot, each) for each in (self._slots, *self._half_slots)]
            )
            layers = self._recordings.of((width, n_submits, "halves"), lambda: self._halves.layers(width), n_submits)
            return [*begin, *layers, *self._recorded_end(kinds)]

        first_exchange = self._n_exchanges
        self._n_exchanges += self._n_sums  # each sum is one of either half
        ready = self._ready(parts, recordings)
        self._write(ready.place.slot, self._in_window(parts[0]), width // 2, first_exchange)
        return ready

    def _write(self, slot: int, part: Part, n: int, first_exchange: int) -> None:
        """Fills a slot of both halves, the first of which has n rows, after the step that had it before has ended."""
        assert part.n_padding == 0
        first = replace(part, tokens=part.tokens[:n], results=())
        second = replace(part, tokens=part.tokens[n:], position=part.position + n, results=())
        for slots, half in zip(self._half_slots, (first, second), strict=True):
            slots.write(slot, [half], first_exchange)
