"""expert_matvec, expert_matmul and expert_sum against numpy: every format, ragged shapes, lists of tiles and heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_case import constants, filled, floats, nmse, planes, poisoned, step_buffer
from random_weights import quantized

from vkllm.formats.quants import dequantize, quantize_q16, weight_format
from vkllm.gpu.device.kernel import QUANTIZED_FORMATS, KernelSpec, float_bits
from vkllm.gpu.device.kompute import Device, Dispatch
from vkllm.gpu.program.expert_operations import most_tiles
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS
from vkllm.gpu.program.matmul_tiles import matmul_bytes, matmul_subgroups
from vkllm.model.reference_experts import expert_matvec, expert_sum

pytestmark = pytest.mark.gpu

BOUND = 4e-9  # of matvec, see test_matvec.py
MATMUL_BOUND = 3e-7  # of matmul, see test_matmul.py


@dataclass(frozen=True)
class Shape:
    """Stacked tensors of experts, and the rows that read them."""

    n_experts: int
    n_slots: int
    n_rows: int
    n_columns: int
    n_tokens: int
    n_tensors: int = 1
    reads_own: bool = False
    has_routes: bool = True
    has_bias: bool = False
    has_scales: bool = False
    is_weighed: bool = False
    spans: int = 4
    tile_size: int = 8


CASES = [
    Shape(3, 1, 5, 64, 1),
    Shape(128, 8, 33, 96, 7, n_tensors=2, has_bias=True, has_scales=True),
    Shape(8, 3, 40, 160, 40, reads_own=True, is_weighed=True, spans=2, tile_size=2),
    Shape(5, 5, 24, 64, 9, reads_own=True, has_routes=False, has_bias=True),
]
"""Columns are rounded up to a format's blocks."""

TILES = [
    Shape(8, 2, 48, 128, 40, n_tensors=2, has_bias=True, has_scales=True, tile_size=16),
    Shape(128, 8, 144, 192, 7, reads_own=True, is_weighed=True, tile_size=32),
    Shape(3, 3, 16, 256, 70, reads_own=True, has_routes=False),
]


class Case:
    """Random inputs of a shape, and what numpy makes of them."""

    def __init__(self, device: Device, fmt: str, shape: Shape, step: int = 32) -> None:
        block = max(weight_format(fmt).block, step)
        self.columns = columns = -(-shape.n_columns // block) * block
        self.device, self.fmt, self.shape = device, fmt, shape
        rng = np.random.default_rng(shape.n_rows)
        n_experts, n_tokens, n_slots, n_rows = shape.n_experts, shape.n_tokens, shape.n_slots, shape.n_rows
        all_rows = n_experts * shape.n_tensors * n_rows
        self.raw = quantized(rng.normal(0, 0.05, (all_rows, columns)).astype(np.float32), fmt)
        self.x = rng.normal(0, 1, (n_tokens, n_slots if shape.reads_own else 1, columns)).astype(np.float32)
        every = np.broadcast_to(np.arange(n_slots), (n_tokens, n_slots))
        chosen = np.stack([rng.permutation(n_experts)[:n_slots] for _ in range(n_tokens)])
        numbers = chosen if shape.has_routes else every
        weights = rng.uniform(0, 1, (n_tokens, n_slots)).astype(np.float32)
        self.bias = rng.normal(0, 1, (shape.n_tensors, n_experts, n_rows)).astype(np.float32)
        self.scales = rng.uniform(0.5, 2, (shape.n_tensors, n_experts)).astype(np.float32)
        ones = np.ones((n_tokens, 1), np.float32)
        self.routes = np.concatenate([numbers.astype(np.uint32).view(np.float32), weights, ones], axis=1)
        slots = np.argsort(numbers.reshape(-1), kind="stable")
        tiles = []
        for expert in range(n_experts):
            first, last = np.searchsorted(numbers.reshape(-1)[slots], [expert, expert + 1])
            tiles += [(expert, at, min(shape.tile_size, last - at), 0) for at in range(first, last, shape.tile_size)]
        self.n_tiles = most_tiles(n_tokens * n_slots, n_experts, shape.tile_size)
        tiles += [(0, 0, 0, 0)] * (self.n_tiles - len(tiles))
        self.tiles, self.entries = np.array(tiles, np.uint32), slots.astype(np.uint32)
        tensors = dequantize(self.raw, fmt, (shape.n_tensors, n_experts, n_rows, columns)).astype(np.float64)
        results = [
            expert_matvec(
                self.x if shape.reads_own else self.x[:, 0],
                tensor,
                numbers,
                self.bias[i] if shape.has_bias else None,
                self.scales[i] if shape.has_scales else None,
            )
            for i, tensor in enumerate(tensors)
        ]
        wanted = np.concatenate(results, axis=2)
        self.wanted = wanted * weights[..., None] if shape.is_weighed else wanted

    def error(self, kernel: KernelSpec, groups: tuple[int, int], **others: int) -> float:
        """Runs a kernel."""
        shape, device, columns = self.shape, self.device, self.columns
        n_rows, stride = shape.n_tensors * shape.n_rows, shape.n_slots * (shape.n_tensors * shape.n_rows + 16)
        y = poisoned(device, shape.n_tokens * stride)
        x = self.x.reshape(shape.n_tokens, -1)
        is_quantized = weight_format(self.fmt).is_quantized and kernel.uses_dot4
        inputs = quantize_q16(x) if is_quantized else (x, x)
        if others.get("in_halves"):
            inputs = (x.astype(np.float16), x)
        dispatch: Dispatch = device.dispatch(
            kernel,
            (
                *planes(device, self.raw, self.fmt),
                *(filled(device, array) for array in inputs[: 1 + (kernel.uses_dot4)]),
                *(filled(device, self.tiles), filled(device, self.entries), filled(device, self.routes), y),
                step_buffer(device, range(shape.n_tokens), [0] * shape.n_tokens),
                *(filled(device, self.bias), filled(device, self.scales)),
            ),
            constants=constants(
                kernel.name,
                columns=columns,
                n_experts=shape.n_experts,
                expert_rows=shape.n_rows,
                n_slots=shape.n_slots,
                x_columns=x.shape[1],
                slot_columns=columns if shape.reads_own else 0,
                listed=int(shape.has_routes),
                tile_size=shape.tile_size,
                has_bias=int(shape.has_bias),
                has_scales=int(shape.has_scales),
                is_weighed=int(shape.is_weighed),
                **others,
            ),
            groups=groups,
            push=(n_rows, 16, stride),
            weight_format=self.fmt,
        )
        device.run([dispatch])
        got = floats(y, (shape.n_tokens, shape.n_slots, n_rows + 16))
        assert np.isnan(got[:, :, :16]).all(), "wrote beyond its rows"
        return nmse(got[:, :, 16:], self.wanted)

    def n_parts(self, spans: int) -> int:
        """Workgroups for all tiles."""
        if not self.shape.has_routes:
            return self.shape.n_experts * -(-self.shape.n_tokens // spans)
        return self.n_tiles * -(-self.shape.tile_size // spans)


@pytest.mark.parametrize("has_integer_dot", [True, False], ids=["dot4", "soft"])
@pytest.mark.parametrize(
    ("fmt", "shape"),
    [
        (fmt, shape)
        for fmt in WEIGHT_FORMATS
        for shape in (CASES if fmt in ("F32", "F16", "Q4_0", "Q4_K", "MXFP4") else CASES[2:3])
    ],
)
def test_expert_matvec(
    device: Device, fmt: str, shape: Shape, has_integer_dot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_integer_dot and "integer_dot_product" not in device.info.features:
        pytest.skip("the device has no integer dot products")
    if not has_integer_dot and (fmt not in QUANTIZED_FORMATS or shape is not CASES[2]):
        pytest.skip("it makes no difference")
    monkeypatch.setattr(device, "has_integer_dot", has_integer_dot)
    case = Case(device, fmt, shape)
    rows = 2 * max(64 // device.info.subgroup_size, 1)
    groups = -(-shape.n_tensors * shape.n_rows // rows), case.n_parts(shape.spans)
    assert (
        case.error(
            KERNELS["expert_matvec"], groups, local_size=64, rows_per_subgroup=2, slots_per_workgroup=shape.spans
        )
        < BOUND * 4
    )


@pytest.mark.parametrize(("tile_rows", "spans"), [(128, 32), (128, 64), (64, 16), (64, 64)])
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize(("fmt", "in_halves"), [("F16", 0), ("Q4_K", 1), ("Q6_K", 0), ("MXFP4", 1)])
def test_expert_matmul(device: Device, fmt: str, in_halves: int, shape: Shape, tile_rows: int, spans: int) -> None:
    matrix = device.info.matrix_shape
    if matrix is None:
        pytest.skip("the device has no cooperative matrices")
    if matmul_bytes(tile_rows, spans) > device.info.max_shared_bytes:
        pytest.skip("the device has no room for so wide a tile")
    case = Case(device, fmt, shape, 32 * 256 // tile_rows)
    along_rows, along_tokens = matmul_subgroups(tile_rows, spans, 256 // device.info.subgroup_size, matrix)
    groups = -(-shape.n_tensors * shape.n_rows // tile_rows), case.n_parts(spans)
    error = case.error(
        KERNELS["expert_matmul"],
        groups,
        local_size=256,
        tile_tokens=spans,
        subgroups_along_rows=along_rows,
        subgroups_along_tokens=along_tokens,
        matrix_m=matrix[0],
        matrix_n=matrix[1],
        matrix_k=matrix[2],
        tile_rows=tile_rows,
        steps_ahead=2,
        in_halves=in_halves,
    )
    assert error < MATMUL_BOUND


@pytest.mark.parametrize(
    ("is_weighed", "has_shared", "adds", "factor"), [(True, False, True, 1.0), (False, True, False, 0.3)]
)
def test_expert_sum(device: Device, is_weighed: bool, has_shared: bool, adds: bool, factor: float) -> None:
    n_tokens, n_slots, columns = 5, 7, 100
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (n_tokens, n_slots, columns)).astype(np.float32)
    routes = rng.uniform(0, 1, (n_tokens, 2 * n_slots + 1)).astype(np.float32)
    shared, before = rng.normal(0, 1, (2, n_tokens, columns)).astype(np.float32)
    y = poisoned(device, n_tokens * columns + 4)
    device.run(
        [
            device.dispatch(
                KERNELS["expert_sum"],
                (
                    *(filled(device, array) for array in (x, routes, shared, before)),
                    *(y, step_buffer(device, range(n_tokens), [0] * n_tokens)),
                ),
                constants=(32, columns, n_slots, int(is_weighed), int(has_shared), int(adds), float_bits(factor)),
                groups=(-(-columns // 32), 8),
            )
        ]
    )
    wanted = expert_sum(x, routes[:, n_slots : 2 * n_slots] if is_weighed else None)
    wanted = factor * (wanted + (routes[:, -1:] * shared if has_shared else 0)) + (before if adds else 0)
    assert nmse(floats(y, (n_tokens, columns)), wanted) < 1e-13  # a few roundings
    assert np.isnan(floats(y, (n_tokens * columns + 4,))[-4:]).all(), "wrote beyond its rows"
