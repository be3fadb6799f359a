"""Small random models: what of them is given, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFWriter, TokenType
from tiny_gguf import byte_tokens

D, FF, N_HEADS, N_KV_HEADS, HEAD_DIM, N_VOCAB = 64, 96, 4, 2, 16, 288
Shape = tuple[int, ...]

Q, KV = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
ATTENTION: dict[str, Shape] = {
    "attn_q.weight": (Q, D),
    "attn_k.weight": (KV, D),
    "attn_v.weight": (KV, D),
    "attn_output.weight": (D, Q),
}
GATED: dict[str, Shape] = {"ffn_gate.weight": (FF, D), "ffn_up.weight": (FF, D), "ffn_down.weight": (D, FF)}
UNGATED: dict[str, Shape] = {"ffn_up.weight": (FF, D), "ffn_down.weight": (D, FF)}
NORM: dict[str, Shape] = {"attn_norm.weight": (D,)}
NORMS: dict[str, Shape] = {**NORM, "ffn_norm.weight": (D,)}
POST_NORMS: dict[str, Shape] = {"post_attention_norm.weight": (D,), "post_ffw_norm.weight": (D,)}
HEAD_NORMS: dict[str, Shape] = {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
NORMS_OF_EACH_HEAD: dict[str, Shape] = {
    "attn_q_norm.weight": (N_HEADS, HEAD_DIM),
    "attn_k_norm.weight": (N_KV_HEADS, HEAD_DIM),
}
RMS = {"attention.layer_norm_rms_epsilon": 0.02}
LAYER_NORM = {"attention.layer_norm_epsilon": 0.02}


def biases(shapes: dict[str, Shape], *names: str) -> dict[str, Shape]:
    """A bias for each of these weights."""
    return {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in names}


FUSED: dict[str, Shape] = {"attn_qkv.weight": (Q + 2 * KV, D), "attn_output.weight": (D, Q)}
LLAMA = {**NORMS, **ATTENTION, **GATED}


class Variant(NamedTuple):
    """A model: metadata without the architecture in front, tensors of all layers or of each, and others."""

    architecture: str
    n_layers: int
    fields: dict[str, Any]
    of_layer: dict[str, Shape] | list[dict[str, Shape]]
    others: Mapping[str, Shape] = MappingProxyType({})


def write(path: Path, variant: Variant, seed: int = 0, n_ctx: int = 256) -> Path:
    """Writes a model; always the same numbers, all exact in float16."""
    architecture, n_layers, fields, of_layer, others = variant
    writer = GGUFWriter(path, architecture)
    defaults = {
        "context_length": n_ctx,
        "embedding_length": D,
        "block_count": n_layers,
        "feed_forward_length": FF,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": N_KV_HEADS,
        "rope.dimension_count": HEAD_DIM,
    }
    for key, value in (defaults | fields).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*byte_tokens(), *[f"<{number}>" for number in range(N_VOCAB - 257)], "qq"])
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * (N_VOCAB - 257) + [TokenType.NORMAL])
    writer.add_token_merges(["q q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    random = np.random.default_rng(seed)

    d_model = (defaults | fields)["embedding_length"]

    def tensor(name: str, shape: Shape) -> None:
        is_near_one = ("norm" in name and name.endswith("weight")) or "scale" in name
        values = random.normal(1.0, 0.2, shape) if is_near_one else random.normal(0.0, 1.2 * D**-0.5, shape)
        if name.endswith("ssm_a"):
            values = -np.exp(4 * values)
        if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")) and shape[-1] > 128:
            values = values / 4  # scores of large heads stay small without a scale
        writer.add_tensor(name, values.astype(np.float16).astype(np.float32))

    tensor("token_embd.weight", (N_VOCAB, d_model))
    tensor("token_embd_norm.weight" if architecture.startswith("lfm2") else "output_norm.weight", (d_model,))
    for tensor_name, shape in others.items():
        tensor(tensor_name, shape)
    for layer in range(n_layers):
        for tensor_name, shape in (of_layer[layer] if isinstance(of_layer, list) else of_layer).items():
            tensor(f"blk.{layer}.{tensor_name}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
