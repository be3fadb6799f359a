"""Whether the numbers of a layer make sense, and whether there are kernels for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.quants import BLOCK
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, Mixer, ShortConvolution
from vkllm.model.spec import Experts, LayerSpec

MAX_HEAD_DIM = 512
"""The largest head that the kernels of attention take."""

MAX_LATENT = 576
"""The most numbers that latent attention may cache of a token."""

MAX_EXPERTS, MAX_USED = 512, 32
"""The most experts of a layer, and the most that a token takes, that the kernels of experts take."""


def check_positive(path: Path, numbers: Mapping[str, float]) -> None:
    """Raises ModelFileError for a number that is not positive, or too large for any model."""
    for name, value in numbers.items():
        if not 0 < value < 2**31:
            raise ModelFileError(f"{path}: the {name} is {value}, which no model can have")


def check_wide(path: Path, what: str, width: int) -> None:
    """Raises UnsupportedModel for an activation that is so narrow that its padding could be taken for more of it."""
    if width <= BLOCK // 2:
        raise UnsupportedModel(
            f"{path}: {what} of {width} numbers are not supported; supported: {BLOCK // 2 + 1} or more"
        )


def check_layer(layer: LayerSpec, path: Path) -> None:
    """Raises ModelFileError for numbers that no layer can have, UnsupportedModel for those without kernels.

    A layer without attention has no norm before it, one without a feed-forward layer no norm before that.
    """
    check_positive(path, {"residual scale": abs(layer.residual_scale)})
    if layer.query_temperature is not None:
        check_positive(path, {"attention temperature length": layer.query_temperature.n_ctx})
    if layer.mixer is not None:
        _check_mixer(layer.mixer, path)
    if isinstance(layer.mixer, LatentAttention):
        _check_latent(layer, layer.mixer, path)
    if layer.mixer is None and (layer.n_heads or layer.attn_norm is not None):
        _check_attention(layer, path)
    if layer.experts is not None:
        _check_experts(layer.experts, path)
    has_dense = layer.experts is None or layer.experts.is_beside_dense
    if has_dense and (layer.d_ff or layer.ffn_norm is not None):
        check_positive(path, {"feed-forward length": layer.d_ff})


def _check_attention(layer: LayerSpec, path: Path) -> None:
    numbers = {"head count": layer.n_heads, "key/value head count": layer.n_kv_heads, "head size": layer.head_dim}
    check_positive(path, numbers | {"attention scale": layer.attention_scale})
    if layer.n_heads % layer.n_kv_heads:
        raise ModelFileError(f"{path}: {layer.n_heads} heads cannot share {layer.n_kv_heads} key/value heads evenly")
    if layer.head_dim % 8 or layer.head_dim > MAX_HEAD_DIM:
        raise UnsupportedModel(
            f"{path}: a head size of {layer.head_dim} is not supported; supported: multiples of 8 up to {MAX_HEAD_DIM}"
        )
    check_wide(path, "queries", layer.n_heads * layer.head_dim)
    if layer.rope is not None and not 0 < layer.rope.dims <= layer.head_dim:
        raise ModelFileError(f"{path}: cannot rotate {layer.rope.dims} of {layer.head_dim} dimensions")


def _check_mixer(mixer: Mixer, path: Path) -> None:
    sizes = {name: value for name, value in asdict(mixer).items() if type(value) is int}
    if isinstance(mixer, LatentAttention) and mixer.q_rank == 0:  # a single projection of queries
        del sizes["q_rank"]
    check_positive(path, {f"number {name} of its {type(mixer).__name__}": value for name, value in sizes.items()})
    if isinstance(mixer, LatentAttention) and mixer.q_rank:
        check_wide(path, "queries between two projections", mixer.q_rank)
    match mixer:
        case DeltaNet():
            n_heads, n_groups, group = mixer.n_v_heads, mixer.n_k_heads, mixer.head_dim
            width, size = mixer.v_width, mixer.head_dim
        case Mamba2():
            n_heads, n_groups, group = mixer.n_heads, mixer.n_groups, mixer.d_inner // mixer.n_groups
            width, size = mixer.d_inner, mixer.d_state
        case ShortConvolution():
            n_heads, n_groups, group, width, size = 1, 1, 1, mixer.width, BLOCK
        case _:
            return
    if n_heads % n_groups:
        raise ModelFileError(f"{path}: {n_heads} heads of a state cannot be shared by {n_groups} groups evenly")
    if mixer.n_kernel < 2:
        raise ModelFileError(f"{path}: a convolution over {mixer.n_kernel} token keeps no state; the file is damaged")
    if size % 4 or width % math.lcm(group, 4 if width % BLOCK else BLOCK):
        raise UnsupportedModel(
            f"{path}: a {type(mixer).__name__} of {width} columns, normed by {group}, with states of {size} is not "
            "supported; supported: multiples of 4 in states, and columns in whole groups and multiples of 4"
        )
    check_wide(path, f"results of a {type(mixer).__name__}", width)


def _check_latent(layer: LayerSpec, latent: LatentAttention, path: Path) -> None:
    check_positive(path, {"head count": layer.n_heads, "attention scale": layer.attention_scale})
    cached = latent.kv_rank + latent.rope_dim
    if cached > MAX_LATENT or latent.kv_rank % 8 or latent.rope_dim % 8:
        raise UnsupportedModel(
            f"{path}: latent vectors of {latent.kv_rank} numbers with keys of {latent.rope_dim} are not supported; "
            f"supported: multiples of 8, together up to {MAX_LATENT}"
        )


def _check_experts(experts: Experts, path: Path) -> None:
    n_experts, n_used, n_groups = experts.n_experts, experts.n_used, experts.n_groups
    numbers = {"number of experts": n_experts, "number of experts that a token takes": n_used}
    check_positive(path, numbers | {"width of experts": experts.d_ff, "scale of experts": abs(experts.scale)})
    check_positive(path, {"number of groups": n_groups, "number of groups that a token takes": experts.n_groups_used})
    if experts.d_ff_shared:
        check_positive(path, {"width of the shared expert": experts.d_ff_shared})
    if n_used > n_experts:
        raise ModelFileError(f"{path}: a token cannot take {n_used} of {n_experts} experts")
    if n_groups > 1:
        size = n_experts // n_groups
        if n_experts % n_groups or size < 2:
            raise ModelFileError(f"{path}: {n_experts} experts cannot be {n_groups} groups of the same size")
        if experts.n_groups_used > n_groups or n_used > experts.n_groups_used * size:
            raise ModelFileError(
                f"{path}: a token cannot take {n_used} experts from {experts.n_groups_used} of {n_groups} groups of "
                f"{size}"
            )
    if n_experts > MAX_EXPERTS or n_used > MAX_USED:
        raise UnsupportedModel(
            f"{path}: {n_used} of {n_experts} experts for each token are not supported; supported: up to {MAX_USED} of "
            f"{MAX_EXPERTS}"
        )
