"""The operations of layers that keep a state, in numpy float32: the reference that their kernels are compared with.

The functions named like kernels are their mathematical definition. They take the state before the rows and return it
after them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from vkllm.model.mixers import DeltaNet, Mamba2
from vkllm.model.ops import Op
from vkllm.model.state_ops import SQUARES, Convolution, DeltaNetStep, GatedNorm, GatedSquares, Mamba2Step

Floats = npt.NDArray[np.float32]


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x.astype(np.float64)))
    y: Floats = (np.where(x < 0, small, 1.0) / (1 + small)).astype(np.float32)
    return y


def silu(x: Floats) -> Floats:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Floats) -> Floats:
    """ln(1 + exp(x))."""
    y: Floats = np.logaddexp(0.0, x.astype(np.float64)).astype(np.float32)
    return y


def convolution(
    x: Floats, weight: Floats, state: Floats, bias: Floats | None = None, function: Literal["none", "silu"] = "none"
) -> tuple[Floats, Floats]:
    """Each column of x (T, C) convolved over its last K tokens, by weight (C, K), the newest last, + bias (C,).

    state (K - 1, C): the columns of the tokens before x, the oldest first. Returns (T, C) and the state behind x.
    """
    n_rows, n_kernel = len(x), weight.shape[1]
    columns = np.concatenate([state, x])
    y = sum((columns[k : k + n_rows] * weight[:, k] for k in range(n_kernel)), np.zeros_like(x))
    if bias is not None:
        y = y + bias
    return silu(y) if function == "silu" else y, columns[n_rows:]


def gated_convolution(bcx: Floats, weight: Floats, state: Floats) -> tuple[Floats, Floats]:
    """c * convolution(b * x) of (T, b | c | x)."""
    b, c, x = np.split(bcx, 3, axis=-1)
    y, state = convolution(b * x, weight, state)
    return c * y, state


def beta_and_alpha(net: DeltaNet, fused: Floats) -> tuple[Floats, Floats]:
    """(T, n_v_heads) each, of the rows of ssm_ba: for each key head, its value heads' beta, then their alpha."""
    by_k_head = fused.reshape(len(fused), net.n_k_heads, 2, -1)
    beta, alpha = (by_k_head[:, :, i].reshape(len(fused), -1) for i in range(2))
    return beta, alpha


def delta_net(
    net: DeltaNet, eps: float, qkv: Floats, beta: Floats, alpha: Floats, dt: Floats, a: Floats, state: Floats
) -> tuple[Floats, Floats]:
    """The gated delta rule, token by token. qkv (T, queries | keys | values), beta and alpha (T, n_v_heads), dt and a
    (n_v_heads,), state (n_v_heads, head_dim of keys, head_dim of values): see DeltaNetStep. Returns (T, n_v_heads *
    head_dim) and the state behind the rows.

    Yang et al. 2024, arXiv 2412.06464. Queries and keys are divided by sqrt(sum of squares + eps), as in llama.cpp.
    """
    n_rows = len(qkv)
    parts = np.split(qkv, [net.k_width, 2 * net.k_width], axis=-1)
    q, k, v = (part.reshape(n_rows, -1, net.head_dim) for part in parts)
    q, k = (part / np.sqrt(np.square(part).sum(axis=-1, keepdims=True) + np.float32(eps)) for part in (q, k))
    heads = np.arange(net.n_v_heads)
    k_head = heads // (net.n_v_heads // net.n_k_heads) if net.are_heads_grouped else heads % net.n_k_heads
    q, k = q[:, k_head] * np.float32(net.head_dim**-0.5), k[:, k_head]
    decay, strength = np.exp(softplus(alpha + dt) * a), sigmoid(beta)
    out = np.empty_like(v)
    for t in range(n_rows):
        state = state * decay[t][:, None, None]
        recalled = np.einsum("hkv,hk->hv", state, k[t])
        state = state + k[t][:, :, None] * (strength[t][:, None] * (v[t] - recalled))[:, None, :]
        out[t] = np.einsum("hkv,hk->hv", state, q[t])
    return out.reshape(n_rows, -1), state


def mamba2(
    mamba: Mamba2, xbc: Floats, dt: Floats, dt_bias: Floats, a: Floats, d: Floats, state: Floats
) -> tuple[Floats, Floats]:
    """The state space, token by token. xbc (T, x | B | C), dt (T, n_heads), dt_bias, a and d (n_heads,), state
    (n_heads, head_dim, d_state): see Mamba2Step. Returns (T, d_inner) and the state behind the rows.

    Dao and Gu 2024, arXiv 2405.21060.
    """
    n_rows, group = len(xbc), mamba.n_heads // mamba.n_groups
    end = mamba.d_inner + mamba.n_groups * mamba.d_state
    x, b, c = np.split(xbc, [mamba.d_inner, end], axis=-1)
    x = x.reshape(n_rows, mamba.n_heads, mamba.head_dim)
    b, c = (np.repeat(part.reshape(n_rows, mamba.n_groups, -1), group, axis=1) for part in (b, c))
    t = softplus(dt + dt_bias)
    decay = np.exp(t * a)
    out = np.empty_like(x)
    for row in range(n_rows):
        state = state * decay[row][:, None, None] + (t[row][:, None] * x[row])[:, :, None] * b[row][:, None, :]
        out[row] = np.einsum("hds,hs->hd", state, c[row]) + d[:, None] * x[row]
    return out.reshape(n_rows, -1), state


def gated_norm(x: Floats, z: Floats, weight: Floats, eps: float, *, is_gated_first: bool = False) -> Floats:
    """rms_norm(x) * weight * silu(z) by groups of x, z (T, C), or rms_norm(x * silu(z)) * weight.

    weight: (group,) for all groups or (C / group, group).
    """
    gate = silu(z)
    groups = (x * gate if is_gated_first else x).reshape(len(x), -1, weight.shape[-1])
    normed = groups / np.sqrt(np.square(groups).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    y: Floats = normed.reshape(x.shape)
    return y if is_gated_first else y * gate


def gated_squares(x: Floats, z: Floats) -> Floats:
    """The sum of squares (T, SQUARES) of x * silu(z), in the first column; the others are zeros."""
    sums = np.zeros((len(x), SQUARES), np.float32)
    sums[:, 0] = np.square(x * silu(z)).sum(axis=-1)
    return sums


def gated_norm_of_part(x: Floats, z: Floats, weight: Floats, eps: float, squares: Floats, n_columns: int) -> Floats:
    """x * silu(z) * weight / root mean square of a group of n_columns columns, whose sum of squares is in the first
    column of squares (T, SQUARES). x, z (T, C): a part of it; weight (1, C)."""
    y: Floats = x * silu(z) / np.sqrt(squares[:, :1] / np.float32(n_columns) + np.float32(eps)) * weight
    return y


class States:
    """The states of a sequence: of each convolution, delta net and state space. weight(name): a tensor as float32."""

    def __init__(self, weight: Callable[[str], Floats]) -> None:
        self._weight = weight
        self._states: dict[tuple[int, str], Floats] = {}

    def run(self, op: Op, values: dict[str, Floats]) -> Floats:
        """Runs one of the operations of layers with a state on the activations `values`."""
        weight, x = self._weight, values[op.input]
        match op:
            case Convolution():
                state = self._state(op, (op.n_kernel - 1, op.width))
                if op.is_gated:
                    y, after = gated_convolution(x, weight(op.weight), state)
                else:
                    columns = x[:, op.column : op.column + op.width]
                    bias = None if op.bias is None else weight(op.bias)
                    y, after = convolution(columns, weight(op.weight), state, bias, op.function)
            case DeltaNetStep():
                state = self._state(op, (op.net.n_v_heads, op.net.head_dim, op.net.head_dim))
                beta, alpha = self._gates(op, values[op.gates])
                y, after = delta_net(op.net, op.eps, x, beta, alpha, weight(op.dt), weight(op.a), state)
            case Mamba2Step():
                mamba = op.mamba
                state = self._state(op, (mamba.n_heads, mamba.head_dim, mamba.d_state))
                dt = values[op.gates][:, op.dt_column : op.dt_column + mamba.n_heads]
                dt_bias, a, d = (weight(name).reshape(-1) for name in (op.dt_bias, op.a, op.d))
                y, after = mamba2(mamba, x, dt, dt_bias, a, d, state)
            case GatedNorm():
                z = values[op.gates][:, op.column : op.column + op.width]
                if op.squares is not None:
                    own = weight(op.weight)
                    return gated_norm_of_part(x, z, own, op.eps, values[op.squares], op.normed_columns)
                return gated_norm(x, z, weight(op.weight), op.eps, is_gated_first=op.is_gated_first)
            case GatedSquares():
                return gated_squares(x, values[op.gates][:, op.column : op.column + op.n_columns])
            case _:
                raise AssertionError(op.kind)
        self._states[op.layer, op.kind] = after
        return y

    def _state(self, op: Op, shape: tuple[int, ...]) -> Floats:
        return self._states.get((op.layer, op.kind), np.zeros(shape, np.float32))

    @staticmethod
    def _gates(op: DeltaNetStep, projected: Floats) -> tuple[Floats, Floats]:
        n_heads = op.net.n_v_heads
        if op.net.has_fused_beta_alpha:
            return beta_and_alpha(op.net, projected[:, op.beta_column : op.beta_column + 2 * n_heads])
        beta, alpha = (projected[:, first : first + n_heads] for first in (op.beta_column, op.alpha_column))
        return beta, alpha
