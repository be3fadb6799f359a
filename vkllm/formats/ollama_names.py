"""Files of ollama's registry that name keys and tensors otherwise than llama.cpp does, read as if they did not.

Their data is the same. A tensor whose name would then be there twice keeps it.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from gguf import GGUFValueType, ReaderField

from vkllm.formats.gguf_header import TensorInfo

Fields = dict[str, ReaderField]
Tensors = dict[str, TensorInfo]

_ARCHITECTURES = {"gptoss": "gpt-oss", "olmo3": "olmo2"}
"""Ollama's names and llama.cpp's."""

_GPT_OSS = (
    (re.compile(r"(blk\.\d+)\.attn_out\.(weight|bias)"), r"\1.attn_output.\2"),
    (re.compile(r"(blk\.\d+)\.attn_sinks"), r"\1.attn_sinks.weight"),
    (re.compile(r"(blk\.\d+)\.ffn_norm\.weight"), r"\1.post_attention_norm.weight"),
)


def in_llama_cpp_s_names(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    """Metadata and tensors of a file, under the names that llama.cpp gives them."""
    architecture = _text_of(fields.get("general.architecture"))
    if architecture not in _ARCHITECTURES:
        return fields, tensors
    name = _ARCHITECTURES[architecture]
    fields = {re.sub(rf"^{architecture}\.", f"{name}.", key): field for key, field in fields.items()}
    fields["general.architecture"] = _text(name)
    if name != "gpt-oss":
        return fields, tensors
    fields["tokenizer.ggml.pre"] = _text("gpt-4o")  # they say that it is the default one
    fields.setdefault("gpt-oss.rope.scaling.type", _text("yarn"))
    if (width := fields.get("gpt-oss.feed_forward_length")) is not None:
        fields.setdefault("gpt-oss.expert_feed_forward_length", width)
    renamed: Tensors = {}
    for old, info in tensors.items():
        new = next((pattern.sub(right, old) for pattern, right in _GPT_OSS if pattern.fullmatch(old)), old)
        new = old if new in tensors else new
        renamed[new] = replace(info, name=new)
    return fields, renamed


def _text_of(field: ReaderField | None) -> str | None:
    """The string of a field, None where it is none."""
    if field is None or list(field.types) != [GGUFValueType.STRING]:
        return None
    return bytes(field.parts[-1]).decode(errors="replace")


def _text(value: str) -> ReaderField:
    """A field with a string."""
    return ReaderField(0, "", [np.frombuffer(value.encode(), np.uint8)], [0], [GGUFValueType.STRING])
