"""Tiny vocabularies for the tests of text, as fields of a GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from tokenizers.pre_tokenizers import ByteLevel

from vkllm.formats.gguf import Metadata, ModelFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MakeMetadata = Callable[[dict[str, Any]], Metadata]


def tiny_bpe() -> dict[str, Any]:
    """Fields of a byte-level BPE vocabulary: all bytes, a few words, marks of each type, one token without text."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ã ©"]
    words = sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges]
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "[PAD0]", ""]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words + marks,
        "tokenizer.ggml.token_type": [NORMAL] * len(words) + [CONTROL, CONTROL, USER_DEFINED, UNUSED, NORMAL],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(words),
        "tokenizer.ggml.eos_token_id": len(words) + 1,
    }


def tiny_spm() -> dict[str, Any]:
    """Fields of a SentencePiece vocabulary: bytes, letters, pieces, and ø, which is a part of pieces only."""
    pieces = [*"▁abcdeht", "é", "日", "▁a", "ab", "abc", "bc", "▁ab", "aa", "aaa", "øø", "aø", "▁the", "th", "he", "e▁"]
    pieces += ["the", "▁▁", "▁▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<think>"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), USER_DEFINED],
    }


def tiny_gemma4() -> dict[str, Any]:
    """Fields of a vocabulary as Gemma 4's: bytes, characters, merges across spaces, one run of line ends."""
    merges = ["▁ b", "▁b a", "a b", "▁ba ▁ba"]
    pieces = [*"ab▁<>01x4", "\n", *(merge.replace(" ", "") for merge in merges), "\n\n"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [CONTROL, CONTROL, CONTROL, UNKNOWN, *[BYTE] * 256, *[NORMAL] * len(pieces)],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
    }


def write_gguf(path: Path, fields: dict[str, Any]) -> Metadata:
    """Writes a GGUF without tensors and opens it."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return ModelFile.open(path).metadata
