"""Attention in steps of one token: one dispatch with the norms, the rotations and the store of the new key and value.

Knows what attention_fused needs; `decode.py` says what it is fused with.
"""

from __future__ import annotations

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.attention_operations import (
    cache_constants,
    heads_together,
    lanes_of_key,
    latent_dim,
    quantizes,
    rotation_buffers,
    rotation_constants,
    score_constants,
)
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.choices import DecodeTuning
from vkllm.gpu.program.kernels import ATTENTION_PIECE, HEAD_VALUES, HEAD_WEIGHTS, KERNELS, MAX_PARTS
from vkllm.gpu.program.links import Link
from vkllm.model.memory.needs import whole_blocks
from vkllm.model.ops import Attention, HeadNormalization, Rotation
from vkllm.model.spec import LayerSpec, ModelSpec


class AttentionDecode:
    """Makes the links. step, chain, failure: see Decode. most_polls: of a wait, 0 if nothing is chained."""

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        buffers: ModelBuffers,
        step: Buffer,
        tuning: DecodeTuning,
        chain: Buffer,
        failure: Buffer,
        most_polls: int,
    ) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._tuning = tuning
        self._chain = chain
        self._failure = failure
        self._most_polls = most_polls
        n_pieces = -(-whole_blocks(buffers.n_ctx) // ATTENTION_PIECE)
        self._most_parts = min(MAX_PARTS, n_pieces)

        def n_numbers(layer: LayerSpec) -> int:
            return layer.n_heads * self._n_parts(layer) * (layer.head_dim + 4)

        self._partials = device.buffer(
            max((n_numbers(layer) for layer in spec.layers if layer.has_attention), default=4)
        )

    def _n_parts(self, layer: LayerSpec | Attention) -> int:
        """Parts that attention cuts the context, or the window, into in a layer."""
        heads = heads_together(layer.n_heads // layer.n_kv_heads, layer.head_dim)
        most = min(self._most_parts, self._device.info.max_groups[0] * heads // layer.n_heads)
        if n_seen := layer.window or layer.chunk:
            most = min(most, -(-n_seen // ATTENTION_PIECE))
        return min(max(self._tuning.attention_groups // layer.n_heads, 1), most)

    def link(
        self, attention: Attention, arrivals: int, rope: Rotation | None = None, norm: HeadNormalization | None = None
    ) -> Link:
        """Attention with the rotations and the norm before it, which also stores the new key and value.

        rope: None where queries are ready and the new key is in the cache. Where it is there, a barrier orders the
        dispatch: those of a chain load keys before they wait. arrivals: where the chain counts the parts that have
        ended.
        """
        rope = rope or _no_rotation(attention)
        has_newest = rope.n_kv_heads > 0
        is_chained = self._tuning.is_chained and has_newest
        tuning, buffers = self._tuning, self._buffers
        qkv, y = self._buffers.activations[rope.input].values, self._buffers.activations[attention.output]
        sinks = None if attention.sinks is None else buffers.vectors[attention.sinks]
        k_cache, v_cache = buffers.caches_of(attention.cache_layer, qkv)
        table, weights, factors = rotation_buffers(buffers, rope)
        place = "after" if weights else "none"
        if norm is not None and norm.weights is not None:
            place, weights = "before", buffers.head_weights[norm.weights]
        norms = norm is not None and norm.norm.form == "rms"
        heads, n_parts = (
            heads_together(attention.n_heads // attention.n_kv_heads, attention.head_dim),
            self._n_parts(attention),
        )
        n_groups = attention.n_heads // heads * n_parts
        lanes = lanes_of_key(attention.head_dim, self._device.info.subgroup_size)
        dispatch = self._device.dispatch(
            KERNELS["attention_fused"],
            (
                *(qkv, table or qkv, k_cache, v_cache, self._partials, y.values, y.q16 or y.values),
                *(y.scales or y.values, self._step, self._chain, self._failure, weights or qkv, factors or qkv),
                sinks or qkv,
            ),
            constants=(
                *(tuning.attention_size, attention.n_heads, attention.n_kv_heads, attention.head_dim),
                *(lanes, heads, *rotation_constants(rope)),
                *(
                    tuning.keys_at_once,
                    *cache_constants(buffers, is_latent=attention.is_latent),
                    self._most_polls * is_chained,
                ),
                *(*score_constants(buffers, attention), int(quantizes(attention, y)), HEAD_WEIGHTS.index(place)),
                *(int(factors is not None), int(norms), float_bits(norm.eps if norm else 0)),
                *(HEAD_VALUES.index(norm.values if norm else "as they are"), int(not has_newest), int(rope.has_gates)),
                *(attention.chunk, int(sinks is not None), latent_dim(attention)),
            ),
            groups=(n_groups, 1),
            push=(n_parts, arrivals, 0, 0),
            is_chained=is_chained,
        )
        return Link((dispatch,), n_groups if is_chained else 0)


def _no_rotation(op: Attention) -> Rotation:
    """What queries that are ready need."""
    return Rotation(
        output=op.input,
        width=op.n_heads * op.head_dim,
        input=op.input,
        layer=op.layer,
        rope=None,
        n_heads=op.n_heads,
        n_kv_heads=0,
        head_dim=op.head_dim,
    )
