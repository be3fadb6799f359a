"""Small tools to run one kernel on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vkllm.formats.quants import split_planes
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.kernels import AHEAD, KERNELS, KV_BLOCK
from vkllm.gpu.program.step import Part, Result, StepSlots
from vkllm.model.ops import Ahead


@dataclass(frozen=True)
class Scores:
    """What a model does with scores and results; see vkllm/model/reference.py. has_sinks: of each head, random ones.
    has_gates: of all results, random ones. n_window_blocks: of the caches, used in turn; 0: as many as there are keys.
    latent_dim: values are so many numbers of the keys; 0: they are cached."""

    scale: float
    softcap: float = 0.0
    window: int = 0
    n_window_blocks: int = 0
    ahead: Ahead = "none"
    chunk: int = 0
    has_sinks: bool = False
    has_gates: bool = False
    latent_dim: int = 0

    def sinks(self, n_heads: int) -> npt.NDArray[np.float32] | None:
        """(n_heads,): as large as scores may be, some much smaller than others."""
        rng = np.random.default_rng(n_heads)
        return rng.normal(0, 4, n_heads).astype(np.float32) if self.has_sinks else None

    def gates(self, n_rows: int, n_heads: int, head_dim: int) -> npt.NDArray[np.float32] | None:
        """(n_rows, n_heads + 1, 2, head_dim): query and gate of each head, then others."""
        rng = np.random.default_rng(n_rows)
        return rng.normal(0, 3, (n_rows, n_heads + 1, 2, head_dim)).astype(np.float32) if self.has_gates else None

    def constants(self, n_heads: int, head_dim: int) -> dict[str, int]:
        """As attention and attention_tiled take them."""
        return dict(
            scale=float_bits(self.scale),
            softcap=float_bits(self.softcap) if self.softcap else 0,
            window=self.window,
            table=2 if self.n_window_blocks else 0,
            ahead=AHEAD.index(self.ahead),
            chunk=self.chunk,
            has_sinks=self.has_sinks,
            gates_columns=2 * (n_heads + 1) * head_dim if self.has_gates else 0,
        )


def constants(kernel: str, **values: int) -> tuple[int, ...]:
    """Constants of a kernel in the order of its registry entry; those that are not given are 0."""
    names = KERNELS[kernel].constants
    assert set(values) <= set(names)
    return tuple(int(values.get(name, 0)) for name in names)


def filled(device: Device, array: npt.NDArray[np.generic]) -> Buffer:
    """A host-visible buffer that holds the array's bytes, padded to 16."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffer = device.buffer(-(-len(raw) // 16) * 4, is_host=True)
    assert buffer.words is not None
    buffer.words.view(np.uint8)[: len(raw)] = raw
    return buffer


def poisoned(device: Device, n_words: int) -> Buffer:
    """A host-visible buffer full of NaN, so that what a kernel leaves out shows."""
    buffer = device.buffer(n_words, is_host=True)
    assert buffer.words is not None
    buffer.words[:] = 0x7FC00000
    return buffer


def floats(buffer: Buffer, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The first numbers of a host-visible buffer."""
    assert buffer.words is not None
    return buffer.words[: int(np.prod(shape))].view(np.float32).reshape(shape).copy()


def words(buffer: Buffer, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    assert buffer.words is not None
    return buffer.words[: int(np.prod(shape))].reshape(shape).copy()


def step_buffer(
    device: Device,
    positions: Sequence[int],
    tokens: Sequence[int],
    table: Sequence[int] = (),
    n_results: int = 0,
    window_table: Sequence[int] = (),
) -> Buffer:
    """A step with one row a position, as kernels see it (the layout of a slot is that of the step); positions that do
    not follow each other are of parts that share a table. n_results: of the last rows of each part. window_table: the
    blocks of layers with a window, if there are any."""
    starts = [i for i, p in enumerate(positions) if i == 0 or p != positions[i - 1] + 1]
    cuts = zip(starts, [*starts[1:], len(positions)], strict=True)
    results = [Result()] * n_results
    parts = [Part(0, tokens[a:b], positions[a], table, window_table, results=results) for a, b in cuts]
    return step_of(device, parts)


def step_of(device: Device, parts: Sequence[Part]) -> Buffer:
    """A step of these parts, as kernels see it."""
    n_blocks = sum(len(part.blocks) for part in parts)
    slots = StepSlots(device, 1, max(n_blocks, 1), has_windows=len(parts[0].window_blocks) > 0)
    slots.write(0, parts)
    return slots.buffer


def planes(device: Device, raw: npt.NDArray[np.uint8], fmt: str) -> tuple[Buffer, Buffer]:
    quants, scales = split_planes(raw, fmt)
    first = filled(device, quants)
    return first, filled(device, scales) if len(scales) else first


def cached(x: npt.NDArray[np.float32], fmt: str) -> npt.NDArray[np.float32]:
    """What the key/value cache keeps of x (..., head_dim): float16, or q8_0 with a float32 scale per 32 values."""
    if fmt == "f16":
        return x.astype(np.float16).astype(np.float32)
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    integers = np.round(blocks / np.where(scales > 0, scales, 1))
    return (integers * scales).astype(np.float32).reshape(x.shape)


def cache_words(fmt: str, n_blocks: int, n_kv_heads: int, head_dim: int) -> int:
    """Words of a cache of n_blocks blocks (shaders/lib/kvcache.glsl)."""
    per_row = head_dim // 2 if fmt == "f16" else head_dim // 4 + head_dim // 32
    return n_blocks * n_kv_heads * KV_BLOCK * per_row


def write_cache(words: npt.NDArray[np.uint32], x: npt.NDArray[np.float32], table: Sequence[int], fmt: str) -> None:
    """Puts x (S, KV, D), tokens 0 to S - 1, into the words of a cache, their blocks where the table says."""
    n_keys, n_kv_heads, head_dim = x.shape
    if fmt == "f16":
        units = words.view(np.float16).reshape(-1, n_kv_heads, KV_BLOCK, head_dim)
        for position in range(n_keys):
            units[table[position // KV_BLOCK], :, position % KV_BLOCK] = x[position]
        return
    n_bytes, n_scales = KV_BLOCK * head_dim // 4, KV_BLOCK * head_dim // 32
    units = words.reshape(-1, n_kv_heads, n_bytes + n_scales)
    blocks = x.reshape(n_keys, n_kv_heads, head_dim // 32, 32)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    integers = np.round(blocks / np.where(scales > 0, scales, 1)[..., None]).astype(np.int8).reshape(x.shape)
    for position in range(n_keys):
        for head in range(n_kv_heads):
            unit, row = units[table[position // KV_BLOCK], head], position % KV_BLOCK
            unit[:n_bytes].reshape(KV_BLOCK, -1)[row] = integers[position, head].view(np.uint32)
            unit[n_bytes:].view(np.float32).reshape(KV_BLOCK, -1)[row] = scales[position, head]


def read_cache(
    words: npt.NDArray[np.uint32], positions: Sequence[int], table: Sequence[int], fmt: str, shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Rows (T, KV, D) of a cache, for shape (KV, D)."""
    n_kv_heads, head_dim = shape
    n_bytes = KV_BLOCK * head_dim // 4
    rows = []
    for position in positions:
        block, row = table[position // KV_BLOCK], position % KV_BLOCK
        if fmt == "f16":
            rows.append(words.view(np.float16).reshape(-1, n_kv_heads, KV_BLOCK, head_dim)[block, :, row])
            continue
        unit = words.reshape(-1, n_kv_heads, n_bytes + KV_BLOCK * head_dim // 32)[block]
        integers = np.ascontiguousarray(unit[:, :n_bytes]).view(np.int8).reshape(n_kv_heads, KV_BLOCK, -1)[:, row]
        scales = np.ascontiguousarray(unit[:, n_bytes:]).view(np.float32).reshape(n_kv_heads, KV_BLOCK, -1)[:, row]
        rows.append(integers * np.repeat(scales, 32, axis=-1))
    return np.stack(rows).astype(np.float32)


def nmse(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.floating]) -> float:
    """Normalized mean square error; NaN counts as infinite."""
    error = float(np.mean(np.square(got.astype(np.float64) - wanted)) / max(np.mean(np.square(wanted)), 1e-30))
    return error if np.isfinite(error) else float("inf")
