"""How a file says that positions are rotated, also in contexts longer than the model was trained for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.header import Header
from vkllm.model.spec import HeadNorm, LayerSpec, Rope, Yarn

Pairing = Literal["interleaved", "half"]


def read_rope(
    header: Header, head_dim: int, pairing: Pairing, *, has_yarn_numbers: bool = False, has_long_factors: bool = False
) -> Rope:
    """The rotation, with llama.cpp's defaults.

    has_yarn_numbers: whether the family reads the file's beta_fast, beta_slow and log_multiplier; for the others they
    are 32, 1 and 0, as in llama.cpp. has_long_factors: whether the family has LongRoPE's two sets of factors.

    Raises UnsupportedModel, ModelFileError.
    """
    n_ctx = header.integer("rope.scaling.original_context_length", header.integer("context_length"))
    rope = Rope(
        theta=header.number("rope.freq_base", 10000.0),
        dims=header.integer("rope.dimension_count", head_dim),
        pairing=pairing,
        magnitude=header.number("rope.scaling.attn_factor", 1.0),
        factors="rope_freqs.weight" if header.has("rope_freqs.weight") else None,
    )
    if has_long_factors and rope.factors is None and header.has("rope_factors_long.weight"):
        factors = "rope_factors_short.weight", "rope_factors_long.weight"
        rope = replace(rope, factors=factors[0], long_factors=factors[1], n_ctx_short=n_ctx)
    kind = header.string("rope.scaling.type", "linear")
    kinds = ("none", "linear", "yarn", "longrope") if has_long_factors else ("none", "linear", "yarn")
    if kind not in kinds:
        raise UnsupportedModel(
            f"{header.metadata.path}: rope scaling {kind[:100]!r} is not supported for {header.architecture} models; "
            f"supported: {', '.join(kinds)}"
        )
    factor = _factor(header)
    yarn = _yarn(header, n_ctx, has_yarn_numbers)
    # the share of the magnitude that the model already includes; 0 in most files
    share = max(header.number("rope.scaling.yarn_log_multiplier", 0.0), 0.0) if has_yarn_numbers else 0.0
    if kind == "none":
        return rope
    rope = replace(rope, scale=factor)
    if kind != "yarn" or not 0 < factor < math.inf:  # an invalid factor is refused with the other numbers
        return rope
    return replace(rope, yarn=yarn, magnitude=rope.magnitude * _sharpening(factor) / _sharpening(factor, share))


def rotated_in_window(header: Header, layer: LayerSpec) -> LayerSpec:
    """The layer as one with a sliding window, for which files may name another base. There the file's factor counts
    whatever the kind of scaling, as in llama.cpp."""
    if layer.rope is None:
        return layer
    theta = header.number("rope.freq_base_swa", layer.rope.theta)
    return replace(layer, rope=replace(layer.rope, theta=theta, scale=_factor(header)))


def unscaled_in_window(header: Header, layer: LayerSpec) -> LayerSpec:
    """The layer as one with a sliding window in Gemma 3 and 4: with a base of its own, and never scaled."""
    if layer.rope is None:
        return layer
    theta, magnitude = header.number("rope.freq_base_swa", 10000.0), header.number("rope.scaling.attn_factor", 1.0)
    return replace(layer, rope=replace(layer.rope, theta=theta, scale=1.0, yarn=None, magnitude=magnitude))


def normed_behind(layer: LayerSpec, **fields: Any) -> LayerSpec:
    """The layer with a norm of each head behind the rotation. fields: of HeadNorm."""
    rope = layer.rope
    if rope is None or not 0 < rope.magnitude < math.inf:  # refused with the other numbers
        return replace(layer, head_norm=HeadNorm(is_after_rope=True, **fields))
    norm = HeadNorm(is_after_rope=True, magnitude=rope.magnitude, **fields)
    return replace(layer, rope=replace(rope, magnitude=1.0), head_norm=norm)


def has_sections(header: Header) -> bool:
    """Whether positions have three sections, for pictures; those of text are the same in all three.

    Raises UnsupportedModel for a fourth one, which text does not rotate.
    """
    key = header.full("rope.dimension_sections")
    if not header.metadata.is_array(key):
        return False
    sections = [*header.metadata.integers(key), 0, 0, 0, 0][:4]
    if sections[0] <= 0 or sections[1] <= 0:
        return False
    if sections[3]:
        raise UnsupportedModel(
            f"{header.metadata.path}: its rope.dimension_sections {sections} have a fourth section, which vkllm does "
            "not compute; take another file of the model"
        )
    return True


def _factor(header: Header) -> float:
    """How many times as long as in training contexts are; files may say 0 for 1."""
    return header.number("rope.scaling.factor", header.number("rope.scale_linear", 1.0)) or 1.0


def _yarn(header: Header, n_ctx: int, has_yarn_numbers: bool) -> Yarn:
    fast = header.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = header.number("rope.scaling.yarn_beta_slow", 1.0)
    header.full("rope.scaling.yarn_log_multiplier")
    return Yarn(n_ctx, fast, slow) if has_yarn_numbers else Yarn(n_ctx)


def _sharpening(factor: float, share: float = 1.0) -> float:
    """By how much queries and keys grow for a context that is `factor` times as long, so that attention stays sharp."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
