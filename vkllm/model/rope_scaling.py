"""How a file scales its rotary positions, for contexts longer than the model was trained for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import Metadata
from vkllm.model.spec import Yarn

ROPE_SCALING_KEYS = (
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
)
"""The keys that `rope_scaling` reads, without the architecture in front."""


class RopeScaling(NamedTuple):
    """What `ModelSpec` keeps of it: rope_scale, rope_magnitude and yarn."""

    factor: float
    magnitude: float
    yarn: Yarn | None


def rope_scaling(metadata: Metadata, architecture: str, n_ctx_train: int) -> RopeScaling:
    """Reads the scaling, with llama.cpp's defaults. Raises UnsupportedModel, ModelFileError."""
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.string(prefix + "type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"{metadata.path}: rope scaling {kind[:100]!r} is not supported; supported: none, linear, yarn"
        )
    factor = metadata.number(prefix + "factor", metadata.number(f"{architecture}.rope.scale_linear", 1.0)) or 1.0
    magnitude = metadata.number(prefix + "attn_factor", 1.0)
    if kind == "none":
        factor = 1.0
    if kind != "yarn" or not 0 < factor < math.inf:  # an invalid factor is refused with the other numbers
        return RopeScaling(factor, magnitude, None)
    yarn = Yarn(
        n_ctx=metadata.integer(prefix + "original_context_length", n_ctx_train),
        beta_fast=metadata.number(prefix + "yarn_beta_fast", 32.0),
        beta_slow=metadata.number(prefix + "yarn_beta_slow", 1.0),
        strength=metadata.number(prefix + "yarn_ext_factor", 1.0),
    )
    if yarn.strength < 0:  # in llama.cpp this means the default
        yarn = replace(yarn, strength=1.0)
    if yarn.strength != 0:
        # the share of the magnitude that the model already includes; 0 in most files
        share = max(metadata.number(prefix + "yarn_log_multiplier", 0.0), 0.0)
        magnitude *= _sharpening(factor) / _sharpening(factor, share)
    return RopeScaling(factor, magnitude, yarn)


def _sharpening(factor: float, share: float = 1.0) -> float:
    """By how much queries and keys grow for a context that is `factor` times as long, so that attention stays sharp."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
