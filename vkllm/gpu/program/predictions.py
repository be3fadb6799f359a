"""The head of a model that predicts further tokens (multi-token prediction): how it reads steps, and how it guesses.

A head is one more layer with a cache of its own. For each token it reads what the model made of the row before; where
a sequence begins, that is zeros. What it made of one token it can read for the next, so guesses follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK, MAX_NARROW
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.step import Part
from vkllm.model.graph import head_of, hidden, prediction
from vkllm.model.layers.prediction import HIDDEN, UNSHIFTED
from vkllm.model.spec import ModelSpec

GUESS_WIDTH = 2
"""Rows of the recordings that guess: the kernels of steps of one row are for the layers of the model only."""


def kept_rows(device: Device, spec: ModelSpec, n_sequences: int) -> Buffer | None:
    """Room for what the model makes of the rows of each sequence's last step, if it has a head for further tokens.

    Raises OutOfDeviceMemory."""
    return device.buffer(n_sequences * MAX_NARROW * spec.d_model) if spec.predictors else None


class Predictions:
    """Makes the dispatches of a model's first head. kept: as `kept_rows` makes it.

    read_blocks: the blocks of its cache whose rows it has all read, so that nothing is left there of another text."""

    def __init__(
        self, spec: ModelSpec, buffers: ModelBuffers, operations: Operations, kept: Buffer | None, local_size: int
    ) -> None:
        assert kept is not None
        self._device = buffers.device
        self._local_size = local_size
        self._spec = spec
        self._predictor = spec.predictors[0]
        self._buffers = buffers
        self._operations = operations
        self._kept = kept
        self.read_blocks: set[int] = set()

    def note(self, parts: Sequence[Part], *, is_read: bool) -> None:
        """A step with these parts is submitted. is_read: the head reads it."""
        has_window = self._predictor.layer.window > 0
        for part in parts:
            first, end = part.position, part.position + len(part.tokens)
            blocks = part.window_blocks if has_window else part.blocks
            if not is_read:
                self.read_blocks.difference_update(blocks[first // KV_BLOCK : -(-end // KV_BLOCK)])
            else:  # what is in the middle of a block stays as it was
                self.read_blocks.update(blocks[-(-first // KV_BLOCK) : -(-end // KV_BLOCK)])

    def reading(self, width: int) -> list[Dispatch]:
        """The head reads the rows of the step that has just run, and keeps them for the next one."""
        shifts = [self._shift(width, is_kept=is_kept) for is_kept in (False, True)]
        return [*self._operations.of(hidden(self._spec), width), *shifts, *self._layer(width)]

    def guess(self, head_width: int, *, goes_on: bool) -> list[Dispatch]:
        """The logits behind one token. goes_on: behind that of the guess before."""
        first = self._copied() if goes_on else self._shift(GUESS_WIDTH, is_kept=False)
        projection = [d for op in head_of(self._spec, self._predictor) for d in self._operations.of(op, head_width)]
        return [first, *self._layer(GUESS_WIDTH), *projection]

    def _layer(self, width: int) -> list[Dispatch]:
        return self._operations.of_all(prediction(self._spec, self._predictor), width)

    def _shift(self, width: int, *, is_kept: bool) -> Dispatch:
        activations, columns = self._buffers.activations, self._spec.d_model
        size = self._local_size
        return self._device.dispatch(
            KERNELS["shift_hidden"],
            (activations[UNSHIFTED].values, self._kept, activations[HIDDEN].values, self._operations.step),
            constants=(size, columns),
            groups=(-(-columns // size), width),
            push=(int(is_kept),),
        )

    def _copied(self) -> Dispatch:
        activations, size = self._buffers.activations, self._local_size
        return self._device.dispatch(
            KERNELS["copy_words"],
            (activations["final"].values, activations[HIDDEN].values),
            constants=(size,),
            groups=(-(-self._spec.d_model // size), 1),
            push=(self._spec.d_model, 0, 0),
        )
