"""How a file says that positions are rotated, also in contexts longer than the model was trained for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.header import Header
from vkllm.model.spec import Rope, Yarn

Pairing = Literal["interleaved", "half"]


def read_rope(header: Header, head_dim: int, pairing: Pairing, *, has_yarn_betas: bool = True) -> Rope:
    """The rotation, with llama.cpp's defaults. has_yarn_betas: whether the family reads the file's beta_fast and
    beta_slow; llama.cpp always takes 32 and 1 for most.

    Raises UnsupportedModel, ModelFileError.
    """
    rope = Rope(
        theta=header.number("rope.freq_base", 10000.0),
        dims=header.integer("rope.dimension_count", head_dim),
        pairing=pairing,
        magnitude=header.number("rope.scaling.attn_factor", 1.0),
        factors="rope_freqs.weight" if header.has("rope_freqs.weight") else None,
    )
    kind = header.string("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"{header.metadata.path}: rope scaling {kind[:100]!r} is not supported; supported: none, linear, yarn"
        )
    factor = header.number("rope.scaling.factor", header.number("rope.scale_linear", 1.0)) or 1.0
    n_ctx = header.integer("rope.scaling.original_context_length", header.integer("context_length"))
    yarn = Yarn(
        n_ctx=n_ctx,
        beta_fast=header.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=header.number("rope.scaling.yarn_beta_slow", 1.0),
        strength=header.number("rope.scaling.yarn_ext_factor", 1.0),
    )
    # the share of the magnitude that the model already includes; 0 in most files
    share = max(header.number("rope.scaling.yarn_log_multiplier", 0.0), 0.0)
    if kind == "none":
        return rope
    rope = replace(rope, scale=factor)
    if kind == "linear" or not 0 < factor < math.inf:  # an invalid factor is refused with the other numbers
        return rope
    if not has_yarn_betas:
        yarn = replace(yarn, beta_fast=32.0, beta_slow=1.0)
    if yarn.strength < 0:  # in llama.cpp this means the default
        yarn = replace(yarn, strength=1.0)
    if yarn.strength == 0:
        return replace(rope, yarn=yarn)
    return replace(rope, yarn=yarn, magnitude=rope.magnitude * _sharpening(factor) / _sharpening(factor, share))


def _sharpening(factor: float, share: float = 1.0) -> float:
    """By how much queries and keys grow for a context that is `factor` times as long, so that attention stays sharp."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
