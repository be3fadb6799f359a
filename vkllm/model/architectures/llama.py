"""Llama 1 to 3, Mistral, SmolLM2, TinyLlama and others that were converted as "llama"."""

from __future__ import annotations

from collections.abc import Mapping

from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.model.architectures.family import Family, same_in_all_layers
from vkllm.model.rope_scaling import ROPE_SCALING_KEYS, rope_scaling
from vkllm.model.spec import ModelSpec


def _spec(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    n_layers = metadata.integer("llama.block_count")
    n_heads = same_in_all_layers(metadata, "llama.attention.head_count", n_layers)
    d_model = metadata.integer("llama.embedding_length")
    head_dim = metadata.integer("llama.attention.key_length", d_model // max(n_heads, 1))
    n_ctx_train = metadata.integer("llama.context_length")
    scaling = rope_scaling(metadata, "llama", n_ctx_train)
    embedding = tensors.get("token_embd.weight")
    return ModelSpec(
        architecture="llama",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=same_in_all_layers(metadata, "llama.attention.head_count_kv", n_layers, n_heads),
        head_dim=head_dim,
        d_model=d_model,
        d_ff=same_in_all_layers(metadata, "llama.feed_forward_length", n_layers),
        n_vocab=embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else 0,
        n_ctx_train=n_ctx_train,
        norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.number("llama.rope.freq_base", 10000.0),
        rope_dims=metadata.integer("llama.rope.dimension_count", head_dim),
        rope_scale=scaling.factor,
        rope_pairing="interleaved",
        has_rope_freqs="rope_freqs.weight" in tensors,
        output_weight="output.weight" if "output.weight" in tensors else "token_embd.weight",
        rope_magnitude=scaling.magnitude,
        yarn=scaling.yarn,
    )


LLAMA = Family(
    _spec,
    keys=frozenset(
        {
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "pooling_type",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.layer_norm_rms_epsilon",
            "rope.dimension_count",
            "rope.freq_base",
            *ROPE_SCALING_KEYS,
        }
    ),
)
