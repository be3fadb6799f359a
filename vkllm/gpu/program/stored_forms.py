"""What operations store of an activation beside float32: q16 blocks, which matvec reads, or float16 for matmul and,
in another order, for matmul_narrow.

matmul rounds activations to float16 in any case, so its results are the same bit for bit, and it reads half as much.
Knows which kernels products take, and makes no dispatches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.fragments import MatrixLayout, layout_of
from vkllm.gpu.program.kernels import MAX_NARROW
from vkllm.gpu.program.matmul_tiles import suits_matmul
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.expert_ops import ExpertMatvec
from vkllm.model.graph import loaded
from vkllm.model.ops import Activate, Attention, Matvec, Norm, Op
from vkllm.model.state_ops import Convolution, GatedNorm

NOTHING, Q16, HALVES, FRAGMENTS = 0, 1, 2, 3
"""As the constant `quantizes` of kernels says it (shaders/lib/store_form.glsl)."""


class StoredForms:
    """The form of each activation of a model, by name."""

    def __init__(self, buffers: ModelBuffers, tuning: Tuning) -> None:
        self._tuning = tuning
        self._device = buffers.device
        self._activations = buffers.activations
        ops = loaded(buffers.spec)
        readers: dict[str, set[int]] = defaultdict(set)
        elsewhere: set[str] = set()  # read by products of narrow steps that are not matmul_narrow's
        for op in ops:
            if isinstance(op, Matvec | ExpertMatvec):
                readers[op.input] |= {self._read(op, planes) for planes in buffers.matrices[op.weights]}
            if isinstance(op, Matvec | ExpertMatvec) and not self._suits_narrow(op, buffers.matrices[op.weights]):
                elsewhere.add(op.input)
        others = {op.output for op in ops if not _may_store_halves(op)}
        self._in_halves = {name for name, forms in readers.items() if HALVES in forms and Q16 not in forms} - others
        self._in_fragments = readers.keys() - others - elsewhere

    def _read(self, op: Matvec | ExpertMatvec, planes: WeightPlanes) -> int:
        """The form of its input that a product reads in wide steps; NOTHING where it reads float32."""
        if self.takes_matmul(op, planes, MAX_NARROW + 1):
            return HALVES if isinstance(op, Matvec) or op.input_stride % 8 == 0 else Q16
        return Q16 if weight_format(planes.format).is_quantized else NOTHING

    def takes_matmul(self, op: Matvec | ExpertMatvec, planes: WeightPlanes, width: int) -> bool:
        """Whether steps of `width` rows multiply by cooperative matrices."""
        if width == 1 or not self._tuning.has_matmul or not suits_matmul(planes):
            return False
        if isinstance(op, ExpertMatvec):
            # what a slot's padding columns read is multiplied by zero, but must be there
            reads_own = op.is_input_shared or op.input_stride >= op.n_columns
            return reads_own and all(n_rows % 16 == 0 for n_rows in op.padded_rows)
        # logits have too few rows for a tile of matmul; a router's would take other experts if rounded to float16
        return op.output not in ("logits", "router")

    @cached_property
    def layout(self) -> MatrixLayout:
        """The matrices of matmul_narrow. Raises DeviceError."""
        return layout_of(self._device)

    def _suits_narrow(self, op: Matvec | ExpertMatvec, matrices: Sequence[WeightPlanes]) -> bool:
        """Whether matmul_narrow can compute a product. A router would take other experts if its logits were rounded."""
        info = self._device.info
        shape = info.narrow_shape or info.matrix_shape
        if shape is None or not isinstance(op, Matvec) or op.output == "router" or op.width % 4:
            return False
        most_rows = shape[0] * info.max_groups[0]  # of workgroups with one matrix of rows
        return all(
            planes.n_rows % 4 == 0 and planes.n_rows <= most_rows and planes.format != "F32" for planes in matrices
        )

    def takes_narrow(self, op: Matvec, width: int) -> bool:
        """Whether steps of `width` rows compute a product by matmul_narrow; then all products of its input."""
        return self._tuning.has_matmul and 1 < width <= MAX_NARROW and op.input in self._in_fragments

    def of(self, name: str, width: int) -> int:
        """The form that steps of `width` rows store; NOTHING where there is no room for another."""
        if self._activations[name].q16 is None:
            return NOTHING
        if self._tuning.has_matmul and 1 < width <= MAX_NARROW and name in self._in_fragments:
            return FRAGMENTS | self.layout.packed << 8
        return HALVES if width > MAX_NARROW and name in self._in_halves else Q16


def _may_store_halves(op: Op) -> bool:
    match op:
        case Norm():
            return op.add is None and op.output_column == 0 and op.group % BLOCK == 0
        case Attention():
            return op.value_dim % BLOCK == 0
    return isinstance(op, Activate | Convolution | GatedNorm)
