"""Llama 1 to 3, Mistral, Mixtral, SmolLM2, TinyLlama and others that were converted as "llama"."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.experts import read_experts, scales, with_experts
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.spec import LayerSpec, ModelSpec, Rope


def llama(header: Header) -> ModelSpec:
    """Its numbers; biases where the file has them; experts in all layers where it counts any."""
    if header.integer("expert_count", 0) == 0:
        return dense_model(header, dense_layers(header, "interleaved"))
    experts = read_experts(header, has_own_width=False, is_normalized=True)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        return with_experts(layer, replace(experts[number], scales=scales(header, number)))

    return dense_model(header, dense_layers(header, "interleaved", change=change))


def llama_spec(
    *,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_model: int,
    d_ff: int,
    n_vocab: int,
    n_ctx_train: int,
    head_dim: int | None = None,
    rope: Rope | None = None,
    output_weight: str = "output.weight",
) -> ModelSpec:
    """A Llama of these sizes without a file, for plans and measurements."""
    head_dim = head_dim or d_model // n_heads
    layer = LayerSpec(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_ff=d_ff,
        rope=rope or Rope(10000.0, head_dim, "interleaved"),
        attention_scale=head_dim**-0.5,
    )
    return ModelSpec(
        architecture="llama",
        layers=(layer,) * n_layers,
        d_model=d_model,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        norm_eps=1e-5,
        output_weight=output_weight,
    )
