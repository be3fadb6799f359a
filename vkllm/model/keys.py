"""Metadata that a file's architecture does not read: keys that change nothing are accepted, others are refused.

A key that vkllm does not read may change what the model computes; ignoring it would make every answer silently wrong.
So an architecture names the keys that it reads; here are the others that may be there, with the values at which they
change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import Metadata, Plain, no_model
from vkllm.model.spec import Gating, ModelSpec

NEVER_COUNT = frozenset(
    {
        "vocab_size",  # the rows of the embedding say it
        "tensor_data_layout",
        "attention.layer_norm_epsilon",  # of a different kind of norm than the architecture uses
        "rope.scaling.finetuned",
        "rope.scaling.yarn_attn_factor",  # follows from the others; llama.cpp does not read it either, nor
        "rope.scaling.yarn_ext_factor",
        # of layers with a sliding window: where there is one, its own key is refused
        "attention.sliding_window_pattern",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
        "rope.freq_base_swa",
    }
)
"""Keys that change nothing, whatever they say."""

_OFF = (0,)
_FACTOR = (0, 1)  # llama.cpp takes 0 for "no factor"
_NEUTRAL: dict[str, tuple[Plain, ...]] = {
    "attention.clamp_kqv": _OFF,
    "attention.max_alibi_bias": _OFF,
    "attention.output_scale": _FACTOR,
    "attention.shared_kv_layers": _OFF,
    "attention.temperature_length": _OFF,
    "attention.temperature_scale": _OFF,
    "attention.value_scale": _FACTOR,
    "attn_logit_softcapping": _OFF,
    "final_logit_softcapping": _OFF,
    "router_logit_softcapping": _OFF,
    "embedding_length_per_layer_input": _OFF,
    "embedding_scale": _FACTOR,
    "expert_count": _OFF,
    "expert_feed_forward_length": _OFF,
    "expert_gating_func": _OFF,
    "expert_group_count": _OFF,
    "expert_group_used_count": _OFF,
    "expert_shared_count": _OFF,
    "expert_shared_feed_forward_length": _OFF,
    "expert_used_count": _OFF,
    "expert_weights_norm": (False,),
    "expert_weights_scale": _FACTOR,
    "interleave_moe_layer_step": _OFF,
    "leading_dense_block_count": _OFF,
    "logit_scale": _FACTOR,
    "moe_every_n_layers": _OFF,
    "nextn_predict_layers": _OFF,
    "residual_scale": _FACTOR,
    "rope.dimension_sections": _OFF,
    "rope.scaling.alpha": _FACTOR,
    "use_parallel_residual": (False,),
}
GATINGS: dict[int, Gating] = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}
"""What `expert_gating_func` says; llama.cpp's numbers."""

_MEANINGS = {
    "attention.sliding_window": "attention over a sliding window",
    "attention.value_length": "values of another size than keys",
    "expert": "a mixture of experts",
    "nextn": "layers that predict further tokens",
    "softcapping": "soft caps of logits",
    "scale": "a scale of its own",
    "ssm": "a state space model",
}
_SHOWN = 100
"""Characters of a name or a value in an error: files may hold megabytes of them."""


def shown(name: object) -> str:
    """A name or a value from a file, for an error: on one line, quoted, and not too long."""
    text = repr(name[:_SHOWN] if isinstance(name, str | list) else name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_is_model(metadata: Metadata) -> None:
    """Raises UnsupportedModel for a GGUF that declares itself to be something other than a model."""
    if (kind := no_model(metadata)) is not None:
        raise UnsupportedModel(f"{metadata.path}: this file is {kind}; take the model's own file.")


def check_keys(spec: ModelSpec, metadata: Metadata, read: Collection[str]) -> None:
    """Raises UnsupportedModel for a key of the architecture that requires a computation that vkllm lacks.

    read: the keys, without the architecture in front, that made the specification. Keys outside the architecture
    (general, tokenizer, split, quantize and whatever tools leave behind) say nothing of what is computed.
    """
    prefix = f"{spec.architecture}."
    for key in metadata:
        name = key.removeprefix(prefix)
        if name == key or name in read or name in NEVER_COUNT:
            continue
        value = metadata.plain(key)
        if not _is_neutral(name, value, spec):
            meaning = next((f" ({meaning})" for part, meaning in _MEANINGS.items() if part in name), "")
            raise UnsupportedModel(
                f"{metadata.path}: its metadata has {shown(key)[1:-1]} = {shown(value)}{meaning}, which vkllm does not "
                f"compute for {spec.architecture} models; take another model, or another file of it."
            )


def _is_neutral(name: str, value: Plain | list[Plain], spec: ModelSpec) -> bool:
    """Whether a key changes nothing at this value, or an array at all of its values."""
    if isinstance(value, list):
        return all(_is_neutral(name, each, spec) for each in value)
    if isinstance(value, str):
        return False
    mixtures = [layer.experts for layer in dict.fromkeys(spec.layers) if layer.experts is not None]
    match name:
        case "expert_gating_func" if mixtures:  # says again what the family does anyway
            return value == 0 or all(GATINGS.get(int(value)) == mixture.gating for mixture in mixtures)
        case "expert_weights_norm" if mixtures:
            return all(value == mixture.is_normalized for mixture in mixtures)
        case "interleave_moe_layer_step" if value == 1:
            return all(layer.experts is not None for layer in spec.layers)
        case "attention.sliding_window":  # one as long as the longest context cuts nothing off
            return value == 0 or value >= spec.n_ctx_train
        case "attention.value_length":
            return value == spec.head_dim
        case "attention.scale":
            return value == 0 or math.isclose(value, spec.head_dim**-0.5, rel_tol=1e-6)
        case "embedding_length_out":
            return value in (0, spec.d_model)
    return value in _NEUTRAL.get(name, ())
