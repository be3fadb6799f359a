"""Heads that predict further tokens: which can run, and what they read: the hidden state of one row, and the token that
followed it."""

from __future__ import annotations

from dataclasses import replace

from vkllm.formats.quants import BLOCK
from vkllm.model.layers.layer_ops import LayerOps
from vkllm.model.ops import Embed, Op
from vkllm.model.spec import ModelSpec, Predictor

HIDDEN = "hidden"
"""The activation that the caller provides: what the model's final norm, or that of the head before, made of the row
before."""

UNSHIFTED = "unshifted"
"""What the model's final norm makes of each row."""


def with_predictors(spec: ModelSpec, n: int) -> ModelSpec:
    """The model with at most n of its predictors."""
    return replace(spec, predictors=spec.predictors[:n])


def can_predict(spec: ModelSpec) -> bool:
    """Whether its first predictor runs on a device: it is of the layer behind the model's, and keeps no state."""
    if not spec.predictors or spec.d_model % BLOCK:
        return False
    first = spec.predictors[0]
    return first.number == spec.n_layers and not any(first.layer.state_sizes)


def joined(spec: ModelSpec, predictor: Predictor) -> list[Op]:
    """The token's embedding and the hidden state, each normed, side by side, through a projection to `x`."""
    make, d_model = LayerOps(spec, predictor.layer, predictor.number), spec.d_model
    embed = Embed(
        output="embedded",
        width=d_model,
        layer=predictor.number,
        weights=(predictor.embedding,),
        n_rows=spec.n_vocab,
        scale=spec.embedding_scale,
    )
    return [
        embed,
        replace(make.norm("nextn.enorm", "embedded", "joined"), output_width=2 * d_model),
        replace(make.norm("nextn.hnorm", HIDDEN, "joined"), output_column=d_model, output_width=2 * d_model),
        make.matvec({"nextn.eh_proj": d_model}, "joined", 2 * d_model, "x"),
    ]
