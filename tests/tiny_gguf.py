"""Writes a small but sound GGUF: a llama of one layer with the 256 bytes, two control tokens and "qq" as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType

N_BYTES = 256
IM_START, IM_END = N_BYTES, N_BYTES + 1
N_VOCAB, D, FF, N_CTX = N_BYTES + 3, 32, 256, 256
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokens() -> list[str]:
    """Token n is byte n, in GPT-2's alphabet."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(N_BYTES)]


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    down_format: GGMLQuantizationType | None = None,
    pooling: int | None = None,
    n_ctx: int = N_CTX,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Writes the file and returns its path. down_format: of one matrix, whose bytes are zero then. pooling: its
    pooling_type. fields: more metadata, or other values; integers become uint32 where they can. extra: more tensors."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(D)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D)
    if pooling is not None:
        writer.add_uint32(f"{architecture}.pooling_type", pooling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*byte_tokens(), "<|im_start|>", "<|im_end|>", "qq"])
    writer.add_token_types([TokenType.NORMAL] * N_BYTES + [TokenType.CONTROL] * 2 + [TokenType.NORMAL])
    writer.add_token_merges(["q q"])
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (fields or {}).items():
        kind = GGUFValueType.get_type(value)
        if kind is GGUFValueType.INT32 and value >= 0:
            kind = GGUFValueType.UINT32 if value < 2**32 else GGUFValueType.UINT64
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, D),
        "output_norm.weight": (D,),
        "blk.0.attn_norm.weight": (D,),
        "blk.0.ffn_norm.weight": (D,),
        "blk.0.attn_q.weight": (D, D),
        "blk.0.attn_k.weight": (D, D),
        "blk.0.attn_v.weight": (D, D),
        "blk.0.attn_output.weight": (D, D),
        "blk.0.ffn_gate.weight": (FF, D),
        "blk.0.ffn_up.weight": (FF, D),
        "blk.0.ffn_down.weight": (D, FF),
        **(extra or {}),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name == "blk.0.ffn_down.weight" and down_format is not None:
            block, n_bytes = GGML_QUANT_SIZES[down_format]
            writer.add_tensor(name, np.zeros((D, FF // block * n_bytes), np.uint8), raw_dtype=down_format)
        else:
            writer.add_tensor(name, random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
