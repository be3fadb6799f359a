"""What a model is, as numbers.

Knows nothing of files: `model/architectures` reads a specification from one, `model/checks.py` checks the two against
each other. Which tensors a model has follows from its operations (`model/graph.py`). Knows nothing of devices, memory
or text either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Pooling = Literal["mean", "cls", "last"]
"""Which rows of the final norm make the embedding of a text: the mean of all, the first or the last."""

NormForm = Literal["rms", "layer", "none"]
"""rms: divided by the root mean square; layer: minus the mean, divided by the standard deviation; none: as it is."""

Function = Literal["silu", "gelu", "relu2"]
"""Activation functions of the feed-forward layer; gelu is its tanh form, relu2 the square of relu."""


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
class Rope:
    """How queries and keys are rotated by their positions. Su et al. 2021, arXiv 2104.09864.

    dims: how many dimensions of a head rotate, the first ones. pairing: which rotate together: "interleaved"
    (2i, 2i+1) or "half" (i, i + dims/2). scale: positions are divided by it; with yarn, only those of slow rotations.
    magnitude: rotated queries and keys are multiplied by it. factors: the tensor (dims/2,) by which frequencies are
    divided, if any; long_factors: another one, for contexts of more than n_ctx_short tokens.
    """

    theta: float
    dims: int
    pairing: Literal["interleaved", "half"] = "half"
    scale: float = 1.0
    magnitude: float = 1.0
    yarn: Yarn | None = None
    factors: str | None = None
    long_factors: str | None = None
    n_ctx_short: int = 0

    def factors_in(self, n_ctx: int) -> str | None:
        """The tensor of factors for a context of n_ctx tokens."""
        return self.long_factors if self.long_factors is not None and n_ctx > self.n_ctx_short else self.factors


@dataclass(frozen=True)
class QueryTemperature:
    """Queries grow with their position p, by 1 + scale * ln(1 + floor((p + offset) / n_ctx)), so that attention stays
    sharp in long contexts. Source: Llama 4, Ministral 3."""

    scale: float
    n_ctx: int
    offset: int = 0


@dataclass(frozen=True)
class HeadNorm:
    """A norm of queries and keys before they are rotated.

    over: what is normalized at once, each "head" or all heads of a "row". has_weight_per_head: the weight has a value
    for each dimension of each head, as it always has for a row; otherwise all heads share one (head_dim,).
    is_after_rope: the weight is applied after the rotation (which changes no norm).
    """

    over: Literal["head", "row"] = "head"
    form: NormForm = "rms"
    has_weight_per_head: bool = False
    is_after_rope: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """A layer of a transformer: grouped-query attention, then a feed-forward layer.

    attention_scale: scores are multiplied by it. softcap: scores s become softcap * tanh(s / softcap); 0 is none.
    window: how many keys a row sees, itself included; 0 is all. rope: None if nothing is rotated.

    Norms are given by the names of their tensors, without ".weight"; None is no such norm. attn_norm and ffn_norm come
    before attention and feed-forward layer, post_attention_norm and post_ffn_norm after them, before the residual is
    added. is_parallel: the feed-forward layer reads what attention reads, and both are added to the same residual.

    function, is_gated: act(gate) * up, or act(up). has_fused_qkv, has_fused_gate_up: the file has one tensor for these.
    residual_scale: what attention and feed-forward layer add is multiplied by it.
    biases: names of the tensors that have a bias, such as "attn_q" or "ffn_norm".
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope: Rope | None
    attention_scale: float
    softcap: float = 0.0
    window: int = 0
    head_norm: HeadNorm | None = None
    attn_norm: str | None = "attn_norm"
    post_attention_norm: str | None = None
    ffn_norm: str | None = "ffn_norm"
    post_ffn_norm: str | None = None
    is_parallel: bool = False
    function: Function = "silu"
    is_gated: bool = True
    has_fused_qkv: bool = False
    has_fused_gate_up: bool = False
    residual_scale: float = 1.0
    query_temperature: QueryTemperature | None = None
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer; with is_causal = False every token sees all others.

    norm_form, norm_eps: of all its norms. n_vocab: tokens that can be chosen; a caller may lower it to the tokenizer's
    number where the matrices have padding rows. embedding_scale: embeddings are multiplied by it. output_weight: the
    tensor of the vocabulary projection, which is the token embedding itself where the file ties them.
    logit_scale, logit_softcap: logits y become cap * tanh(scale * y / cap), or scale * y where the cap is 0.
    """

    architecture: str
    layers: tuple[LayerSpec, ...]
    d_model: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    output_weight: str
    norm_form: NormForm = "rms"
    has_output_norm_bias: bool = False
    has_output_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    is_causal: bool = True

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Query heads of the layer that has most."""
        return self._most(lambda layer: layer.n_heads)

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads of the layer that has most."""
        return self._most(lambda layer: layer.n_kv_heads)

    @property
    def head_dim(self) -> int:
        """Size of the largest head."""
        return self._most(lambda layer: layer.head_dim)

    @property
    def d_ff(self) -> int:
        """Width of the widest feed-forward layer."""
        return self._most(lambda layer: layer.d_ff)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """All kinds of rotation that its layers have, each once."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))

    def _most(self, number: Callable[[LayerSpec], int]) -> int:
        return max(map(number, self.layers), default=0)
