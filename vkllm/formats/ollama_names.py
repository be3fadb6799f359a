"""Files of ollama's registry whose keys and tensors differ from those that llama.cpp reads, read as if they did not.

The matrices are the same. What differs: names of architectures, keys and tensors; keys that are left out, with values
that the family is known by; the parts of a model that see and hear, which lie in the same file and are passed over
here. A tensor whose name would then be there twice keeps it. Source: `llama/compat` of ollama's repository, which says
what its own program does with these files (read at fb30760, August 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType, ReaderField

from vkllm.formats.gguf_header import TensorInfo

Fields = dict[str, ReaderField]
Tensors = dict[str, TensorInfo]

_OTHER_SENSES = ("v.", "mm.", "a.", "s.", "model.vision_tower.")
"""How names of tensors begin that belong to images and sounds."""

_OTHER_KEYS = re.compile(
    r"(vision|audio|mm)\..*|(image|audio|vision|video)_.*|.*_token_id|rope\.mrope_interleaved|ssm\.v_head_reordered|mtp\..*"
)
"""Keys of an architecture that are about them, or about how the file was made."""

_MTP = "mtp."
"""How names of tensors for further tokens begin, in another form than vkllm's."""

_Value = str | int | float


@dataclass(frozen=True)
class _Family:
    """What files of ollama with some architecture have otherwise. name: llama.cpp's of the architecture.

    keys: theirs, and llama.cpp's in their place. defaults: of keys that they leave out. pre: of the tokenizer, where
    they say nothing or "default". tensors: patterns of their names, and llama.cpp's. marks: keys and tensors, of which
    a file of theirs has one; without any, all of the family are. may_see: tensors of images and sounds are a mark, too.
    change: what else is to be done.
    """

    name: str
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, _Value] = field(default_factory=dict)
    pre: str | None = None
    tensors: tuple[tuple[re.Pattern[str], str], ...] = ()
    marks: tuple[str, ...] = ()
    may_see: bool = True
    change: Callable[[Fields, Tensors], None] = lambda fields, tensors: None


def in_llama_cpp_s_names(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    """Metadata and tensors of a file, under the names that llama.cpp gives them."""
    architecture = _text_of(fields.get("general.architecture"))
    families = [family for theirs, family in _FAMILIES if theirs == architecture]
    family = next((each for each in families if _is_ollama_s(each, architecture or "", fields, tensors)), None)
    if family is None:
        return fields, tensors
    prefix = f"{family.name}."
    named = {re.sub(rf"^{architecture}\.", prefix, key): value for key, value in fields.items()}
    named["general.architecture"] = _text(family.name)
    for theirs, ours in family.keys.items():
        if (value := named.pop(prefix + theirs, None)) is not None:
            named.setdefault(prefix + ours, value)
    for key, default in family.defaults.items():
        named.setdefault(prefix + key, _field(default))
    if family.pre is not None and _text_of(named.get("tokenizer.ggml.pre")) in (None, "", "default"):
        named["tokenizer.ggml.pre"] = _text(family.pre)
    named = {key: value for key, value in named.items() if not _is_of_other_senses(key, prefix)}
    kept = {name: info for name, info in tensors.items() if not name.startswith((*_OTHER_SENSES, _MTP))}
    renamed: Tensors = {}
    for old, info in kept.items():
        new = next((pattern.sub(right, old) for pattern, right in family.tensors if pattern.fullmatch(old)), old)
        new = old if new in kept else new
        renamed[new] = replace(info, name=new)
    family.change(named, renamed)
    return named, renamed


def _is_ollama_s(family: _Family, architecture: str, fields: Fields, tensors: Tensors) -> bool:
    if not family.marks or (family.may_see and any(name.startswith((*_OTHER_SENSES, _MTP)) for name in tensors)):
        return True
    return any(f"{architecture}.{mark}" in fields or mark in tensors for mark in family.marks)


def _is_of_other_senses(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and _OTHER_KEYS.fullmatch(key.removeprefix(prefix)) is not None


def _cut_vocabulary(fields: Fields, tensors: Tensors) -> None:
    """Leaves out tokens without a row in the table of embeddings: those that stand for images."""
    table = tensors.get("token_embd.weight")
    tokens = fields.get("tokenizer.ggml.tokens")
    if table is None or tokens is None or list(tokens.types) != [GGUFValueType.ARRAY, GGUFValueType.STRING]:
        return
    ends = _ends_of_strings(tokens.parts[-1])
    n = table.shape[0]
    if len(ends) <= n:
        return
    fields["tokenizer.ggml.tokens"] = _with(tokens, tokens.parts[-1][: ends[n - 1]], n)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if (numbers := fields.get(key)) is not None and len(numbers.types) == 2:
            fields[key] = _with(numbers, numbers.parts[-1][:n], n)


def _ends_of_strings(items: npt.NDArray[Any]) -> list[int]:
    """Where each string of an array ends, in a run of (length, bytes) pairs that was checked when it was read."""
    data, end, ends = items.tobytes(), 0, []
    while end < len(data):
        end += 8 + int.from_bytes(data[end : end + 8], "little")
        ends.append(end)
    return ends


def _gemma3(fields: Fields, tensors: Tensors) -> None:
    """The larger models were trained for contexts that are eight times shorter, which their files do not say."""
    _cut_vocabulary(fields, tensors)
    if _number_of(fields.get("gemma3.context_length")) >= 131072:
        fields.setdefault("gemma3.rope.scaling.type", _text("linear"))
        fields.setdefault("gemma3.rope.scaling.factor", _field(8.0))


def _gemma4(fields: Fields, tensors: Tensors) -> None:
    """Their files say that the tokenizer is SentencePiece's, and have the merges of the one that it is."""
    if _text_of(fields.get("tokenizer.ggml.model")) == "llama":
        fields["tokenizer.ggml.model"] = _text("gemma4")


def _qwen35(fields: Fields, tensors: Tensors) -> None:
    """Layers without attention have no key/value heads in their files; llama.cpp's have one number for all layers."""
    key = f"{_text_of(fields['general.architecture'])}.attention.head_count_kv"
    heads = fields.get(key)
    if heads is not None and len(heads.types) == 2 and heads.types[1] != GGUFValueType.STRING:
        fields[key] = _field(max((int(n) for n in heads.parts[-1]), default=0))


def _lfm2(fields: Fields, tensors: Tensors) -> None:
    """The width of the feed-forward layers is wrong in some files."""
    if (gate := tensors.get("blk.0.ffn_gate.weight")) is not None:
        fields["lfm2.feed_forward_length"] = _field(gate.shape[0])


def _gpt_oss(fields: Fields, tensors: Tensors) -> None:
    fields["tokenizer.ggml.pre"] = _text("gpt-4o")
    if (width := fields.get("gpt-oss.feed_forward_length")) is not None:
        fields.setdefault("gpt-oss.expert_feed_forward_length", width)


def _glm_flash(fields: Fields, tensors: Tensors) -> None:
    """Their keys give the sizes of heads, llama.cpp's those of what is cached, and of heads under other names."""
    rank, rope = (
        _number_of(fields.get(f"deepseek2.{key}")) for key in ("attention.kv_lora_rank", "rope.dimension_count")
    )
    if (head := fields.get("deepseek2.attention.key_length")) is not None:
        fields["deepseek2.attention.key_length_mla"] = fields["deepseek2.attention.value_length_mla"] = head
    fields["deepseek2.attention.key_length"] = _field(int(rank + rope))
    fields["deepseek2.attention.value_length"] = _field(int(rank))
    fields["deepseek2.attention.head_count_kv"] = _field(1)
    fields["tokenizer.ggml.pre"] = _text("glm4")


_SSM_DT = ((re.compile(r"(blk\.\d+\.ssm_dt)"), r"\1.bias"),)
_NORM = ((re.compile(r"norm\.weight"), "output_norm.weight"),)
_QWEN35_MARKS = (
    "vision.block_count",
    "image_token_id",
    "ssm.v_head_reordered",
    "rope.mrope_interleaved",
    "blk.0.ssm_dt",
)

_FAMILIES: tuple[tuple[str, _Family], ...] = (
    (
        "gptoss",
        _Family(
            "gpt-oss",
            defaults={"rope.scaling.type": "yarn"},
            tensors=(
                (re.compile(r"(blk\.\d+)\.attn_out\.(weight|bias)"), r"\1.attn_output.\2"),
                (re.compile(r"(blk\.\d+)\.attn_sinks"), r"\1.attn_sinks.weight"),
                (re.compile(r"(blk\.\d+)\.ffn_norm\.weight"), r"\1.post_attention_norm.weight"),
            ),
            change=_gpt_oss,
        ),
    ),
    ("olmo3", _Family("olmo2")),
    (
        "gemma3",
        _Family(
            "gemma-embedding",
            keys={"rope.local.freq_base": "rope.freq_base_swa", "rope.global.freq_base": "rope.freq_base"},
            defaults={"rope.freq_base_swa": 10000.0},
            tensors=(
                (re.compile(r"dense\.0\.weight"), "dense_2.weight"),
                (re.compile(r"dense\.1\.weight"), "dense_3.weight"),
                *_NORM,
            ),
            marks=("dense.0.weight", "norm.weight"),
            may_see=False,
        ),
    ),
    (
        "gemma3",
        _Family(
            "gemma3",
            keys={"rope.local.freq_base": "rope.freq_base_swa", "rope.global.freq_base": "rope.freq_base"},
            defaults={
                "attention.layer_norm_rms_epsilon": 1e-6,
                "rope.freq_base": 1e6,
                "rope.freq_base_swa": 10000.0,
            },
            marks=("mm.tokens_per_image", "vision.block_count", "rope.local.freq_base", "rope.global.freq_base"),
            change=_gemma3,
        ),
    ),
    (
        "gemma4",
        _Family(
            "gemma4",
            tensors=((re.compile(r"(blk\.\d+)\.ffn_gate_inp\.per_expert_scale"), r"\1.ffn_down_exps.scale"),),
            marks=("vision.block_count", "audio.block_count", "blk.0.ffn_gate_inp.per_expert_scale"),
            change=_gemma4,
        ),
    ),
    *(
        (name, _Family(name, tensors=_SSM_DT, marks=_QWEN35_MARKS, change=_qwen35))
        for name in ("qwen35", "qwen35moe", "qwen3next")
    ),
    (
        "lfm2",
        _Family(
            "lfm2",
            pre="lfm2",
            tensors=((re.compile(r"output_norm\.weight"), "token_embd_norm.weight"),),
            marks=("output_norm.weight",),
            change=_lfm2,
        ),
    ),
    (
        "mistral3",
        _Family(
            "mistral3",
            keys={
                "rope.scaling.beta_fast": "rope.scaling.yarn_beta_fast",
                "rope.scaling.beta_slow": "rope.scaling.yarn_beta_slow",
                "rope.scaling.mscale_all_dim": "rope.scaling.yarn_log_multiplier",
                "rope.scaling_beta": "attention.temperature_scale",
            },
            pre="tekken",
            marks=("rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta", "vision.block_count"),
        ),
    ),
    ("llama4", _Family("llama4", marks=("vision.block_count",))),
    ("nemotron_h_moe", _Family("nemotron_h_moe", marks=("mtp.block_count",))),
    (
        "glm4moelite",
        _Family("deepseek2", defaults={"expert_group_count": 1, "expert_group_used_count": 1}, change=_glm_flash),
    ),
)
"""By ollama's names of architectures. Of several that suit a file, the first is taken."""


def _text_of(value: ReaderField | None) -> str | None:
    """The string of a field, None where it is none."""
    if value is None or list(value.types) != [GGUFValueType.STRING]:
        return None
    return bytes(value.parts[-1]).decode(errors="replace")


def _number_of(value: ReaderField | None) -> float:
    """The number of a field, 0 where it is none."""
    if value is None or len(value.types) != 1 or value.types[0] == GGUFValueType.STRING:
        return 0
    return float(value.parts[-1][0])


def _text(value: str) -> ReaderField:
    return ReaderField(0, "", [np.frombuffer(value.encode(), np.uint8)], [0], [GGUFValueType.STRING])


def _field(value: _Value) -> ReaderField:
    """A field with a string, an integer or a float."""
    match value:
        case str():
            return _text(value)
        case int():
            return ReaderField(0, "", [np.array([value], np.uint32)], [0], [GGUFValueType.UINT32])
        case _:
            return ReaderField(0, "", [np.array([value], np.float32)], [0], [GGUFValueType.FLOAT32])


def _with(value: ReaderField, items: npt.NDArray[Any], n: int) -> ReaderField:
    """An array with n other items."""
    return value._replace(parts=[*value.parts[:-2], np.array([n], np.uint64), items])
