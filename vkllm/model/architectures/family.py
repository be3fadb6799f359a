"""What the families of this folder share: most of a specification reads the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vkllm.model.architectures.header import MATRICES, Header
from vkllm.model.architectures.rope import Pairing, read_rope
from vkllm.model.spec import LayerSpec, ModelSpec


@dataclass(frozen=True)
class Family:
    """A family of models, which `general.architecture` names. models: what people call those that belong to it.

    read: reads the specification. It need not check numbers or tensors; keys that it does not ask the header for are
    refused, unless they change nothing (model/keys.py).
    """

    models: str
    read: Callable[[Header], ModelSpec]


def dense_layers(
    header: Header,
    pairing: Pairing,
    biases: Iterable[str] = MATRICES,
    change: Callable[[int, LayerSpec], LayerSpec] = lambda number, layer: layer,
    *,
    has_yarn_numbers: bool = False,
    has_long_factors: bool = False,
) -> tuple[LayerSpec, ...]:
    """The layers of a family like llama. biases: tensors that may have one. change: what a layer has that llama's have
    not, by its number. has_yarn_numbers, has_long_factors: see read_rope."""
    n_heads = header.per_layer("attention.head_count")
    n_kv_heads = header.per_layer("attention.head_count_kv", n_heads)
    has_experts = f"{header.architecture}.expert_count" in header.metadata  # some have no dense layer
    d_ff = header.per_layer("feed_forward_length", [0] * header.n_layers if has_experts else None)
    head_dim = header.integer("attention.key_length", header.integer("embedding_length") // max(n_heads[0], 1))
    rope = read_rope(header, head_dim, pairing, has_yarn_numbers=has_yarn_numbers, has_long_factors=has_long_factors)
    layers = []
    for number in range(header.n_layers):
        layer = LayerSpec(
            n_heads=n_heads[number],
            n_kv_heads=n_kv_heads[number],
            head_dim=head_dim,
            d_ff=d_ff[number],
            rope=rope,
            attention_scale=max(head_dim, 1) ** -0.5,
            has_fused_qkv=header.has(f"blk.{number}.attn_qkv.weight"),
            biases=header.biases(number, biases),
        )
        layers.append(change(number, layer))
    return tuple(layers)


def dense_model(header: Header, layers: Sequence[LayerSpec], **fields: Any) -> ModelSpec:
    """A model of these layers. fields: of ModelSpec, where they differ from llama's."""
    embedding = header.tensors.get("token_embd.weight")
    spec = ModelSpec(
        architecture=header.architecture,
        layers=tuple(layers),
        d_model=header.integer("embedding_length"),
        n_vocab=embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else 0,
        n_ctx_train=header.integer("context_length"),
        norm_eps=0.0,
        output_weight="output.weight" if header.has("output.weight") else "token_embd.weight",
        has_output_bias=header.has("output.bias"),
        is_causal=header.boolean("attention.causal", True),
    )
    header.integer("pooling_type", 0)
    key = (
        "attention.layer_norm_rms_epsilon"
        if fields.get("norm_form", "rms") == "rms"
        else "attention.layer_norm_epsilon"
    )
    return replace(spec, **{"norm_eps": header.number(key), **fields})
