"""What families with mixtures of experts share: how a file says which experts a layer has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.header import Header
from vkllm.model.keys import GATINGS
from vkllm.model.spec import Experts, Gating, LayerSpec

EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""The tensors of a layer's experts."""


def read_gating(header: Header, default: Gating) -> Gating:
    """What `expert_gating_func` says. Raises UnsupportedModel for a number that is not known."""
    number = header.integer("expert_gating_func", 0)
    if number not in (0, *GATINGS):
        raise UnsupportedModel(
            f"{header.metadata.path}: expert_gating_func is {number}, which is not supported; supported: "
            f"{', '.join(f'{number} ({name})' for number, name in GATINGS.items())}"
        )
    return GATINGS.get(number, default)


def read_experts(header: Header, *, has_own_width: bool = True, **fields: Any) -> list[Experts]:
    """The experts of each layer. fields: of Experts, where they differ from its defaults.

    has_own_width: experts are as wide as `expert_feed_forward_length` says or, without it, share the layer's
    `feed_forward_length` evenly; otherwise each is as wide as that.
    """
    n_experts = header.integer("expert_count")
    n_used = header.per_layer("expert_used_count")
    d_ff = header.per_layer("feed_forward_length", [0] * header.n_layers)
    if has_own_width:
        shares = [width // max(used, 1) for width, used in zip(d_ff, n_used, strict=True)]
        own = header.per_layer("expert_feed_forward_length", shares)
        d_ff = [width or share for width, share in zip(own, shares, strict=True)]
    else:
        header.full("expert_feed_forward_length")  # files have it all the same
    mixture = Experts(n_experts, n_used[0], d_ff[0], **fields)
    n_groups, n_groups_used = header.integer("expert_group_count", 0), header.integer("expert_group_used_count", 0)
    if n_groups > 1:
        mixture = replace(mixture, n_groups=n_groups, n_groups_used=n_groups_used)
    return [replace(mixture, n_used=used, d_ff=width) for used, width in zip(n_used, d_ff, strict=True)]


def with_experts(layer: LayerSpec, experts: Experts, **fields: Any) -> LayerSpec:
    """The layer with experts in place of its dense feed-forward layer. fields: of LayerSpec."""
    return replace(layer, d_ff=0, experts=experts, **fields)


def with_mixture(header: Header, number: int, layer: LayerSpec, experts: Experts) -> LayerSpec:
    """The same, where a layer's tensors say whether experts are chosen with a bias, whether gate and up are one tensor,
    and which of them have scales."""
    has_bias = header.has(f"blk.{number}.exp_probs_b.bias")
    is_fused = header.has(f"blk.{number}.ffn_gate_up_exps.weight")
    mixture = replace(experts, scales=scales(header, number), has_selection_bias=has_bias, has_fused_gate_up=is_fused)
    return with_experts(layer, mixture)


def read_scale(header: Header) -> float:
    """By what the weights of the chosen experts are multiplied."""
    return header.number("expert_weights_scale", 0.0) or 1.0


def scales(header: Header, number: int) -> tuple[str, ...]:
    """Which tensors of a layer's experts have a scale for each expert, as those in NVFP4 do."""
    return tuple(name for name in EXPERTS if header.has(f"blk.{number}.{name}.scale"))
