"""Operations as dispatches: one method for each kind, each with its kernel, its constants and its workgroups.

Knows the kernels' contracts (`kernels.py`), the model's buffers and the device's tuning. `program.py` decides what is
recorded, and in which order.
"""

from __future__ import annotations

import numpy as np

from vkllm.formats.quants import BLOCK, weight_format
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.buffers import Activation, ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.kernels import (
    ACTIVATIONS,
    ATTENTION_TILE_ROWS,
    HEAD_WEIGHTS,
    KERNELS,
    KV_BLOCK,
    LAST_ROW,
    NORM_FORMS,
)
from vkllm.gpu.program.weights import WeightPlanes
from vkllm.model.ops import Activate, Attention, Embed, HeadNormalization, Matvec, Norm, Op, Rotation, Softcap

MATMUL_SIZE = 256
"""Invocations of a workgroup of `matmul`."""

WIDE_TILE = 128
"""Rows and tokens of a tile of `matmul` in steps of more than NARROW_TOKENS."""

NARROW_TOKENS = 64


class Operations:
    """Makes and keeps dispatches. step: the step buffer on the device, which nearly every kernel reads."""

    def __init__(self, device: Device, buffers: ModelBuffers, step: Buffer, tuning: Tuning) -> None:
        self._device = device
        self._buffers = buffers
        self.step = step
        self._tuning = tuning
        self._local_size = tuning.local_size
        self._made: dict[tuple[Op, int], list[Dispatch]] = {}

    def of(self, op: Op, width: int) -> list[Dispatch]:
        """Dispatches of an operation for steps of `width` rows, made once."""
        key = (op, width)
        if key not in self._made:
            self._made[key] = self._make(op, width)
        return self._made[key]

    def _make(self, op: Op, width: int) -> list[Dispatch]:
        match op:
            case Embed():
                return self._embed(op, width)
            case Norm():
                return [self._norm(op, width)]
            case Matvec():
                return self._matvec(op, width)
            case HeadNormalization():
                return [self._head_norm(op, width)]
            case Rotation():
                return [self._rope(op, width)]
            case Attention():
                return [self._attention(op, width)]
            case Activate():
                return [self._activate(op, width)]
            case Softcap():
                return [self._softcap(op, width)]
        raise AssertionError(op.kind)

    def _embed(self, op: Embed, width: int) -> list[Dispatch]:
        """One dispatch for each part of the table; each writes the rows of its own tokens."""
        dispatches: list[Dispatch] = []
        first_row = 0
        for planes in self._buffers.matrices[op.weights]:
            dispatches.append(
                self._device.dispatch(
                    KERNELS["embed"],
                    (planes.quants, planes.scales, self._buffers.activations[op.output].values, self.step),
                    constants=(self._local_size, planes.n_columns, float_bits(op.scale)),
                    groups=(-(-planes.n_columns // self._local_size), width),
                    push=(first_row, planes.n_rows),
                    weight_format=planes.format,
                    is_independent=first_row > 0,
                )
            )
            first_row += planes.n_rows
        return dispatches

    def _norm(self, op: Norm, width: int) -> Dispatch:
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        weight, bias = (self._buffers.vectors[name] if name else None for name in (op.weight, op.bias))
        add = self._buffers.activations[op.add].values if op.add else None
        unread = x.values  # bound in place of what there is not
        return self._device.dispatch(
            KERNELS["norm"],
            (
                *(x.values, weight or unread, bias or unread, add or unread),
                *(y.values, y.q16 or unread, y.scales or unread, self.step),
            ),
            constants=(
                *(4 * self._local_size, op.width, float_bits(op.eps), NORM_FORMS.index(op.form)),
                *(int(weight is not None), int(bias is not None), int(add is not None)),
            ),
            groups=(1, width),
            push=(LAST_ROW if op.output == "final" else 0,),
        )

    def _matvec(self, op: Matvec, width: int) -> list[Dispatch]:
        """One dispatch for each group of rows of the same format; the groups write different columns of y."""
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output].values
        add = self._buffers.activations[op.add].values if op.add else None
        bias = self._buffers.biases.get(op.weights)
        # logits have too few rows for a tile of matmul, and are worth the exact product
        is_tiled = width > 1 and self._tuning.has_matmul and op.output != "logits"
        dispatches: list[Dispatch] = []
        y_offset = 0
        for planes in self._buffers.matrices[op.weights]:
            if is_tiled and suits_matmul(planes):
                dispatches.append(self.matmul(planes, x.values, y, width, op.width, y_offset, add, bias, op.factor))
            else:
                dispatches.append(self.matvec(planes, x, y, width, op.width, y_offset, add, bias, op.factor))
            y_offset += planes.n_rows
        return dispatches

    def matvec(
        self,
        planes: WeightPlanes,
        x: Activation,
        y: Buffer,
        width: int,
        y_width: int,
        y_offset: int = 0,
        add: Buffer | None = None,
        bias: Buffer | None = None,
        factor: float = 1.0,
    ) -> Dispatch:
        """add + factor * (W x + bias), into the columns of y (width, y_width) from y_offset on.

        bias (y_width,): a number for each column of y.
        """
        rows, tokens = self._tuning.tile_rows, min(width, self._tuning.tile_tokens)
        rows_per_group = rows * max(self._local_size // self._device.info.subgroup_size, 1)
        n_rows = min(planes.n_rows, y_width - y_offset)  # an embedding may have more rows than there are tokens
        is_quantized = weight_format(planes.format).is_quantized
        x_data, x_scales = (x.q16, x.scales) if is_quantized else (x.values, x.values)
        assert x_data is not None and x_scales is not None
        added, biases = add or x.values, bias or x.values  # bound, but not read, if nothing is added
        return self._device.dispatch(
            KERNELS["matvec"],
            (planes.quants, planes.scales, x_data, x_scales, added, y, self.step, biases),
            constants=(
                *(self._local_size, planes.n_columns, rows, tokens, int(add is not None)),
                *(int(bias is not None), float_bits(factor)),
            ),
            groups=(-(-n_rows // rows_per_group), -(-width // tokens)),
            push=(n_rows, y_offset, y_width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )

    def matmul(
        self,
        planes: WeightPlanes,
        x: Buffer,
        y: Buffer,
        width: int,
        y_width: int,
        y_offset: int = 0,
        add: Buffer | None = None,
        bias: Buffer | None = None,
        factor: float = 1.0,
    ) -> Dispatch:
        """The same by cooperative matrices."""
        info = self._device.info
        assert info.matrix_shape is not None
        room = info.max_shared_bytes - 4 * weight_format(planes.format).table_words
        tile_rows, tile_tokens = matmul_tile(self._tuning.narrow_rows, width, planes.n_columns, room)
        return self._device.dispatch(
            KERNELS["matmul"],
            (planes.quants, planes.scales, x, add or x, y, self.step, bias or x),
            constants=(
                *(MATMUL_SIZE, planes.n_columns, tile_tokens),
                *matmul_subgroups(tile_rows, tile_tokens, info.subgroup_size, info.matrix_shape),
                *(int(add is not None), *info.matrix_shape, tile_rows),
                self._tuning.steps_ahead_wide if tile_tokens > NARROW_TOKENS else self._tuning.steps_ahead,
                *(int(bias is not None), float_bits(factor)),
            ),
            groups=(-(-planes.n_rows // tile_rows), -(-width // tile_tokens)),
            push=(planes.n_rows, y_offset, y_width),
            weight_format=planes.format,
            is_independent=y_offset > 0,
        )

    def _head_norm(self, op: HeadNormalization, width: int) -> Dispatch:
        qkv, weight = self._buffers.activations[op.output].values, self._buffers.head_weights.get(op.weights)
        n_groups: tuple[int, int]
        if op.norm.over == "row":
            n_groups, size = (1, 1), self._local_size
            columns = op.n_heads * op.head_dim, op.n_kv_heads * op.head_dim
        else:
            n_groups, size = (op.n_heads, op.n_kv_heads), self._device.info.subgroup_size
            columns = op.head_dim, op.head_dim
        return self._device.dispatch(
            KERNELS["head_norm"],
            (qkv, weight or qkv, self.step),
            constants=(
                *(size, op.width, n_groups[0], columns[0], n_groups[1], columns[1], float_bits(op.eps)),
                *(NORM_FORMS.index(op.norm.form), int(weight is not None), int(op.norm.has_weight_per_head)),
            ),
            groups=(sum(n_groups), width),
        )

    def _rope(self, op: Rotation, width: int) -> Dispatch:
        k_cache, v_cache = self._buffers.caches[op.layer]
        n_fours = (op.n_heads + 2 * op.n_kv_heads) * op.head_dim // 4
        qkv, q = self._buffers.activations[op.input].values, self._buffers.activations[op.output].values
        table, weights, factors = rotation_buffers(self._buffers, op)
        return self._device.dispatch(
            KERNELS["rope"],
            (qkv, table or qkv, q, k_cache, v_cache, self.step, weights or qkv, factors or qkv),
            constants=(
                *(self._local_size, op.n_heads, op.n_kv_heads, op.head_dim),
                *(*rotation_constants(op), *cache_constants(self._buffers), self._buffers.n_ring_blocks[op.layer]),
                *(HEAD_WEIGHTS.index("after" if weights else "none"), int(factors is not None)),
            ),
            groups=(-(-n_fours // self._local_size), width),
        )

    def _attention(self, op: Attention, width: int) -> Dispatch:
        k_cache, v_cache = self._buffers.caches[op.layer]
        q, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        if (
            self._tuning.has_tiled_attention
            and width > 1
            and suits_tiled_attention(op, self._device.info.max_shared_bytes)
        ):
            return self._attention_tiled(op, width)
        heads = heads_together(op.n_heads // op.n_kv_heads)
        lanes = lanes_of_key(op.head_dim, self._device.info.subgroup_size)
        tokens = max(self._tuning.attention_queries // heads, 1)
        return self._device.dispatch(
            KERNELS["attention"],
            (q.values, k_cache, v_cache, y.values, y.q16 or y.values, y.scales or y.values, self.step),
            constants=(
                *(self._tuning.attention_size, op.n_heads, op.n_kv_heads, op.head_dim),
                *(lanes, heads, tokens, self._tuning.keys_at_once),
                *(*cache_constants(self._buffers), *score_constants(self._buffers, op)),
                *(int(op.is_causal), int(quantizes(op, y))),
            ),
            groups=(op.n_heads // heads, -(-width // tokens)),
        )

    def _attention_tiled(self, op: Attention, width: int) -> Dispatch:
        """The same by cooperative matrices."""
        (k_cache, v_cache), info = self._buffers.caches[op.layer], self._device.info
        q, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        assert y.q16 is not None and y.scales is not None and info.matrix_shape is not None
        tokens = ATTENTION_TILE_ROWS // (op.n_heads // op.n_kv_heads)
        return self._device.dispatch(
            KERNELS["attention_tiled"],
            (q.values, k_cache, v_cache, y.values, y.q16, y.scales, self.step),
            constants=(
                ATTENTION_TILE_ROWS // info.matrix_shape[0] * info.subgroup_size,
                *(op.n_heads, op.n_kv_heads, op.head_dim, *cache_constants(self._buffers)),
                *(
                    *info.matrix_shape,
                    *score_constants(self._buffers, op),
                    int(op.is_causal),
                    value_splits(op.head_dim),
                ),
            ),
            groups=(op.n_kv_heads * value_splits(op.head_dim), -(-width // tokens)),
        )

    def _activate(self, op: Activate, width: int) -> Dispatch:
        x, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        assert y.q16 is not None and y.scales is not None
        return self._device.dispatch(
            KERNELS["activate"],
            (x.values, y.values, y.q16, y.scales, self.step),
            constants=(self._local_size, op.width, ACTIVATIONS.index(op.function), int(op.is_gated)),
            groups=(-(-op.width // 4 // self._local_size), width),
        )

    def _softcap(self, op: Softcap, width: int) -> Dispatch:
        return self._device.dispatch(
            KERNELS["softcap"],
            (self._buffers.activations[op.output].values,),
            constants=(self._local_size, op.width, float_bits(op.scale), float_bits(op.cap)),
            groups=(min(1024, -(-op.width // self._local_size)), width),
        )


def float_bits(value: float | np.float32) -> int:
    """A float32 as a constant of a kernel."""
    return int(np.float32(value).view(np.uint32))


def matmul_tile(narrow_rows: int, width: int, n_columns: int, max_shared_bytes: int) -> tuple[int, int]:
    """Rows and tokens of a workgroup of matmul in steps of `width` rows; a tile with fewer rows has more columns.

    narrow_rows: rows of a tile for few tokens, if the matrix has enough columns and the device enough shared memory.
    """
    if width > NARROW_TOKENS and matmul_bytes(WIDE_TILE, WIDE_TILE) <= max_shared_bytes:
        return WIDE_TILE, WIDE_TILE
    tokens = next(n for n in (16, 32, NARROW_TOKENS) if n >= min(width, NARROW_TOKENS))
    for rows in (32, 64):
        if rows >= narrow_rows and n_columns % _columns(rows) == 0 and matmul_bytes(rows, tokens) <= max_shared_bytes:
            return rows, tokens
    return WIDE_TILE, max(tokens, 32)  # each invocation has eight activations


def _columns(tile_rows: int) -> int:
    """Columns of a tile of matmul: each invocation takes 32 weights."""
    return 32 * MATMUL_SIZE // tile_rows


def matmul_bytes(tile_rows: int, tile_tokens: int) -> int:
    """Bytes of shared memory of a tile: rows of float16, each with 16 bytes of padding."""
    return (tile_rows + tile_tokens) * (2 * _columns(tile_rows) + 16)


def matmul_subgroups(
    tile_rows: int, tile_tokens: int, subgroup_size: int, matrix_shape: tuple[int, int, int]
) -> tuple[int, int]:
    """Subgroups of a workgroup of matmul along rows and along tokens."""
    n_subgroups = MATMUL_SIZE // subgroup_size
    along_rows = min(1 << n_subgroups.bit_length() // 2, tile_rows // matrix_shape[0])
    return along_rows, min(n_subgroups // along_rows, tile_tokens // matrix_shape[1])


def suits_matmul(planes: WeightPlanes) -> bool:
    """Whether a matrix divides into whole tiles of cooperative matrices."""
    return planes.n_columns % _columns(WIDE_TILE) == 0 and planes.n_rows % 16 == 0


def suits_tiled_attention(op: Attention, max_shared_bytes: int) -> bool:
    """Whether a layer's heads suit attention_tiled, and its tiles of keys, values, scores and weights the device."""
    n_splits = value_splits(op.head_dim)
    row_bytes = 2 * op.head_dim + 2 * op.head_dim // n_splits + 2 * 16
    n_bytes = KV_BLOCK * row_bytes + ATTENTION_TILE_ROWS * (4 * 36 + 16 * 5)
    is_shaped = op.head_dim % (32 * n_splits) == 0 and op.head_dim <= 256
    return is_shaped and n_bytes <= max_shared_bytes and op.n_heads <= ATTENTION_TILE_ROWS * op.n_kv_heads


def value_splits(head_dim: int) -> int:
    """Workgroups of attention_tiled that share the values of a head."""
    return 1 if head_dim <= 128 else 2


def lanes_of_key(head_dim: int, subgroup_size: int) -> int:
    """Number of neighbouring lanes that share one key in attention, eight dimensions each."""
    eighths: int = 1 << (head_dim // 8 - 1).bit_length()
    return min(eighths, subgroup_size)


def heads_together(n_sharing: int) -> int:
    """Query heads of a workgroup of attention, which share keys. n_sharing: query heads that share a key head."""
    return max(n for n in (1, 2, 3, 4) if n_sharing % n == 0)


def rotation_buffers(buffers: ModelBuffers, op: Rotation) -> tuple[Buffer | None, Buffer | None, Buffer | None]:
    """The table of a rotation, the weights behind it, and the queries' factors by position, where there are."""
    return (
        None if op.rope is None else buffers.rope_tables[op.rope],
        None if op.weights is None else buffers.head_weights[op.weights],
        None if op.temperature is None else buffers.query_factors[op.temperature],
    )


def rotation_constants(op: Rotation) -> tuple[int, int]:
    """How many dimensions of a head rotate, and whether neighbours do so together."""
    return (0, 0) if op.rope is None else (op.rope.dims, int(op.rope.pairing == "interleaved"))


def quantizes(op: Attention, y: Activation) -> bool:
    """Whether attention writes its result as q16 blocks too: not where two heads would share one."""
    return y.q16 is not None and op.head_dim % BLOCK == 0


def score_constants(buffers: ModelBuffers, op: Attention) -> tuple[int, int, int, int]:
    """Scale and soft cap of scores, window, and blocks of the ring that the cache is."""
    softcap = float_bits(op.softcap) if op.softcap else 0
    return float_bits(op.scale), softcap, op.window, buffers.n_ring_blocks[op.layer]


def cache_constants(buffers: ModelBuffers) -> tuple[int, int]:
    """Whether keys and values are cached as q8_0."""
    return int(buffers.type_k == "q8_0"), int(buffers.type_v == "q8_0")
