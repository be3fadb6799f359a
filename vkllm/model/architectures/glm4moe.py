"""GLM 4.5, 4.6 and 4.7, those that see pictures on their text side."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, read_gating, read_scale, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.predictors import with_predictors
from vkllm.model.architectures.rope import has_sections
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def glm4moe(header: Header) -> ModelSpec:
    """The first layers are dense, the others have a shared expert too. Its files call the norm before the feed-forward
    layer `post_attention_norm`; the largest model normalizes queries and keys."""
    experts = read_experts(
        header,
        gating=read_gating(header, "sigmoid"),
        has_selection_bias=True,
        is_normalized=header.boolean("expert_weights_norm", False),
        scale=read_scale(header),
    )
    n_dense = header.integer("leading_dense_block_count", 0)
    n_shared = header.integer("expert_shared_count")
    has_sections(header)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        has_head_norm = header.has(f"blk.{number}.attn_q_norm.weight")
        head_norm = HeadNorm() if has_head_norm else None
        layer = replace(layer, head_norm=head_norm, ffn_norm="post_attention_norm")
        if number < n_dense:
            return layer
        mixture = experts[number]
        return with_experts(layer, replace(mixture, d_ff_shared=n_shared * mixture.d_ff))

    return with_predictors(header, dense_model(header, dense_layers(header, "half", change=change)))
