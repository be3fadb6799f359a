"""What a model is, as numbers, and which tensors follow from them.

Knows nothing of files: `model/architectures` reads a specification from one, `model/checks.py` checks the two against
each other. Knows nothing of devices, memory or text either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Pooling = Literal["mean", "cls", "last"]
"""Which rows of the final norm make the embedding of a text: the mean of all, the first or the last."""


@dataclass(frozen=True)
class Yarn:
    """Which rotations YaRN leaves unscaled. Peng et al. 2023, arXiv 2309.00071.

    Rotations that turn at least beta_fast times within n_ctx tokens, the context before scaling, keep their speed;
    those that turn at most beta_slow times are scaled fully; those between, partly. strength: how much of its speed an
    unscaled rotation keeps, 1 in the paper.
    """

    n_ctx: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    strength: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with grouped-query attention and a gated feed-forward layer.

    rope_pairing: which dimensions rotate together: "interleaved" (2i, 2i+1) or "half" (i, i + rope_dims/2).
    rope_scale: positions are divided by it; with yarn, only those of slow rotations. rope_magnitude: rotated queries
    and keys are multiplied by it. output_weight: the tensor of the vocabulary projection, which is the token embedding
    itself where the file ties them. n_vocab: tokens that can be chosen; a caller may lower it to the tokenizer's number
    where the matrices have padding rows.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    rope_theta: float
    rope_dims: int
    rope_scale: float
    rope_pairing: Literal["interleaved", "half"]
    has_rope_freqs: bool
    output_weight: str
    rope_magnitude: float = 1.0
    yarn: Yarn | None = None


def tensors_of_layer(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    """Name, without `blk.N.` in front, and shape (rows, columns) of the tensors that a layer reads."""
    q_rows, kv_rows = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    return {
        "attn_norm.weight": (spec.d_model,),
        "attn_q.weight": (q_rows, spec.d_model),
        "attn_k.weight": (kv_rows, spec.d_model),
        "attn_v.weight": (kv_rows, spec.d_model),
        "attn_output.weight": (spec.d_model, q_rows),
        "ffn_norm.weight": (spec.d_model,),
        "ffn_gate.weight": (spec.d_ff, spec.d_model),
        "ffn_up.weight": (spec.d_ff, spec.d_model),
        "ffn_down.weight": (spec.d_model, spec.d_ff),
    }


def tensors_outside_layers(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors that belong to no layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (spec.n_vocab, spec.d_model),
        "output_norm.weight": (spec.d_model,),
        spec.output_weight: (spec.n_vocab, spec.d_model),
    }
    if spec.has_rope_freqs:
        shapes["rope_freqs.weight"] = (spec.rope_dims // 2,)
    return shapes


def each_expected(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model reads, one after the other: a file may claim any number of them."""
    yield from tensors_outside_layers(spec).items()
    for layer in range(spec.n_layers):
        for name, shape in tensors_of_layer(spec, layer).items():
            yield f"blk.{layer}.{name}", shape


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape (rows, columns) of every tensor that the model reads; for a specification that was checked."""
    return dict(each_expected(spec))
