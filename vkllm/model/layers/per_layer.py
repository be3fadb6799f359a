"""What Gemma 4 adds to its layers: embeddings of the token for each layer, and a scale of what leaves it."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.layers.layer_ops import LayerOps, copied, padded
from vkllm.model.ops import Activate, Embed, Matvec, Norm, Op
from vkllm.model.spec import LayerSpec, ModelSpec


def per_layer_embeddings(spec: ModelSpec) -> list[Op]:
    """The inputs of all layers, side by side: half from a table of their own, half from the token's embedding."""
    size = spec.d_per_layer
    width = size * spec.n_layers
    return [
        Embed(
            output="table_rows",
            width=width,
            weights=("per_layer_token_embd.weight",),
            n_rows=spec.n_embeddings or spec.n_vocab,
            scale=size**0.5,
            column_padding=padded(width) - width,
        ),
        copied("x", "normed", spec.d_model),
        Matvec(
            output="projected_embedding",
            width=width,
            input="normed",
            weights=("per_layer_model_proj.weight",),
            n_rows=(width,),
            n_columns=padded(spec.d_model),
            column_padding=padded(spec.d_model) - spec.d_model,
            biases=(None,),
            factor=spec.d_model**-0.5,
        ),
        Norm(
            output="per_layer",
            width=width,
            input="projected_embedding",
            form=spec.norm_form,
            eps=spec.norm_eps,
            weight="per_layer_proj_norm.weight",
            group=size,
            add="table_rows",
            factor=0.5**0.5,
        ),
    ]


def per_layer_input(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Adds the layer's own embedding, through a gate that reads the residual stream."""
    make, size = LayerOps(spec, layer, number), spec.d_per_layer
    gate = make.matvec({"inp_gate": size}, "normed", spec.d_model, "per_layer_gate", pads_rows=True)
    last = make.norm_behind("post_norm", "added", "x", add="x")
    return [
        make.copy("x", "normed", spec.d_model),
        gate,
        Activate(
            output="per_layer_hidden",
            width=padded(size),
            input="per_layer_gate",
            layer=number,
            function="gelu",
            is_gated=False,
            up="per_layer",
            up_column=number * size,
        ),
        make.matvec({"proj": spec.d_model}, "per_layer_hidden", size, "added"),
        scaled(last, number) if layer.has_output_scale else last,
    ]


def scaled(op: Op, number: int) -> Norm:
    """The last operation of a layer, its result multiplied by the layer's scale."""
    assert isinstance(op, Norm)
    return replace(op, scale=f"blk.{number}.layer_output_scale.weight")
