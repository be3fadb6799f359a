"""What a head that predicts a further token reads: the hidden state of one row, and the token that followed it."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.layers.layer_ops import LayerOps
from vkllm.model.ops import Embed, Op
from vkllm.model.spec import ModelSpec, Predictor

HIDDEN = "hidden"
"""The activation that the caller provides: what the model's final norm, or that of the head before, made of a row."""


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
    hidden = make.norm("nextn.hnorm", HIDDEN, "joined")
    return [
        embed,
        make.norm("nextn.enorm", "embedded", "joined"),
        replace(hidden, output_column=d_model),
        make.matvec({"nextn.eh_proj": d_model}, "joined", 2 * d_model, "x"),
    ]
