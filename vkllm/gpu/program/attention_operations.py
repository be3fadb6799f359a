"""Attention and what prepares it as dispatches: norms of heads, rotations, attention itself.

Knows the kernels' contracts (`kernels.py`), the model's buffers and the device's tuning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vkllm.formats.quants import BLOCK
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.attention_parts import partial_words, parts_of
from vkllm.gpu.program.buffers import Activation, ModelBuffers
from vkllm.gpu.program.choices import Tuning
from vkllm.gpu.program.kernels import (
    AHEAD,
    ATTENTION_TILE_ROWS,
    HEAD_WEIGHTS,
    KERNELS,
    KV_BLOCK,
    MAX_NARROW,
    NORM_FORMS,
)
from vkllm.gpu.program.stored_forms import NOTHING, StoredForms
from vkllm.model.ops import Attention, HeadNormalization, Op, Rotation
from vkllm.model.state_ops import LatentRotation

MOST_APART = 64
"""Rows between the beginnings of sequences in a step, at most: those between them are wasted."""


class AttentionOperations:
    """Makes dispatches for steps of several rows. step: the step buffer on the device."""

    def __init__(self, device: Device, buffers: ModelBuffers, step: Buffer, tuning: Tuning, forms: StoredForms) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._forms = forms
        self._tuning = tuning
        self._local_size = tuning.local_size

    def head_norm(self, op: HeadNormalization, width: int) -> Dispatch:
        """The norm of queries and keys."""
        qkv, weight = self._buffers.activations[op.output].values, self._buffers.head_weights.get(op.weights)
        n_groups: tuple[int, int]
        if op.norm.over == "row":
            n_groups, size = (1, int(op.n_kv_heads > 0)), self._local_size
            columns = op.n_heads * op.head_dim, op.n_kv_heads * op.head_dim
        else:
            n_groups, size = (op.n_heads, op.n_kv_heads), self._device.info.subgroup_size
            columns = op.head_dim, op.head_dim
        assert op.norm.over == "head" or (op.values == "as they are" and not op.has_gates)
        assert op.norm.form == "rms" or op.values != "keys"
        n_v_groups = op.n_kv_heads if op.values == "norm" else 0
        return self._device.dispatch(
            KERNELS["head_norm"],
            (qkv, weight or qkv, self._step),
            constants=(
                *(size, op.width, n_groups[0], columns[0], n_groups[1], columns[1], float_bits(op.eps)),
                *(NORM_FORMS.index(op.norm.form), int(weight is not None), int(op.norm.has_weight_per_head)),
                *(columns[0] * (1 + op.has_gates), n_v_groups, int(op.values == "keys")),
            ),
            groups=(sum(n_groups) + n_v_groups, width),
        )

    def rope(self, op: Rotation, width: int) -> Dispatch:
        """Rotates queries and keys, and stores keys and values."""
        n_fours = (op.n_heads + 2 * op.n_kv_heads) * op.head_dim // 4
        qkv, q = self._buffers.activations[op.input].values, self._buffers.activations[op.output].values
        k_cache, v_cache = self._buffers.caches_of(op.layer, q)
        table, weights, factors = rotation_buffers(self._buffers, op)
        return self._device.dispatch(
            KERNELS["rope"],
            (qkv, table or qkv, q, k_cache, v_cache, self._step, weights or qkv, factors or qkv),
            constants=(
                *(self._local_size, op.n_heads, op.n_kv_heads, op.head_dim),
                *(*rotation_constants(op), *cache_constants(self._buffers), self._buffers.tables[op.layer]),
                *(HEAD_WEIGHTS.index("after" if weights else "none"), int(factors is not None), int(op.has_gates)),
            ),
            groups=(-(-n_fours // self._local_size), width),
        )

    def latent_rope(self, op: LatentRotation, width: int) -> Dispatch:
        """Queries of latent attention, and what it caches."""
        latent, buffers = op.latent, self._buffers
        q = buffers.activations[op.output].values
        inputs = (buffers.activations[name].values for name in (op.queries, op.absorbed))
        k_cache, _ = buffers.caches_of(op.layer, q)
        factors = None if op.temperature is None else buffers.query_factors[op.temperature]
        assert op.rope.dims == latent.rope_dim
        n_fours = op.n_heads * (latent.kv_rank + latent.rope_dim) // 4
        return self._device.dispatch(
            KERNELS["latent_rope"],
            (
                *(buffers.activations[op.input].values, buffers.rope_tables[op.rope], *inputs, q, k_cache, self._step),
                *(buffers.vectors[op.weight], factors or q),
            ),
            constants=(
                *(self._local_size, op.n_heads, latent.kv_rank, latent.nope_dim, latent.rope_dim),
                *(
                    int(op.rope.pairing == "interleaved"),
                    int(buffers.type_k == "q8_0"),
                    buffers.tables[op.layer],
                ),
                *(int(factors is not None), float_bits(op.eps)),
            ),
            groups=(1 + -(-n_fours // self._local_size), width),
        )

    def attention(self, op: Attention, width: int) -> Dispatch:
        """Attention of queries to the cache."""
        q, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        k_cache, v_cache = self._buffers.caches_of(op.cache_layer, q.values)
        if width > MAX_NARROW and self._is_tiled(op):
            return self._attention_tiled(op, width)
        heads = _heads_of_group(op)
        lanes = lanes_of_key(op.head_dim, self._device.info.subgroup_size)
        n_groups, stride = op.n_heads // heads, self._tuning.keys_at_once * self._tuning.attention_size // lanes
        parts = parts_of(op, stride, self._buffers.n_ctx, self._tuning.part_keys)
        tokens = self._tokens_together(op)
        n_sharing = 1
        if width <= MAX_NARROW:  # rows may be of any sequences, and there are few
            room = self._buffers.partials.n_words - self._buffers.first_partial
            n_wanted, tokens = self._tuning.decode.attention_groups, 1
            n_sharing = parts.n_sharing(
                width, n_groups, n_wanted, n_wanted // heads, room // partial_words(op.n_heads, op.value_dim)
            )
        sinks, gates, gates_columns = self._sinks_and_gates(op)
        return self._device.dispatch(
            KERNELS["attention"],
            (
                *(q.values, k_cache, v_cache, y.values, y.q16 or y.values, y.scales or y.values, self._step),
                *(sinks or q.values, gates or q.values, self._buffers.partials, self._buffers.arrived),
            ),
            constants=(
                *(self._tuning.attention_size, op.n_heads, op.n_kv_heads, op.head_dim),
                *(lanes, heads, tokens, self._tuning.keys_at_once),
                *(*cache_constants(self._buffers, is_latent=op.is_latent), *score_constants(self._buffers, op)),
                *(AHEAD.index(op.ahead), self._forms.of(op.output, width) if quantizes(op, y) else NOTHING),
                *(op.chunk, int(sinks is not None), gates_columns, latent_dim(op)),
                *(parts.keys, parts.log2_parts, n_sharing, parts.most, self._buffers.first_partial // 4),
            ),
            groups=(n_groups * n_sharing, -(-width // tokens)),
        )

    def rows_apart(self, ops: Sequence[Op]) -> int:
        """Sequences of a wide step begin at multiples of this row; 0: such steps are of one sequence."""
        if self._buffers.states:
            return 0
        apart = math.lcm(*(self._tokens_together(op) for op in ops if isinstance(op, Attention)))
        return apart if apart <= MOST_APART else 0

    def _tokens_together(self, op: Attention) -> int:
        """Neighbouring rows of a wide step that a workgroup takes, which must be of one sequence."""
        if self._is_tiled(op):
            return ATTENTION_TILE_ROWS // (op.n_heads // op.n_kv_heads)
        return max(self._tuning.attention_queries // _heads_of_group(op), 1) if op.head_dim <= 512 else 1

    def _is_tiled(self, op: Attention) -> bool:
        suits = suits_tiled_attention(op, self._device.info.max_shared_bytes)
        return self._tuning.has_tiled_attention and suits

    def _attention_tiled(self, op: Attention, width: int) -> Dispatch:
        """The same by cooperative matrices."""
        q, y = self._buffers.activations[op.input], self._buffers.activations[op.output]
        (k_cache, v_cache), info = self._buffers.caches_of(op.cache_layer, q.values), self._device.info
        assert y.q16 is not None and y.scales is not None and info.matrix_shape is not None
        tokens = ATTENTION_TILE_ROWS // (op.n_heads // op.n_kv_heads)
        sinks, gates, gates_columns = self._sinks_and_gates(op)
        return self._device.dispatch(
            KERNELS["attention_tiled"],
            (
                *(q.values, k_cache, v_cache, y.values, y.q16, y.scales, self._step),
                *(sinks or q.values, gates or q.values),
            ),
            constants=(
                ATTENTION_TILE_ROWS // info.matrix_shape[0] * info.subgroup_size,
                *(op.n_heads, op.n_kv_heads, op.head_dim, *cache_constants(self._buffers)),
                *(
                    *info.matrix_shape,
                    *score_constants(self._buffers, op),
                    AHEAD.index(op.ahead),
                    value_splits(op.head_dim),
                ),
                *(op.chunk, int(sinks is not None), gates_columns, self._forms.of(op.output, width)),
            ),
            groups=(op.n_kv_heads * value_splits(op.head_dim), -(-width // tokens)),
        )

    def _sinks_and_gates(self, op: Attention) -> tuple[Buffer | None, Buffer | None, int]:
        """The sinks, the activation with the gates, and its columns."""
        sinks = None if op.sinks is None else self._buffers.vectors[op.sinks]
        if op.gates is None:
            return sinks, None, 0
        n_kv_heads = op.n_kv_heads if op.cache_layer == op.layer else 0
        return sinks, self._buffers.activations[op.gates].values, 2 * (op.n_heads + n_kv_heads) * op.head_dim


def _heads_of_group(op: Attention) -> int:
    """Query heads of a workgroup of attention; sums of parts need registers, too."""
    return heads_together(op.n_heads // op.n_kv_heads, op.head_dim, most=4 if op.head_dim < 512 else 2)


def suits_tiled_attention(op: Attention, max_shared_bytes: int) -> bool:
    """Whether a layer's heads suit attention_tiled, and its tiles of keys, values, scores and weights the device."""
    n_splits = value_splits(op.head_dim)
    row_bytes = 2 * op.head_dim + 2 * op.head_dim // n_splits + 2 * 16
    n_bytes = KV_BLOCK * row_bytes + ATTENTION_TILE_ROWS * (4 * 36 + 16 * 5)
    is_shaped = op.head_dim % (32 * n_splits) == 0 and op.head_dim <= 256 and not op.is_latent
    return is_shaped and n_bytes <= max_shared_bytes and op.n_heads <= ATTENTION_TILE_ROWS * op.n_kv_heads


def value_splits(head_dim: int) -> int:
    """Workgroups of attention_tiled that share the values of a head."""
    return 1 if head_dim <= 128 else 2


def lanes_of_key(head_dim: int, subgroup_size: int) -> int:
    """Number of neighbouring lanes that share one key in attention, eight dimensions each."""
    eighths: int = 1 << (head_dim // 8 - 1).bit_length()
    return min(eighths, subgroup_size)


def heads_together(n_sharing: int, head_dim: int, most: int = 4) -> int:
    """Query heads of a workgroup of attention, which share keys; an RX 7900 has no registers for four latent vectors.

    n_sharing: query heads that share a key head.
    """
    return max(n for n in range(1, most + 1) if n_sharing % n == 0 and (n <= 2 or head_dim <= 512))


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
    return y.q16 is not None and op.value_dim % BLOCK == 0


def latent_dim(op: Attention) -> int:
    """How many numbers of a key its value is; 0 if values are cached."""
    return op.value_dim if op.is_latent else 0


def score_constants(buffers: ModelBuffers, op: Attention) -> tuple[int, int, int, int]:
    """Scale and soft cap of scores, window, and which words of the table of blocks are read."""
    softcap = float_bits(op.softcap) if op.softcap else 0
    return float_bits(op.scale), softcap, op.window, buffers.tables[op.cache_layer]


def cache_constants(buffers: ModelBuffers, *, is_latent: bool = False) -> tuple[int, int]:
    """Whether keys and values are cached as q8_0; latent vectors, which are both, are cached as keys."""
    return int(buffers.type_k == "q8_0"), int((buffers.type_k if is_latent else buffers.type_v) == "q8_0")
