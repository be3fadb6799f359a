"""DeepSeek 2 and 3, GLM 4.7 Flash and Mistral Small 4: attention to latent vectors, and experts."""

from __future__ import annotations

import math
from dataclasses import replace

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.experts import read_experts, read_gating, read_scale, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.predictors import with_predictors
from vkllm.model.mixers import LatentAttention
from vkllm.model.spec import Experts, Gating, LayerSpec, ModelSpec, QueryTemperature, Rope

_GLM_FLASH_LAYERS, _GLM_FLASH_VOCABULARY = (47, 48), 154880
"""Early files of GLM 4.7 Flash do not say that its router takes the sigmoid."""


def deepseek2(header: Header) -> ModelSpec:
    """Its files have keys and values as products of a latent vector; all but the first layers have experts."""
    return _model(header, _latent(header), scales_by_itself=True)


def mistral4(header: Header) -> ModelSpec:
    """The same, except for how YaRN sharpens attention."""
    return _model(header, _latent(header), scales_by_itself=False)


def _latent(header: Header) -> LatentAttention:
    """Raises UnsupportedModel for files that were converted before keys and values had tensors of their own."""
    if header.has("blk.0.attn_kv_b.weight"):
        raise UnsupportedModel(
            f"{header.metadata.path}: it was converted by an old program, which left keys and values in one tensor "
            "(blk.0.attn_kv_b.weight); take a newer file of the model"
        )
    rope_dim = header.integer("rope.dimension_count")
    for key in ("attention.key_length", "attention.value_length", "attention.q_lora_rank"):
        header.full(key)  # of what is cached, which follows from the others, or of a matrix that is not there
    return LatentAttention(
        q_rank=0 if header.has("blk.0.attn_q.weight") else header.integer("attention.q_lora_rank"),
        kv_rank=header.integer("attention.kv_lora_rank"),
        nope_dim=header.integer("attention.key_length_mla") - rope_dim,
        rope_dim=rope_dim,
        value_dim=header.integer("attention.value_length_mla"),
    )


def _model(header: Header, latent: LatentAttention, *, scales_by_itself: bool) -> ModelSpec:
    n_dense = header.integer("leading_dense_block_count", 0)
    n_shared, experts = header.integer("expert_shared_count", 0), _experts(header)
    scale = header.number("attention.temperature_scale", 0.0)
    n_ctx = header.integer("attention.temperature_length", 0)
    temperature = QueryTemperature(scale, n_ctx) if scale else None

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        assert layer.rope is not None
        magnitude, sharpening = _magnitudes(header, layer.rope, scales_by_itself)
        layer = replace(
            layer,
            n_kv_heads=1,
            head_dim=latent.kv_rank + latent.rope_dim,
            rope=replace(layer.rope, magnitude=magnitude),
            attention_scale=sharpening**2 * max(latent.nope_dim + latent.rope_dim, 1) ** -0.5,
            query_temperature=temperature,
            mixer=latent,
        )
        if number < n_dense or not experts:
            return layer
        own = experts[number]
        return with_mixture(header, number, layer, replace(own, d_ff_shared=own.d_ff * n_shared))

    return with_predictors(header, dense_model(header, dense_layers(header, "interleaved", change=change)))


def _experts(header: Header) -> list[Experts]:
    """Of each layer, if any has experts."""
    gating, is_normalized = _gating(header), header.boolean("expert_weights_norm", False)
    header.full("expert_feed_forward_length")  # dense models have it too
    if not header.integer("expert_count", 0):
        return []
    return read_experts(header, gating=gating, is_normalized=is_normalized, scale=read_scale(header))


def _gating(header: Header) -> Gating:
    embedding = header.tensors.get("token_embd.weight")
    n_vocab = 0 if embedding is None else embedding.shape[0]
    is_flash = header.n_layers in _GLM_FLASH_LAYERS and n_vocab == _GLM_FLASH_VOCABULARY
    return read_gating(header, "sigmoid" if is_flash else "softmax")


def _magnitudes(header: Header, rope: Rope, scales_by_itself: bool) -> tuple[float, float]:
    """By what rotated dimensions and by what all of a query and of a key are multiplied in contexts that are
    rope.scale times as long as in training.

    `yarn_log_multiplier` is 0.1 times the share of the usual sharpening that applies to all dimensions.
    """
    share = header.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    factor = header.number("rope.scaling.attn_factor", 1.0)
    if not 0 < rope.scale < math.inf:  # refused with the other numbers
        return 1.0, 1.0
    length = math.log(rope.scale)
    usual, all_dims = 1 + 0.1 * max(length, 0.0), 1 + 0.1 * share * max(length, 0.0)
    if rope.yarn is None:
        rotated, base = factor, factor * (1 + 0.1 * length)
    else:
        rotated = base = factor * (1.0 if scales_by_itself and share else usual / all_dims)
    return rotated, base * (1 + 0.1 * share * length)
