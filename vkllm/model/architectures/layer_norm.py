"""Families with layer norms that have biases: StarCoder 2, StableLM, Nemotron."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.architectures.family import dense_layers, dense_model
from vkllm.model.architectures.header import MATRICES, Header
from vkllm.model.spec import Function, HeadNorm, LayerSpec, ModelSpec

_BIASES = ("attn_norm", "ffn_norm", *MATRICES)


def starcoder2(header: Header) -> ModelSpec:
    """A feed-forward layer of GELU without a gate."""
    return _model(header, dense_layers(header, "half", _BIASES, lambda _, layer: _ungated(layer, "gelu")))


def nemotron(header: Header) -> ModelSpec:
    """A feed-forward layer of squared ReLU without a gate."""
    return _model(header, dense_layers(header, "half", _BIASES, lambda _, layer: _ungated(layer, "relu2")))


def stablelm(header: Header) -> ModelSpec:
    """StableLM 2 12B has no norm before the feed-forward layer, which then reads what attention reads, and normalizes
    queries and keys."""
    header.boolean("use_parallel_residual", False)  # as in llama.cpp, the tensors decide

    def change(number: int, layer: LayerSpec) -> LayerSpec:
        if header.has(f"blk.{number}.attn_q_norm.weight"):
            layer = replace(layer, head_norm=HeadNorm(form="layer", has_weight_per_head=True))
        if not header.has(f"blk.{number}.ffn_norm.weight"):
            layer = replace(layer, ffn_norm=None, is_parallel=True)
        return layer

    return _model(header, dense_layers(header, "half", _BIASES, change))


def _ungated(layer: LayerSpec, function: Function) -> LayerSpec:
    return replace(layer, function=function, is_gated=False)


def _model(header: Header, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    return dense_model(header, layers, norm_form="layer", has_output_norm_bias=header.has("output_norm.bias"))
