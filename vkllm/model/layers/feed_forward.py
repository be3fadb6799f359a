"""The dense feed-forward layer."""

from __future__ import annotations

from vkllm.model.layers.layer_ops import LayerOps, padded
from vkllm.model.ops import Activate, Op
from vkllm.model.spec import LayerSpec, ModelSpec


def feed_forward(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Gate, up and down, or only up and down, added to the residual stream."""
    make = LayerOps(spec, layer, number)
    ops: list[Op] = [] if layer.is_parallel else [make.before(layer.ffn_norm)]
    if not layer.is_gated:
        names = {"ffn_up": layer.d_ff}
    elif layer.has_fused_gate_up:
        names = {"ffn_up": 2 * layer.d_ff}
    else:
        names = {"ffn_gate": layer.d_ff, "ffn_up": layer.d_ff}
    n_parts = 2 if layer.is_gated and layer.has_fused_gate_up else 1
    ops += [
        make.matvec(names, "normed", spec.d_model, "gate_up", pads_rows=True, n_parts=n_parts),
        Activate(
            output="hidden",
            width=padded(layer.d_ff),
            input="gate_up",
            layer=number,
            function=layer.function,
            is_gated=layer.is_gated,
        ),
    ]
    return ops + make.ending("ffn_down", "hidden", layer.d_ff, layer.post_ffn_norm)
