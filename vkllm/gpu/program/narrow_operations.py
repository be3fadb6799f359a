"""Products of steps of 2 to MAX_NARROW rows by cooperative matrices (shaders/matmul_narrow.comp)."""

from __future__ import annotations

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS
from vkllm.gpu.program.matmul_tiles import narrow_row_tiles, narrow_splits, narrow_steps_ahead, narrow_x_ahead
from vkllm.gpu.program.stored_forms import FRAGMENTS, StoredForms
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.ops import Activate, Matvec, Op


class NarrowOperations:
    """Makes dispatches. step: the step buffer on the device."""

    def __init__(self, device: Device, buffers: ModelBuffers, step: Buffer, forms: StoredForms) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._forms = forms

    def suits_gates(self, matvec: Op, activate: Op, width: int) -> bool:
        """Whether matmul_narrow computes gate and up together with their activation."""
        if not (isinstance(matvec, Matvec) and isinstance(activate, Activate)):
            return False
        planes, *others = self._buffers.matrices[matvec.weights]
        is_simple = activate.is_gated and activate.up is None and activate.slots == 1 and matvec.add is None
        is_between = activate.input == matvec.output and matvec.factor == 1 and self._stores_fragments(activate, width)
        is_aligned = matvec.width == planes.n_rows == 2 * activate.width and activate.width % BLOCK == 0
        return is_simple and is_between and is_aligned and not others and self._forms.takes_narrow(matvec, width)

    def _stores_fragments(self, activate: Activate, width: int) -> bool:
        return self._forms.of(activate.output, width) & 255 == FRAGMENTS

    def product(
        self, op: Matvec, planes: WeightPlanes, width: int, y_offset: int = 0, activate: Activate | None = None
    ) -> Dispatch:
        """A part of a product, into the columns of its output from y_offset on; with the activation behind it."""
        layout, info, last = self._forms.layout, self._device.info, activate or op
        m, n, k = layout.shape
        x, y = self._buffers.activations[op.input], self._buffers.activations[last.output]
        assert x.q16 is not None
        gates = int(activate is not None)
        add = self._buffers.activations[op.add].values if op.add else y.values
        bias = self._buffers.biases.get(op.weights)
        n_rows = min(planes.n_rows // (1 + gates), last.width - y_offset)
        n_splits = narrow_splits(info, layout, n_rows, gates, weight_format(planes.format).table_words)
        tiles, token_tiles = narrow_row_tiles(n_rows, m, info.n_cores, width, gates), -(-width // n)
        steps_ahead = narrow_steps_ahead(n_splits, is_direct=layout.is_direct)
        x_ahead = narrow_x_ahead(steps_ahead, token_tiles, is_direct=layout.is_direct)
        return self._device.dispatch(
            KERNELS["matmul_narrow"],
            (planes.quants, planes.scales, x.q16, add, y.values, self._step, bias or y.values, y.q16 or y.values),
            constants=(
                *(n_splits * info.subgroup_size, planes.n_columns, n_splits, tiles * (1 + gates), token_tiles),
                *(m, n, k, layout.lanes, int(layout.is_direct), steps_ahead, int(x_ahead)),
                *(int(op.add is not None), int(bias is not None), float_bits(op.factor)),
                *(gates, ACTIVATIONS.index(activate.function if activate else "none"), gates),
            ),
            groups=(-(-n_rows // (tiles * m)), 1),
            push=(n_rows, y_offset, last.width, width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )
