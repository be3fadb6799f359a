"""Feed-forward layers and mixtures of experts, divided by their hidden columns."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.shards.cuts import Cut, RankLayer, without_biases
from vkllm.model.shards.partition import Hidden
from vkllm.model.spec import LayerSpec


def feed_forward_of(layer: LayerSpec, hidden: Hidden, rank: int) -> RankLayer:
    """The layer with those hidden columns of the dense feed-forward layer only."""
    own = replace(
        layer,
        d_ff=len(hidden.blocks),
        biases=without_biases(layer.biases, rank, "ffn_down"),
        parts=(*layer.parts, "ffn_down"),
    )
    cuts = {
        "ffn_gate": Cut(rows=hidden.rows()),
        "ffn_up": _both(hidden, layer.d_ff) if layer.is_gated and layer.has_fused_gate_up else Cut(rows=hidden.rows()),
        "ffn_down": Cut(columns=(hidden.blocks,)),
    }
    return RankLayer(own, cuts)


def _both(hidden: Hidden, d_ff: int) -> Cut:
    """Gate and up in one tensor."""
    return Cut(rows=(*hidden.rows(), *hidden.rows(d_ff)))


def experts_of(layer: LayerSpec, hidden: Hidden, shared: Hidden | None, rank: int) -> RankLayer:
    """The layer with those hidden columns of each expert, and of the shared one; None: the first rank has all of it."""
    experts = layer.experts
    assert experts is not None
    cuts = {
        "ffn_gate_exps": Cut(rows=hidden.rows()),
        "ffn_up_exps": Cut(rows=hidden.rows()),
        "ffn_gate_up_exps": _both(hidden, experts.d_ff),
        "ffn_down_exps": Cut(columns=(hidden.blocks,)),
    }
    own = replace(experts, d_ff=len(hidden.blocks), biases=without_biases(experts.biases, rank, "ffn_down_exps"))
    if shared is not None:
        own = replace(own, d_ff_shared=len(shared.blocks))
        cuts |= {
            "ffn_gate_shexp": Cut(rows=shared.rows()),
            "ffn_up_shexp": Cut(rows=shared.rows()),
            "ffn_down_shexp": Cut(columns=(shared.blocks,)),
        }
    elif rank > 0:
        own = replace(own, d_ff_shared=0, has_shared_gate=False)
    biases = without_biases(layer.biases, rank, "ffn_down_shexp")
    return RankLayer(replace(layer, experts=own, biases=biases, parts=(*layer.parts, "ffn_down_exps")), cuts)
