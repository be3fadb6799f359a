"""Operations of layers with a state as dispatches.

A layer has slots (`model/memory/states.py`); a step reads the states of each of its sequences from one and stores them
in others. Narrow steps run token by token, the sequences side by side.
"""

from __future__ import annotations

import math

from vkllm.formats.quants import BLOCK
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW
from vkllm.gpu.program.stored_forms import StoredForms
from vkllm.model.graph import loaded
from vkllm.model.memory.states import slot_words
from vkllm.model.mixers import DeltaNet
from vkllm.model.state_ops import Convolution, DeltaNetStep, GatedNorm, GatedSquares, Mamba2Step

MOST_SPAN = 1024
"""Most columns of a workgroup of gated_norm that adds nothing up."""

MOST_LANES = 8
"""Most invocations that share a column of a state."""

CHUNK_SIZE, CHUNK_ROWS, CHUNK_COLUMNS = 128, 32, 32
"""Invocations, tokens and columns of a state that a workgroup of delta_net_chunks takes."""

StateOp = Convolution | DeltaNetStep | Mamba2Step | GatedNorm | GatedSquares


class StateOperations:
    """Makes dispatches. step: the step buffer on the device."""

    def __init__(self, device: Device, buffers: ModelBuffers, step: Buffer, tuning: Tuning, forms: StoredForms) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._forms = forms
        self._local_size = tuning.local_size
        self._has_matmul = tuning.has_matmul
        self._row_widths = {(op.layer, op.output): op.width for op in loaded(buffers.spec)}

    def of(self, op: StateOp, width: int) -> Dispatch:
        """The dispatch of an operation for steps of `width` rows."""
        match op:
            case Convolution():
                return self._convolution(op, width)
            case DeltaNetStep():
                return self._delta_net(op, width)
            case Mamba2Step():
                return self._mamba2(op, width)
            case GatedNorm():
                return self._gated_norm(op, width)
            case GatedSquares():
                return self._gated_squares(op, width)

    def _convolution(self, op: Convolution, width: int) -> Dispatch:
        buffers, y = self._buffers, self._buffers.activations[op.output]
        x, weight = buffers.activations[op.input].values, buffers.vectors[op.weight]
        return self._device.dispatch(
            KERNELS["convolution"],
            (
                *(x, weight, buffers.vectors[op.bias] if op.bias else weight, buffers.states[op.layer]),
                *(y.values, y.q16 or y.values, y.scales or y.values, self._step),
            ),
            constants=(
                *(self._local_size, op.width, self._row_widths[op.layer, op.input], op.n_kernel),
                *(int(op.function == "silu"), int(op.is_gated), int(op.bias is not None)),
                *(self._slot(op)[1], self._forms.of(op.output, width)),
            ),
            groups=(-(-op.width // 4 // self._local_size), width),
            push=(op.column, 0),
        )

    def _delta_net(self, op: DeltaNetStep, width: int) -> Dispatch:
        """Of a wide step in chunks by matrices where the device has them, or else token by token."""
        buffers, net = self._buffers, op.net
        chunks = chunk_constants(self._device.info, net) if self._has_matmul and width > MAX_NARROW else None
        if chunks is None:
            lanes, n_groups = self._teams(net.head_dim, net.v_width)
            kernel, own = KERNELS["delta_net"], {"local_size": self._local_size, "lanes": lanes}
        else:
            kernel, own, n_groups = KERNELS["delta_net_chunks"], chunks, net.v_width // chunks["columns"]
        values = own | {
            "n_k_heads": net.n_k_heads,
            "n_v_heads": net.n_v_heads,
            "head_dim": net.head_dim,
            "is_grouped": int(net.are_heads_grouped),
            "gates_columns": self._row_widths[op.layer, op.gates],
            "beta_column": op.beta_column,
            "alpha_column": op.alpha_column,
            "has_fused_gates": int(net.has_fused_beta_alpha),
            "eps": float_bits(op.eps),
            "slot_words": self._slot(op)[1],
        }
        return self._device.dispatch(
            kernel,
            (
                *(buffers.activations[op.input].values, buffers.activations[op.gates].values),
                *(buffers.vectors[op.dt], buffers.vectors[op.a], buffers.states[op.layer]),
                *(buffers.activations[op.output].values, self._step),
            ),
            constants=[values[name] for name in kernel.constants],
            groups=(n_groups, _most_parts(width)),
            push=(self._slot(op)[0],),
        )

    def _mamba2(self, op: Mamba2Step, width: int) -> Dispatch:
        buffers, mamba = self._buffers, op.mamba
        lanes, n_groups = self._teams(mamba.d_state, mamba.d_inner)
        return self._device.dispatch(
            KERNELS["mamba2"],
            (
                *(buffers.activations[op.input].values, buffers.activations[op.gates].values),
                *(buffers.vectors[name] for name in (op.dt_bias, op.a, op.d)),
                *(buffers.states[op.layer], buffers.activations[op.output].values, self._step),
            ),
            constants=(
                *(self._local_size, lanes, mamba.n_heads, mamba.head_dim, mamba.d_state, mamba.n_groups),
                *(self._row_widths[op.layer, op.gates], op.dt_column, self._slot(op)[1]),
            ),
            groups=(n_groups, _most_parts(width)),
            push=(self._slot(op)[0],),
        )

    def _gated_norm(self, op: GatedNorm, width: int) -> Dispatch:
        buffers, y = self._buffers, self._buffers.activations[op.output]
        x = buffers.activations[op.input].values
        span = norm_span(op.group, op.width) if op.squares is None else part_span(op.width)
        return self._device.dispatch(
            KERNELS["gated_norm"],
            (
                *(x, buffers.activations[op.gates].values, buffers.vectors[op.weight]),
                buffers.activations[op.squares].values if op.squares else x,
                *(y.values, y.q16 or y.values, y.scales or y.values, self._step),
            ),
            constants=(
                *(self._local_size, op.width, op.group, span, self._row_widths[op.layer, op.gates]),
                *(float_bits(op.eps), int(op.is_gated_first), int(op.has_weight_per_group), op.normed_columns),
                self._forms.of(op.output, width),
            ),
            groups=(op.width // span, width),
            push=(op.column,),
        )

    def _gated_squares(self, op: GatedSquares, width: int) -> Dispatch:
        names = (op.input, op.gates, op.output)
        return self._device.dispatch(
            KERNELS["gated_squares"],
            (*(self._buffers.activations[name].values for name in names), self._step),
            constants=(self._local_size, op.n_columns, self._row_widths[op.layer, op.gates]),
            groups=(1, width),
            push=(op.column,),
        )

    def _slot(self, op: StateOp) -> tuple[int, int]:
        """Where the state begins in a slot of the operation's layer, and numbers of the slot."""
        return slot_words(self._buffers.spec.layers[op.layer])

    def _teams(self, size: int, n_columns: int) -> tuple[int, int]:
        """Lanes of a team for columns of `size` numbers of state, and workgroups for n_columns of them."""
        lanes = lanes_of_state(size, 1 if self._device.is_plain else self._device.info.subgroup_size)
        return lanes, -(-n_columns * lanes // self._local_size)


def _most_parts(width: int) -> int:
    """How many sequences a step of a width may be of."""
    return width if width <= MAX_NARROW else 1


def lanes_of_state(size: int, subgroup_size: int) -> int:
    """Neighbouring invocations that share a column of `size` numbers of state, four by four."""
    return math.gcd(size // 4, MOST_LANES, subgroup_size)


def norm_span(group: int, width: int) -> int:
    """Columns of a workgroup of gated_norm: whole groups, and whole blocks of activations where a row has such."""
    return math.lcm(group, 4 if width % BLOCK else BLOCK)


def part_span(width: int) -> int:
    """Columns of a workgroup of gated_norm where those of a group are divided, and its sum of squares is known."""
    return math.gcd(width, MOST_SPAN)


def chunk_constants(info: DeviceInfo, net: DeltaNet) -> dict[str, int] | None:
    """The constants of delta_net_chunks that depend on the device; None if it cannot run this net there."""
    if info.matrix_shape is None or net.head_dim % CHUNK_COLUMNS or chunk_bytes(net) > info.max_shared_bytes:
        return None
    if any(CHUNK_ROWS % n for n in info.matrix_shape) or CHUNK_SIZE % info.subgroup_size:
        return None
    m, n, k = info.matrix_shape
    return {
        "local_size": CHUNK_SIZE,
        "columns": CHUNK_COLUMNS,
        "matrix_m": m,
        "matrix_n": n,
        "matrix_k": k,
        "n_subgroups": CHUNK_SIZE // info.subgroup_size,
    }


def chunk_bytes(net: DeltaNet) -> int:
    """Bytes of shared memory of delta_net_chunks: rows of queries, keys and columns of the state in float16, and what a
    chunk's tokens have with each other and with the state."""
    half_rows = (2 * CHUNK_ROWS + CHUNK_COLUMNS) * (net.head_dim + 8)
    halves = half_rows + (CHUNK_ROWS + 2 * CHUNK_COLUMNS) * (CHUNK_ROWS + 8)
    return 2 * halves + 4 * CHUNK_ROWS * (CHUNK_ROWS + 8 + 2 * (CHUNK_COLUMNS + 4) + 3)
