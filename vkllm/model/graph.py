"""The decoder as a list of operations, in reading order.

A graph says what is computed, not where or how: `model/reference.py` runs it in numpy, `gpu/program/program.py`
records it as dispatches. An operation's kind is the name of its kernel, its shader and its test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vkllm.model.spec import ModelSpec

Kind = Literal["embed", "rms_norm", "matvec", "rope", "attention", "swiglu"]


@dataclass(frozen=True)
class Op:
    """One operation on T rows (tokens).

    weights: GGUF tensor names; several of a `matvec` are stacked: one matrix with all their rows.
    inputs, output: names of activations, see `widths`. add: an activation that is added to a matvec's result.
    layer: which layer's key/value cache `rope` stores into and `attention` reads; -1 outside the layers.
    """

    kind: Kind
    output: str
    inputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    add: str | None = None
    layer: int = -1


def widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of every activation: shape (T, columns), float32."""
    q_width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    return {
        "x": spec.d_model,  # the residual stream
        "normed": spec.d_model,
        "qkv": q_width + 2 * kv_width,
        "q": q_width,
        "attended": q_width,
        "gate_up": 2 * spec.d_ff,
        "hidden": spec.d_ff,
        "final": spec.d_model,
        "logits": spec.n_vocab,
    }


def decoder(spec: ModelSpec) -> tuple[Op, ...]:
    """All operations from token ids to the last layer's residual stream `x`."""
    ops = [Op("embed", "x", weights=("token_embd.weight",))]
    for layer in range(spec.n_layers):
        block = f"blk.{layer}."
        qkv = (block + "attn_q.weight", block + "attn_k.weight", block + "attn_v.weight")
        gate_up = (block + "ffn_gate.weight", block + "ffn_up.weight")
        ops += [
            Op("rms_norm", "normed", ("x",), (block + "attn_norm.weight",)),
            Op("matvec", "qkv", ("normed",), qkv),
            Op("rope", "q", ("qkv",), layer=layer),
            Op("attention", "attended", ("q",), layer=layer),
            Op("matvec", "x", ("attended",), (block + "attn_output.weight",), add="x"),
            Op("rms_norm", "normed", ("x",), (block + "ffn_norm.weight",)),
            Op("matvec", "gate_up", ("normed",), gate_up),
            Op("swiglu", "hidden", ("gate_up",)),
            Op("matvec", "x", ("hidden",), (block + "ffn_down.weight",), add="x"),
        ]
    return tuple(ops)


def head(spec: ModelSpec) -> tuple[Op, ...]:
    """From the residual stream of one row to its logits."""
    return (
        Op("rms_norm", "final", ("x",), ("output_norm.weight",)),
        Op("matvec", "logits", ("final",), (spec.output_weight,)),
    )
