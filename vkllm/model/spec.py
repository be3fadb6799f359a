"""What a model is, as numbers.

Knows nothing of files: `model/architectures` reads a specification from one, `model/checks.py` checks the two against
each other. Which tensors a model has follows from its operations (`model/graph.py`). Knows nothing of devices, memory
or text either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, Mixer, ShortConvolution

Pooling = Literal["mean", "cls", "last"]
"""Which rows of the final norm make the embedding of a text: the mean of all, the first or the last."""

NormForm = Literal["rms", "layer", "none"]
"""rms: divided by the root mean square; layer: minus the mean, divided by the standard deviation; none: as it is."""

Function = Literal["silu", "gelu", "relu2", "swiglu_oai"]
"""Activation functions of the feed-forward layer; gelu is its tanh form, relu2 the square of relu. swiglu_oai (gated
only) is gpt-oss': g * sigmoid(1.702 g) * (u + 1), where g = min(gate, 7) and u = up, cut to -7..7."""

Gating = Literal["softmax", "sigmoid", "softmax_of_chosen"]
"""What a router's logits become: softmax over all experts, sigmoid, or softmax over the chosen ones only."""


@dataclass(frozen=True)
class Yarn:
    """Which rotations YaRN leaves unscaled. Peng et al. 2023, arXiv 2309.00071.

    Rotations that turn at least beta_fast times within n_ctx tokens, the context before scaling, keep their speed;
    those that turn at most beta_slow times are scaled fully; those between, partly.
    """

    n_ctx: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


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
    is_after_rope: the weight is applied after the rotation (which changes no norm), and what that multiplies by,
    magnitude, is normalized away: it only makes eps smaller. has_weight: False is no weight.
    """

    over: Literal["head", "row"] = "head"
    form: NormForm = "rms"
    has_weight_per_head: bool = False
    is_after_rope: bool = False
    magnitude: float = 1.0
    has_weight: bool = True


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: each token takes n_used of n_experts feed-forward layers of width d_ff.

    gating: of the router's logits. has_selection_bias: experts are chosen by their gates plus a bias, but weighted
    without it. n_groups, n_groups_used: experts are chosen from the groups whose two best experts have the largest sum.
    chooses_by_logits: by logits, whatever the gating (llama4). is_normalized: the weights of the chosen are divided by
    their sum (at least 2^-14). scale: of all weights. weighs_input: the weight multiplies what an expert reads, not
    what it returns. function, is_gated: as LayerSpec's.

    d_ff_shared: width of the expert that every token takes, 0 if there is none. has_shared_gate: it is multiplied by
    the sigmoid of a number that the router computes too.
    has_fused_gate_up: one tensor for both. biases: names such as "ffn_gate_exps" or "ffn_gate_inp"; scales: tensors
    whose product is multiplied by a number of each expert.
    is_beside_dense: Gemma 4's: the layer has a dense feed-forward layer too, each has norms of its own (tensors
    post_ffw_norm_1, pre_ffw_norm_2, post_ffw_norm_2), and the router has one (ffn_gate_inp.scale).
    """

    n_experts: int
    n_used: int
    d_ff: int
    gating: Gating = "softmax"
    has_selection_bias: bool = False
    n_groups: int = 1
    n_groups_used: int = 1
    chooses_by_logits: bool = False
    is_normalized: bool = False
    scale: float = 1.0
    weighs_input: bool = False
    function: Function = "silu"
    is_gated: bool = True
    d_ff_shared: int = 0
    has_shared_gate: bool = False
    has_fused_gate_up: bool = False
    biases: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    is_beside_dense: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """A layer of a transformer: grouped-query attention, or a mixer in its place, then a feed-forward layer.

    n_heads = 0 without a mixer and an attn_norm: no attention. experts: a mixture of experts, in place of the dense
    feed-forward layer (d_ff = 0) or beside it. d_ff = 0 without experts and an ffn_norm: no feed-forward layer.

    attention_scale: scores are multiplied by it. softcap: scores s become softcap * tanh(s / softcap); 0 is none.
    window: how many keys a row sees, itself included; 0 is all. rope: None if nothing is rotated.

    Norms are given by the names of their tensors, without ".weight"; None is no such norm. attn_norm and ffn_norm come
    before attention and feed-forward layer, post_attention_norm and post_ffn_norm after them, before the residual is
    added. is_parallel: the feed-forward layer reads what attention reads, and both are added to the same residual.

    function, is_gated: act(gate) * up, or act(up). has_fused_qkv, has_fused_gate_up: the file has one tensor for these.
    residual_scale: what attention and feed-forward layer add is multiplied by it.
    biases: names of the tensors that have a bias, such as "attn_q" or "ffn_norm".

    chunk: rows see only keys of their own chunk of that many positions; 0 is all. has_sinks: each head has one more
    score, which takes weight but has no value. has_query_gates: behind each head's query (in the rows of attn_q) are as
    many gates, whose sigmoid multiplies the head's result. has_value_norm: values are divided by their root mean
    square. are_values_keys: values are the keys as they were before norm and rotation. cache_layer: the earlier layer
    whose keys and values it reads, if it has none of its own.
    has_output_scale: all that leaves the layer is multiplied by a number.
    parts: names of the matrices that it has only some columns of, because other devices have the others: what all of
    them make of these is added up (`AllReduce`). adds_residual: whether what it makes has the residual stream in it:
    of several devices, the first one's.
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
    mixer: Mixer | None = None
    experts: Experts | None = None
    chunk: int = 0
    has_sinks: bool = False
    has_query_gates: bool = False
    has_value_norm: bool = False
    are_values_keys: bool = False
    cache_layer: int | None = None
    has_output_scale: bool = False
    parts: tuple[str, ...] = ()
    adds_residual: bool = True

    @property
    def has_attention(self) -> bool:
        """Whether its tokens see others through keys and values, or latent vectors."""
        return self.n_heads > 0 and (self.mixer is None or isinstance(self.mixer, LatentAttention))

    @property
    def has_cache(self) -> bool:
        """Whether it has keys and values, or latent vectors, of its own to cache."""
        return self.has_attention and self.cache_layer is None

    @property
    def cached_widths(self) -> tuple[int, ...]:
        """How many numbers of a token it caches: of the keys and of the values; latent vectors are keys only."""
        width = self.n_kv_heads * self.head_dim
        if not self.has_cache:
            return ()
        return (width,) if isinstance(self.mixer, LatentAttention) else (width, width)

    @property
    def state_sizes(self) -> tuple[int, int]:
        """Numbers that it keeps between tokens: the last columns before its convolution, and its state."""
        match self.mixer:
            case DeltaNet() as net:
                columns = 2 * net.k_width + net.v_width
                return (net.n_kernel - 1) * columns, net.n_v_heads * net.head_dim**2
            case Mamba2() as mamba:
                return (mamba.n_kernel - 1) * mamba.convolved, mamba.d_inner * mamba.d_state
            case ShortConvolution() as convolution:
                return (convolution.n_kernel - 1) * convolution.width, 0
        return 0, 0


NO_LAYER = LayerSpec(0, 0, 0, 0, None, 0.0, attn_norm=None, ffn_norm=None)
"""A layer without operations."""


@dataclass(frozen=True)
class Predictor:
    """A head that predicts the token after the next one (multi-token prediction; DeepSeek-V3, arXiv 2412.19437).

    It joins the hidden state of a row, as the final norm leaves it, with the embedding of the token that follows, and
    has a layer, a norm and a projection of its own, or shares those of the model.
    number: of its layer, behind those of the model. embedding, output_norm, output_weight: names of tensors.
    norm_form, norm_eps: of the output_norm.
    """

    number: int
    layer: LayerSpec
    embedding: str
    output_norm: str
    output_weight: str
    norm_form: NormForm
    norm_eps: float


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer; with is_causal = False every token sees all others.

    has_symmetric_windows: then windows also end what a token sees of those behind it, otherwise only of those before.
    norm_form, norm_eps: of all its norms. n_vocab: tokens that can be chosen; a caller may lower it to the tokenizer's
    number where the matrices have padding rows. embedding_scale: embeddings are multiplied by it. output_weight: the
    tensor of the vocabulary projection, which is the token embedding itself where the file ties them.
    output_norm: the norm before it. d_per_layer: columns of each layer's own embedding of a token (Gemma 4 E), 0 if
    there is none.
    logit_scale, logit_softcap: logits y become cap * tanh(scale * y / cap), or scale * y where the cap is 0.
    predictors: heads that predict further tokens; no part of the decoder. unread: tensors that the file has and no
    operation needs. n_embeddings: rows of the tables of embeddings where they are more than n_vocab, because other
    devices make the logits of the others; 0 if they are as many.
    receives, sends: of a part of a model's layers (`stages.py`): its first layer reads what the part
    before it has sent, and what its last layer leaves is sent on, so that it has no vocabulary projection.
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
    has_symmetric_windows: bool = False
    output_norm: str = "output_norm"
    d_per_layer: int = 0
    predictors: tuple[Predictor, ...] = ()
    unread: tuple[str, ...] = ()
    n_embeddings: int = 0
    receives: bool = False
    sends: bool = False

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """Its layers, and behind them those of its predictors."""
        return (*self.layers, *(predictor.layer for predictor in self.predictors))

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
        return tuple(dict.fromkeys(layer.rope for layer in self.all_layers if layer.rope is not None))

    def _most(self, number: Callable[[LayerSpec], int]) -> int:
        return max(map(number, self.layers), default=0)
