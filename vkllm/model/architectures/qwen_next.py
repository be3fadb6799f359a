"""Qwen 3 Next, 3.5, 3.6 and 3.8: three of four layers have a gated delta net in place of attention."""

from __future__ import annotations

from dataclasses import replace

from vkllm.errors import UnsupportedModel
from vkllm.model.architectures.experts import read_experts, with_mixture
from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.mixers import read_delta_net, with_mixer
from vkllm.model.architectures.predictors import n_predictors, with_predictors
from vkllm.model.mixers import DeltaNet
from vkllm.model.spec import HeadNorm, LayerSpec, ModelSpec


def qwen35(header: Header) -> ModelSpec:
    """The dense ones."""
    return with_predictors(header, dense_model(header, _layers(header, read_delta_net(header))))


def qwen35moe(header: Header) -> ModelSpec:
    """With experts, and one that every token takes through a gate."""
    return _with_mixture(header, read_delta_net(header))


def qwen3next(header: Header) -> ModelSpec:
    """Qwen 3 Next: as qwen35moe, but heads of the delta net lie in another order."""
    return _with_mixture(header, read_delta_net(header, is_qwen3_next=True))


def _layers(header: Header, net: DeltaNet) -> tuple[LayerSpec, ...]:
    has_delta_net = _which_have_a_delta_net(header)

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        layer = replace(layer, ffn_norm="post_attention_norm")
        if has_delta_net[number]:
            return with_mixer(layer, net)
        return replace(layer, head_norm=HeadNorm(), has_query_gates=True)

    layers = dense_layers(header, "half", change=change)
    _check_sections(header, layers)
    return layers


def _which_have_a_delta_net(header: Header) -> list[bool]:
    key = header.full("attention.recurrent_layers")
    header.full("full_attention_interval")
    if header.metadata.is_array(key):
        flags = header.per_layer_flags(key)
    else:
        period = header.integer("full_attention_interval", 4)
        flags = [period < 1 or (number + 1) % period != 0 for number in range(header.n_layers)]
    n = n_predictors(header)
    return [*flags[: header.n_layers - n], *[False] * n]


def _check_sections(header: Header, layers: tuple[LayerSpec, ...]) -> None:
    """Text has the same position in all three sections, so it rotates as without them, if they take all pairs.

    Raises UnsupportedModel where they do not.
    """
    key = header.full("rope.dimension_sections")
    if not header.metadata.is_array(key):
        return
    sections = [*header.metadata.integers(key), 0, 0, 0, 0][:4]
    n_pairs = max((layer.rope.dims // 2 for layer in layers if layer.rope is not None), default=0)
    n_sectors = sum(sections)
    if any(sector >= 3 * sections[sector % 3] for sector in range(min(n_pairs, n_sectors))):
        raise UnsupportedModel(
            f"{header.metadata.path}: its rope.dimension_sections {sections} leave some of {n_pairs} pairs of "
            "dimensions unrotated, which vkllm does not compute; take another file of the model"
        )


def _with_mixture(header: Header, net: DeltaNet) -> ModelSpec:
    experts = read_experts(header, is_normalized=True, has_shared_gate=True)
    width = header.integer("expert_shared_feed_forward_length", 0)
    layers = (
        with_mixture(header, number, layer, replace(experts[number], d_ff_shared=width or layer.d_ff))
        for number, layer in enumerate(_layers(header, net))
    )
    return with_predictors(header, dense_model(header, tuple(layers)))
