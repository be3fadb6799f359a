"""The operations of layers that keep a state in place of keys and values, and of latent attention.

A state is read and written by every step, so rows of a step run in order, and a state cannot be cut back to an earlier
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2
from vkllm.model.ops import Kind, Op, Shapes
from vkllm.model.spec import QueryTemperature, Rope


@dataclass(frozen=True, kw_only=True)
class Convolution(Op):
    """Each column convolved over its last n_kernel tokens, those before the step from the layer's state.

    input (T, ...): `width` columns from `column` on. weight (width, n_kernel), the newest token last; bias (width,).
    function "silu": of the result. is_gated: the input is (T, b | c | x) with `width` columns each, and the output is
    c * convolution(b * x). State: (n_kernel - 1, width), the oldest first.
    """

    kind: ClassVar[Kind] = "convolution"
    n_kernel: int
    weight: str
    bias: str | None = None
    column: int = 0
    function: Literal["none", "silu"] = "none"
    is_gated: bool = False

    def tensors(self) -> Shapes:
        """Weight and bias."""
        shapes: Shapes = {self.weight: (self.width, self.n_kernel)}
        return shapes if self.bias is None else {**shapes, self.bias: (self.width,)}


@dataclass(frozen=True, kw_only=True)
class DeltaNetStep(Op):
    """Reads and updates the state S (n_v_heads, d, d) for each row: see DeltaNet in spec.py.

    input (T, queries | keys | values), convolved. gates: the activation with beta and alpha, n_v_heads columns each
    (or, fused: for each key head its value heads' beta, then their alpha), from beta_column and alpha_column on.
    q and k: divided by sqrt(sum of squares + eps), q also by sqrt(d). g = exp(softplus(alpha + dt) * a), S <- g S,
    S <- S + k outer (sigmoid(beta) (v - S^T k)), output = S^T q.
    dt, a: tensors (n_v_heads,).
    """

    kind: ClassVar[Kind] = "delta_net"
    net: DeltaNet
    eps: float
    gates: str
    beta_column: int
    alpha_column: int
    dt: str
    a: str

    def tensors(self) -> Shapes:
        """dt and a."""
        return {self.dt: (self.net.n_v_heads,), self.a: (self.net.n_v_heads,)}


@dataclass(frozen=True, kw_only=True)
class Mamba2Step(Op):
    """Reads and updates the state S (n_heads, head_dim, d_state) for each row: see Mamba2 in spec.py.

    input (T, x | B | C), convolved. dt: n_heads columns of the activation `gates` from dt_column on; t = softplus(dt +
    dt_bias), S <- exp(t a) S + t x outer B, output = S C + d x. dt_bias (n_heads,), a and d (n_heads, 1): tensors.
    """

    kind: ClassVar[Kind] = "mamba2"
    mamba: Mamba2
    gates: str
    dt_column: int
    dt_bias: str
    a: str
    d: str

    def tensors(self) -> Shapes:
        """The three."""
        n_heads = self.mamba.n_heads
        return {self.dt_bias: (n_heads,), self.a: (n_heads, 1), self.d: (n_heads, 1)}


@dataclass(frozen=True, kw_only=True)
class GatedNorm(Op):
    """rms_norm(input) * weight * silu(z) by groups of columns; is_gated_first: rms_norm(input * silu(z)) * weight.

    z: `width` columns of the activation `gates`, from `column` on. weight: (group,) for all groups or, with
    has_weight_per_group, (width / group, group). squares: the activation (T, SQUARES) whose first column is the sum of
    squares of a group of normed_columns columns, of which this is a part; else its groups are whole.
    """

    kind: ClassVar[Kind] = "gated_norm"
    eps: float
    gates: str
    column: int
    weight: str
    group: int
    is_gated_first: bool = False
    has_weight_per_group: bool = False
    squares: str | None = None
    normed_columns: int = 0

    def tensors(self) -> Shapes:
        """The weight."""
        shape = (self.width // self.group, self.group) if self.has_weight_per_group else (self.group,)
        return {self.weight: shape}


SQUARES = 4
"""Columns of the sums of squares of parts of a group: a sum, and zeros up to a word of 16 bytes."""


@dataclass(frozen=True, kw_only=True)
class GatedSquares(Op):
    """The sum of squares of input * silu(z), (T, SQUARES): what a device has of the norm of a group whose columns are
    divided. n_columns: of the input, and of z in the activation `gates`, from `column` on."""

    kind: ClassVar[Kind] = "gated_squares"
    n_columns: int
    gates: str
    column: int


@dataclass(frozen=True, kw_only=True)
class LatentRotation(Op):
    """Prepares queries of latent attention, and stores the latent vector and the rotated key in the layer's cache.

    input (T, kv_rank | rope_dim): the latent vector, which is normed with weight (kv_rank,), and the key, which is
    rotated; cached as one key of kv_rank + rope_dim numbers. queries (T, n_heads * (nope_dim | rope_dim)): their last
    rope_dim dimensions are rotated and written behind the kv_rank numbers that `absorbed` (T, n_heads * kv_rank) has of
    each head: output (T, n_heads * (kv_rank | rope_dim)).
    temperature: see Rotation.
    """

    kind: ClassVar[Kind] = "latent_rope"
    latent: LatentAttention
    n_heads: int
    eps: float
    rope: Rope
    weight: str
    queries: str
    absorbed: str
    temperature: QueryTemperature | None = None

    def tensors(self) -> Shapes:
        """The weight of the norm, and the factors of the rotation."""
        shapes: Shapes = {self.weight: (self.latent.kv_rank,)}
        for factors in (self.rope.factors, self.rope.long_factors):
            if factors is not None:
                shapes[factors] = (self.rope.dims // 2,)
        return shapes
