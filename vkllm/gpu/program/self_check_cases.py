"""Kernels with inputs and the results that numpy computes, small enough to run before a model is loaded.

A few of each kind: what every device runs, what needs subgroups, integer dot products or matrices. What follows from a
wrong result is decided in `self_check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import dequantize, quantize_q16, split_planes
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.attention_operations import lanes_of_key
from vkllm.gpu.program.fragments import layout_of
from vkllm.gpu.program.kernels import AHEAD, KERNELS, KV_BLOCK, NO_EXPERTS
from vkllm.gpu.program.matmul_tiles import matmul_subgroups, matmul_tile
from vkllm.gpu.program.narrow_forms import narrow_splits
from vkllm.gpu.program.step import LIKELIEST, Part, StepSlots
from vkllm.model.reference import attention, rms_norm

Floats = npt.NDArray[np.float32]

BASE, DOT_PRODUCTS, MATRICES, SUBGROUPS = "base", "dot products", "matrices", "subgroups"

BOUND = 1e-6
"""Of mean square error to mean square: activations in 16 bits cause 4e-9, one wrong value in 1000 causes 1e-3."""

MATRIX_BOUND = 1e-5
"""The same for products in float16."""

SIZE = 64
"""Invocations of a workgroup: a multiple of every subgroup size that kernels ask for."""


@dataclass(frozen=True)
class Case:
    """A dispatch with its inputs, and the mean square error of its result, relative to the correct result."""

    module: str
    dispatch: Dispatch
    error: Callable[[], float]
    bound: float = BOUND

    @property
    def is_right(self) -> bool:
        """Whether the kernel, which has run, computed what it should."""
        return bool(self.error() <= self.bound)  # NaN is not


def cases(device: Device) -> dict[str, list[Case]]:
    """The cases that a device can run, by kind. Raises DeviceError where one cannot be made."""
    made = {BASE: [_argmax(device), _embed(device)], SUBGROUPS: [_norm(device), _matvec(device, "F16")]}
    if device.info.type != "cpu":  # there, compiling it takes longer than all the others
        made[SUBGROUPS].append(_attention(device))
    made[DOT_PRODUCTS] = [_matvec(device, "Q8_0")]
    if not device.is_plain:
        made[SUBGROUPS].append(_matvec_fused(device))
    if device.info.matrix_shape is not None:
        made[MATRICES] = [_matmul(device), _matmul_narrow(device)]
    return made


def _filled(device: Device, array: npt.NDArray[np.generic]) -> Buffer:
    words = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    buffer = device.buffer(len(words), is_host=True)
    assert buffer.words is not None
    buffer.words[: len(words)] = words
    return buffer


def _output(device: Device, n_words: int) -> Buffer:
    """Filled with NaN, so that values that a kernel fails to write are noticed."""
    buffer = device.buffer(n_words, is_host=True)
    assert buffer.words is not None
    buffer.words[:] = 0x7FC00000
    return buffer


def _step(device: Device, tokens: Sequence[int], position: int = 0, blocks: Sequence[int] = ()) -> Buffer:
    slots = StepSlots(device, 1, max(len(blocks), 1))
    slots.write(0, [Part(0, tokens, position, blocks, results=LIKELIEST)])
    return slots.buffer


def _error(buffer: Buffer, wanted: npt.NDArray[Any]) -> Callable[[], float]:
    def error() -> float:
        assert buffer.words is not None
        got = buffer.words[: wanted.size].view(np.float32).reshape(wanted.shape).astype(np.float64)
        return float(np.mean(np.square(got - wanted)) / np.mean(np.square(wanted)))

    return error


def _module(device: Device, name: str, fmt: str | None = None) -> str:
    return KERNELS[name].module(fmt, is_soft=not device.has_integer_dot, is_plain=device.is_plain)


def _random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _weights(device: Device, fmt: str, n_rows: int, n_columns: int) -> tuple[tuple[Buffer, Buffer], Floats]:
    """The planes of a matrix of random blocks, and its values."""
    rng = np.random.default_rng(n_columns)
    if fmt == "F16":
        raw = rng.normal(0, 1, (n_rows, n_columns)).astype(np.float16).view(np.uint8)
    else:  # blocks of 32 begin with their scale
        n_bytes = {"Q4_0": 18, "Q8_0": 34}[fmt]
        blocks = rng.integers(0, 256, (n_rows * n_columns // 32, n_bytes), np.uint8)
        blocks[:, :2] = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
        raw = blocks
    quants, scales = split_planes(raw.reshape(-1), fmt)
    plane = _filled(device, quants)
    planes = plane, _filled(device, scales) if len(scales) else plane
    return planes, dequantize(raw.reshape(-1), fmt, (n_rows, n_columns))


def _argmax(device: Device) -> Case:
    logits = _random(1, 1000)
    chosen = _output(device, 1)
    dispatch = device.dispatch(
        KERNELS["argmax"],
        (_filled(device, logits), _output(device, 1), chosen, _step(device, [0])),
        constants=(SIZE, 1000),
    )

    def error() -> float:
        assert chosen.words is not None
        return float(chosen.words[0] != np.argmax(logits))

    return Case("argmax", dispatch, error)


def _embed(device: Device) -> Case:
    planes, table = _weights(device, "Q4_0", 8, 96)
    x, tokens = _output(device, 3 * 96), (5, 0, 7)
    step = _step(device, tokens)
    dispatch = device.dispatch(
        KERNELS["embed"],
        (*planes, x, step),
        constants=(SIZE, 96, float_bits(1.0), 3),
        groups=(2, 3),
        push=(0, 8),
        weight_format="Q4_0",
    )
    return Case(_module(device, "embed", "Q4_0"), dispatch, _error(x, table[list(tokens)]))


def _norm(device: Device) -> Case:
    x, weight, eps = _random(2, 2, 288), _random(3, 288), np.float32(1e-5)
    y, y_q16, y_scales = (_output(device, n) for n in (2 * 288, 288, 2 * 2 * 9))
    wanted = rms_norm(x, weight, float(eps))
    dispatch = device.dispatch(
        KERNELS["norm"],
        (
            *(_filled(device, a) for a in (x, weight, weight, x)),
            *(y, y_q16, y_scales, _step(device, [0, 0]), y, y, y, y),
        ),
        constants=(SIZE, 288, float_bits(eps), 0, 1, 0, 0, 1, 0, 0, float_bits(1.0), 0, 0, 0, 0, 0, 0),
        groups=(1, 2),
        push=(0, 0, 0),
    )
    values = _error(y, wanted)
    _, scales = quantize_q16(wanted)
    return Case(_module(device, "norm"), dispatch, lambda: max(values(), _error(y_scales, scales.reshape(2, 9, 2))()))


def _matvec(device: Device, fmt: str) -> Case:
    n_rows, n_columns = 37, 288
    planes, weights = _weights(device, fmt, n_rows, n_columns)
    x, y = _random(4, 1, n_columns), _output(device, n_rows)
    values, scales = (x, x) if fmt == "F16" else quantize_q16(x)
    rows_per_group = 2 * (SIZE // device.info.subgroup_size)
    dispatch = device.dispatch(
        KERNELS["matvec"],
        (*planes, _filled(device, values), _filled(device, scales), y, y, _step(device, [0]), y),
        constants=(SIZE, n_columns, 2, 1, 0, 0, float_bits(1.0)),
        groups=(-(-n_rows // rows_per_group), 1),
        push=(n_rows, 0, n_rows),
        weight_format=fmt,
    )
    wanted = weights.astype(np.float64) @ x[0]
    return Case(_module(device, "matvec", fmt), dispatch, _error(y, wanted))


def _matvec_fused(device: Device) -> Case:
    n_rows, n_columns, eps = 37, 512, np.float32(1e-5)
    planes, weights = _weights(device, "Q4_0", n_rows, n_columns)
    x, norm, y = _random(5, 1, n_columns), _random(6, n_columns), _output(device, n_rows)
    dispatch = device.dispatch(
        KERNELS["matvec_fused"],
        (*planes, _filled(device, x), _filled(device, norm), y, y, *(_output(device, 16) for _ in range(7))),
        constants=(
            *(SIZE, n_columns, 0, n_columns, 1, 1, 1, 0, 0, float_bits(eps), 0, 0, 0, 0, float_bits(1.0), 0, 0),
            *NO_EXPERTS,
        ),
        groups=(2, 1),
        push=(n_rows, 0, 0, 0, 0),
        weight_format="Q4_0",
    )
    wanted = weights.astype(np.float64) @ rms_norm(x, norm, float(eps))[0]
    return Case(_module(device, "matvec_fused", "Q4_0"), dispatch, _error(y, wanted))


def _attention(device: Device) -> Case:
    n_heads, head_dim, n_keys = 2, 32, 45
    q, k, v = _random(7, 1, n_heads, head_dim), _random(8, n_keys, 1, head_dim), _random(9, n_keys, 1, head_dim)
    caches = []
    for x in (k, v):
        blocks = np.zeros((2, KV_BLOCK, head_dim), np.float16)
        blocks.reshape(-1, head_dim)[:n_keys] = x[:, 0]
        caches.append(blocks[::-1])  # the first block comes last
    y, y_q16, y_scales = (_output(device, n) for n in (n_heads * head_dim, n_heads * head_dim // 2, 2 * n_heads))
    lanes, arrived = lanes_of_key(head_dim, device.info.subgroup_size), _filled(device, np.zeros(n_heads, np.uint32))
    dispatch = device.dispatch(
        KERNELS["attention"],
        (
            *(_filled(device, q), *(_filled(device, cache) for cache in caches), y, y_q16, y_scales),
            *(_step(device, [0], n_keys - 1, [1, 0]), y, y, _output(device, 256), arrived),
        ),
        constants=(
            *(SIZE, n_heads, 1, head_dim, lanes, 1, 1, 1, 0, 0),
            *(float_bits(head_dim**-0.5), 0, 0, 0, AHEAD.index("none"), 1, 0, 0, 0, 0),
            *(32, 1, 2, 2, 0),
        ),
        groups=(2 * n_heads, 1),
    )
    k, v = (x.astype(np.float16).astype(np.float32) for x in (k, v))
    wanted = attention(q, k, v, np.array([n_keys - 1]))
    return Case(_module(device, "attention"), dispatch, _error(y, wanted))


def _matmul(device: Device) -> Case:
    info, n_rows, n_columns, n_tokens = device.info, 64, 256, 16
    assert info.matrix_shape is not None
    planes, weights = _weights(device, "Q4_0", n_rows, n_columns)
    tile_rows, tile_tokens = matmul_tile(64, n_tokens, n_columns, info.max_shared_bytes)
    x = np.zeros((tile_tokens, n_columns), np.float32)
    x[:n_tokens] = _random(10, n_tokens, n_columns)
    y = _output(device, tile_tokens * n_rows)
    inputs = _filled(device, x)
    dispatch = device.dispatch(
        KERNELS["matmul"],
        (*planes, inputs, inputs, y, _step(device, [0] * n_tokens), inputs),
        constants=(
            *(256, n_columns, tile_tokens),
            *matmul_subgroups(tile_rows, tile_tokens, 256 // info.subgroup_size, info.matrix_shape),
            *(0, *info.matrix_shape, tile_rows, 1, 0, float_bits(1.0), 1, 0),
        ),
        groups=(-(-n_rows // tile_rows), 1),
        push=(n_rows, 0, n_rows),
        weight_format="Q4_0",
    )
    wanted = x[:n_tokens].astype(np.float64) @ weights.T
    return Case(_module(device, "matmul", "Q4_0"), dispatch, _error(y, wanted), MATRIX_BOUND)


def _matmul_narrow(device: Device) -> Case:
    layout, n_rows, n_columns, n_tokens = layout_of(device), 64, 576, 9
    (m, n, k), n_splits = layout.shape, narrow_splits(device.info, layout, n_rows)
    planes, weights = _weights(device, "Q4_0", n_rows, n_columns)
    x, y = _random(11, n_tokens, n_columns), _output(device, n_tokens * n_rows)
    dispatch = device.dispatch(
        KERNELS["matmul_narrow"],
        (*planes, _filled(device, layout.ordered(x)), y, y, _step(device, [0] * n_tokens), *(8 * [y])),
        constants=(
            *(n_splits * device.info.subgroup_size, n_columns, n_splits, -(-n_tokens // n), m, n, k),
            *(layout.lanes, int(layout.is_direct), 1 + layout.is_direct),
            *(0, 0, float_bits(1.0), 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 8, 0, 0),
        ),
        groups=(-(-n_rows // m), 1),
        push=(n_rows, 0, n_rows, n_tokens),
        weight_format="Q4_0",
    )
    wanted = x.astype(np.float64) @ weights.T
    return Case(_module(device, "matmul_narrow", "Q4_0"), dispatch, _error(y, wanted), MATRIX_BOUND)
