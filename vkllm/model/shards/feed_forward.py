"""Feed-forward layers and mixtures of experts, divided by their hidden columns."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.shards.cuts import Cut, RankLayer, without_biases
from vkllm.model.spec import LayerSpec


def feed_forward_of(layer: LayerSpec, hidden: range, rank: int) -> RankLayer:
    """The layer with those hidden columns of the dense feed-forward layer only."""
    both = (hidden, range(layer.d_ff + hidden.start, layer.d_ff + hidden.stop))
    own = replace(
        layer,
        d_ff=len(hidden),
        biases=without_biases(layer.biases, rank, "ffn_down"),
        parts=(*layer.parts, "ffn_down"),
    )
    cuts = {
        "ffn_gate": Cut(rows=(hidden,)),
        "ffn_up": Cut(rows=both if layer.is_gated and layer.has_fused_gate_up else (hidden,)),
        "ffn_down": Cut(columns=(hidden,)),
    }
    return RankLayer(own, cuts)


def experts_of(layer: LayerSpec, hidden: range, shared: range | None, rank: int) -> RankLayer:
    """The layer with those hidden columns of each expert, and of the shared one; None: the first rank has all of it."""
    experts = layer.experts
    assert experts is not None
    both = (hidden, range(experts.d_ff + hidden.start, experts.d_ff + hidden.stop))
    cuts = {
        "ffn_gate_exps": Cut(rows=(hidden,)),
        "ffn_up_exps": Cut(rows=(hidden,)),
        "ffn_gate_up_exps": Cut(rows=both),
        "ffn_down_exps": Cut(columns=(hidden,)),
    }
    own = replace(experts, d_ff=len(hidden), biases=without_biases(experts.biases, rank, "ffn_down_exps"))
    if shared is not None:
        own = replace(own, d_ff_shared=len(shared))
        cuts |= {
            "ffn_gate_shexp": Cut(rows=(shared,)),
            "ffn_up_shexp": Cut(rows=(shared,)),
            "ffn_down_shexp": Cut(columns=(shared,)),
        }
    elif rank > 0:
        own = replace(own, d_ff_shared=0, has_shared_gate=False)
    biases = without_biases(layer.biases, rank, "ffn_down_shexp")
    return RankLayer(replace(layer, experts=own, biases=biases, parts=(*layer.parts, "ffn_down_exps")), cuts)
