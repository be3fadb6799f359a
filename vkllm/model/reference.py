"""Runs a graph in numpy float32: the reference that kernels and programs are compared with.

Slow and plain on purpose. The functions named like kernels are their mathematical definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from vkllm.model.graph import Op, decoder, head
from vkllm.model.spec import ModelSpec, Yarn

Function = Literal["silu", "gelu", "relu2"]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def rms_norm(x: Floats, weight: Floats | float, eps: float) -> Floats:
    """x (..., C) / root mean square of each row * weight (C,). Zhang and Sennrich 2019, arXiv 1910.07467."""
    y: Floats = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)) * weight
    return y


def layer_norm(x: Floats, weight: Floats | float, eps: float) -> Floats:
    """x (..., C) minus its mean, / standard deviation of each row, * weight (C,). Ba et al. 2016, arXiv 1607.06450."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y: Floats = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + np.float32(eps)) * weight
    return y


def rope_table(spec: ModelSpec, n_positions: int, factors: Floats | None = None) -> Floats:
    """(n_positions, rope_dims / 2, 2): cosine and sine of each rotation, computed in float64, times the magnitude.

    factors (rope_dims / 2,): `rope_freqs.weight`, by which the frequencies are divided (Llama 3).
    Su et al. 2021, arXiv 2104.09864; linear scaling: Chen et al. 2023, arXiv 2306.15595.
    """
    frequencies = spec.rope_theta ** (-np.arange(0, spec.rope_dims, 2, dtype=np.float64) / spec.rope_dims)
    if factors is not None:
        frequencies = frequencies / factors
    kept = 0.0 if spec.yarn is None else _unscaled_share(spec, spec.yarn)
    frequencies = frequencies / spec.rope_scale * (1 - kept) + frequencies * kept
    angles = np.arange(n_positions, dtype=np.float64)[:, None] * frequencies
    table: Floats = (spec.rope_magnitude * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(np.float32)
    return table


def _unscaled_share(spec: ModelSpec, yarn: Yarn) -> npt.NDArray[np.float64]:
    """(rope_dims / 2,): how much of its speed each rotation keeps, falling from fast to slow ones.

    The ends of the slope are rounded outwards to whole rotations, as in the authors' code and in llama.cpp.
    """

    def rotation_that_turns(n_turns: float) -> float:
        return spec.rope_dims * math.log(yarn.n_ctx / (2 * math.pi * n_turns)) / (2 * math.log(spec.rope_theta))

    first = max(math.floor(rotation_that_turns(yarn.beta_fast)), 0)
    last = min(math.ceil(rotation_that_turns(yarn.beta_slow)), spec.rope_dims - 1)
    slope = (np.arange(spec.rope_dims // 2) - first) / max(last - first, 0.001)
    return (1 - np.clip(slope, 0, 1)) * yarn.strength


def rotate(x: Floats, table: Floats, pairing: str) -> Floats:
    """Rotates the first 2 * table.shape[1] dimensions of x (T, H, D) by table (T, rope_dims / 2, 2)."""
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    half = table.shape[1]
    out = x.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if pairing == "interleaved"
        else (slice(0, half), slice(half, 2 * half))
    )
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def attention(q: Floats, k: Floats, v: Floats, positions: Integers) -> Floats:
    """Causal grouped-query attention. q (T, H, D), k and v (S, KV, D), positions (T,) -> (T, H, D).

    Row t sees the keys 0 to positions[t]. Ainslie et al. 2023, arXiv 2305.13245.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(cached, group, axis=1).transpose(1, 0, 2) for cached in (k, v))
    scores = q.transpose(1, 0, 2) @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[2]))
    scores = np.where(np.arange(len(k)) <= positions[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = (weights @ values).transpose(1, 0, 2)
    return out


def activate(x: Floats, function: Function = "silu", is_gated: bool = True) -> Floats:
    """function(gate) * up of (T, 2F), gate in the first F columns, or function(x). Shazeer 2020, arXiv 2002.05202."""
    gate, up = np.split(x, 2, axis=-1) if is_gated else (x, np.float32(1))
    wide = gate.astype(np.float64)
    match function:
        case "silu":
            y = wide / (1 + np.exp(-wide))
        case "gelu":
            y = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        case "relu2":
            y = np.square(np.maximum(wide, 0))
    out: Floats = (y * up).astype(np.float32)
    return out


def softcap(x: Floats, scale: float, cap: float) -> Floats:
    """cap * tanh(scale * x / cap), or scale * x where the cap is 0."""
    y: Floats = np.float32(scale) * x
    return cap * np.tanh(y / cap) if cap else y


class Reference:
    """One sequence run in numpy. weight(name) returns a tensor as float32."""

    def __init__(self, spec: ModelSpec, weight: Callable[[str], Floats], n_ctx: int) -> None:
        self.spec = spec
        self.weight = weight
        factors = weight("rope_freqs.weight") if spec.has_rope_freqs else None
        self._table = rope_table(spec, n_ctx, factors)
        self._keys: list[Floats] = [np.zeros((0, spec.n_kv_heads, spec.head_dim), np.float32)] * spec.n_layers
        self._values = list(self._keys)
        self.n_past = 0

    def run(self, token_ids: list[int]) -> Floats:
        """Appends tokens (T,) to the sequence and returns their logits (T, V)."""
        return self._run(token_ids)["logits"]

    def hidden_states(self, token_ids: list[int]) -> Floats:
        """Appends tokens (T,) to the sequence and returns what the final norm makes of them (T, d_model)."""
        return self._run(token_ids)["final"]

    def _run(self, token_ids: list[int]) -> dict[str, Floats]:
        positions = np.arange(self.n_past, self.n_past + len(token_ids))
        values: dict[str, Floats] = {}
        for op in (*decoder(self.spec), *head(self.spec)):
            values[op.output] = self._run_op(op, values, token_ids, positions)
        self.n_past += len(token_ids)
        return values

    def _run_op(self, op: Op, values: dict[str, Floats], token_ids: list[int], positions: Integers) -> Floats:
        if op.kind == "embed":
            rows: Floats = self.weight(op.weights[0])[np.array(token_ids)]
            return rows
        x = values[op.inputs[0]]
        if op.kind == "rms_norm":
            return rms_norm(x, self.weight(op.weights[0]), self.spec.norm_eps)
        if op.kind == "matvec":
            y: Floats = np.concatenate([x @ self.weight(name).T for name in op.weights], axis=-1)
            return y + values[op.add] if op.add else y
        if op.kind == "rope":
            return self._store_and_rotate(x, op.layer, positions)
        if op.kind == "attention":
            q = x.reshape(len(x), self.spec.n_heads, self.spec.head_dim)
            return attention(q, self._keys[op.layer], self._values[op.layer], positions).reshape(len(x), -1)
        return activate(x)

    def _store_and_rotate(self, qkv: Floats, layer: int, positions: Integers) -> Floats:
        spec, table = self.spec, self._table[positions]
        heads = qkv.reshape(len(qkv), -1, spec.head_dim)
        q, k, v = np.split(heads, [spec.n_heads, spec.n_heads + spec.n_kv_heads], axis=1)
        self._keys[layer] = np.concatenate([self._keys[layer], rotate(k, table, spec.rope_pairing)])
        self._values[layer] = np.concatenate([self._values[layer], v])
        return rotate(q, table, spec.rope_pairing).reshape(len(qkv), -1)
