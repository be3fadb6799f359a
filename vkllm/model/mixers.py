"""What stands in the place of attention in a layer, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeltaNet:
    """A gated delta net in place of attention (Yang et al. 2024, arXiv 2412.06464; Qwen3-Next, Qwen3.5).

    n_k_heads, n_v_heads: heads of queries and keys, and of values; head_dim: of all of them. n_kernel: tokens that the
    short convolution before it sees. are_heads_grouped: value head h uses key head h // (n_v_heads / n_k_heads);
    otherwise h % n_k_heads. has_fused_beta_alpha: the file has one tensor ssm_ba for both, by key head.
    """

    n_k_heads: int
    n_v_heads: int
    head_dim: int
    n_kernel: int
    are_heads_grouped: bool = False
    has_fused_beta_alpha: bool = False

    @property
    def k_width(self) -> int:
        """Columns of the queries, and of the keys."""
        return self.n_k_heads * self.head_dim

    @property
    def v_width(self) -> int:
        """Columns of the values."""
        return self.n_v_heads * self.head_dim


@dataclass(frozen=True)
class Mamba2:
    """A selective state space in place of attention (Dao and Gu 2024, arXiv 2405.21060; Granite 4 H, Nemotron H).

    n_heads heads of head_dim columns; each has head_dim x d_state numbers of state. n_groups: of heads that share B and
    C. n_kernel: tokens that the short convolution before it sees. normed_columns: where it is a part of the only group
    of a layer, as one of several devices has it: columns of the whole group, which are normed together.
    """

    n_heads: int
    head_dim: int
    d_state: int
    n_groups: int
    n_kernel: int
    normed_columns: int | None = None

    @property
    def d_inner(self) -> int:
        """Columns of x, z and the result."""
        return self.n_heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Columns of x, B and C."""
        return self.d_inner + 2 * self.n_groups * self.d_state


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution of `width` columns over n_kernel tokens in place of attention (LFM2): c * conv(b * x)."""

    n_kernel: int
    width: int


@dataclass(frozen=True)
class LatentAttention:
    """Attention whose cache has one latent vector a token in place of keys and values (DeepSeek-V2, arXiv 2405.04434).

    q_rank: width between the two projections of queries, 0 if there is only one. kv_rank: of the latent vector; it is
    normalized, and each head's keys (nope_dim) and values (value_dim) are products of it. rope_dim: dimensions of a
    query, and of the one key behind the latent vector, that rotate. The LayerSpec's n_heads, rope and attention_scale
    hold; its n_kv_heads is 1, its head_dim what is cached: kv_rank + rope_dim.
    """

    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


Mixer = DeltaNet | Mamba2 | ShortConvolution | LatentAttention
