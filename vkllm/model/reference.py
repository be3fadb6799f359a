"""Runs a graph in numpy float32: the reference that kernels and programs are compared with.

Slow and plain on purpose. The functions named like kernels are their mathematical definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.graph import decoder, head, head_of, prediction
from vkllm.model.layers.prediction import HIDDEN
from vkllm.model.mixers import LatentAttention
from vkllm.model.ops import (
    Activate,
    Ahead,
    AllReduce,
    Attention,
    Embed,
    HeadNormalization,
    Matvec,
    Norm,
    Op,
    Rotation,
    Softcap,
)
from vkllm.model.reference_experts import chosen_experts, chosen_weights, expert_matvec, expert_sum, route
from vkllm.model.reference_states import States, sigmoid
from vkllm.model.spec import Function, ModelSpec, NormForm, Predictor, QueryTemperature, Rope, Yarn
from vkllm.model.state_ops import Convolution, DeltaNetStep, GatedNorm, GatedSquares, LatentRotation, Mamba2Step

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


def norm(form: NormForm, x: Floats, weight: Floats | float, eps: float) -> Floats:
    """The norm of that form."""
    match form:
        case "rms":
            return rms_norm(x, weight, eps)
        case "layer":
            return layer_norm(x, weight, eps)
        case "none":
            return x


def rope_table(rope: Rope, n_positions: int, factors: Floats | None = None) -> Floats:
    """(n_positions, dims / 2, 2): cosine and sine of each rotation, computed in float64, times the magnitude.

    factors (dims / 2,): by which the frequencies are divided (`rope_freqs.weight` of Llama 3).
    Su et al. 2021, arXiv 2104.09864; linear scaling: Chen et al. 2023, arXiv 2306.15595.
    """
    frequencies = rope.theta ** (-np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    if factors is not None:
        frequencies = frequencies / factors
    kept = 0.0 if rope.yarn is None else _unscaled_share(rope, rope.yarn)
    frequencies = frequencies / rope.scale * (1 - kept) + frequencies * kept
    angles = np.arange(n_positions, dtype=np.float64)[:, None] * frequencies
    table: Floats = (rope.magnitude * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(np.float32)
    return table


def query_factors(temperature: QueryTemperature, n_positions: int) -> Floats:
    """(n_positions,): by what queries are multiplied at each position."""
    steps = np.floor((np.arange(n_positions) + temperature.offset) / temperature.n_ctx)
    factors: Floats = (1 + temperature.scale * np.log1p(steps)).astype(np.float32)
    return factors


def _unscaled_share(rope: Rope, yarn: Yarn) -> npt.NDArray[np.float64]:
    """(dims / 2,): how much of its speed each rotation keeps, falling from fast to slow ones.

    The ends of the slope are rounded outwards to whole rotations, as in the authors' code and in llama.cpp.
    """

    def rotation_that_turns(n_turns: float) -> float:
        return rope.dims * math.log(yarn.n_ctx / (2 * math.pi * n_turns)) / (2 * math.log(rope.theta))

    first = max(math.floor(rotation_that_turns(yarn.beta_fast)), 0)
    last = min(math.ceil(rotation_that_turns(yarn.beta_slow)), rope.dims - 1)
    slope = (np.arange(rope.dims // 2) - first) / max(last - first, 0.001)
    return np.asarray(1 - np.clip(slope, 0, 1), np.float64)


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


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    positions: Integers,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    ahead: Ahead = "none",
    chunk: int = 0,
    sinks: Floats | None = None,
) -> Floats:
    """Grouped-query attention. q (T, H, D), k (S, KV, D), v (S, KV, E), positions (T,) -> (T, H, E).

    scale: of the scores, 1 / sqrt(D) by default. softcap: see LayerSpec. Row t sees the keys 0 to positions[t], with a
    window of these only those less than `window` away, with a chunk only those from the last multiple of `chunk` on;
    and what `ahead` says of the keys behind it. sinks (H,): one more score for each head, without a value.
    Ainslie et al. 2023, arXiv 2305.13245; sinks: Xiao et al. 2023, arXiv 2309.17453.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(cached, group, axis=1).transpose(1, 0, 2) for cached in (k, v))
    scores = q.transpose(1, 0, 2) @ keys.transpose(0, 2, 1) * np.float32(q.shape[2] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = positions[:, None] - np.arange(len(k))
    is_seen = (distance >= 0) | (ahead != "none")
    if window:
        is_seen &= (np.abs(distance) if ahead == "window" else distance) < window
    if chunk:
        is_seen &= np.arange(len(k)) >= (positions // chunk * chunk)[:, None]
    scores = np.where(is_seen, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(np.float32)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = (weights[..., : len(k)] @ values).transpose(1, 0, 2)
    return out


def latent_rope(
    latent: LatentAttention,
    compressed: Floats,
    weight: Floats,
    eps: float,
    queries: Floats,
    absorbed: Floats,
    table: Floats,
    pairing: str,
) -> tuple[Floats, Floats]:
    """Queries (T, H, kv_rank + rope_dim) and what is cached (T, 1, kv_rank + rope_dim): see LatentRotation.

    compressed (T, kv_rank | rope_dim), weight (kv_rank,), queries (T, H, nope_dim + rope_dim), absorbed (T, H,
    kv_rank), table (T, rope_dim / 2, 2).
    """
    vector = rms_norm(compressed[:, None, : latent.kv_rank], weight, eps)
    key = rotate(compressed[:, None, latent.kv_rank :], table, pairing)
    rotated = rotate(queries[..., latent.nope_dim :], table, pairing)
    return np.concatenate([absorbed, rotated], axis=-1), np.concatenate([vector, key], axis=-1)


def activate(x: Floats, function: Function = "silu", is_gated: bool = True, slots: int = 1) -> Floats:
    """function(gate) * up of (T, 2F), gate in the first F columns, or function(x); slots: so many of these in a row.
    Shazeer 2020, arXiv 2002.05202."""
    if slots > 1:
        return activate(x.reshape(len(x) * slots, -1), function, is_gated).reshape(len(x), -1)
    gate, up = np.split(x, 2, axis=-1) if is_gated else (x, np.float32(1))
    wide = gate.astype(np.float64)
    match function:
        case "silu":
            y = wide / (1 + np.exp(-wide))
        case "gelu":
            y = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        case "relu2":
            y = np.square(np.maximum(wide, 0))
        case "swiglu_oai":
            wide = np.minimum(wide, 7)
            y, up = wide / (1 + np.exp(-1.702 * wide)), np.clip(up, -7, 7) + 1
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
        self._n_ctx = n_ctx
        layers = {**dict(enumerate(spec.layers)), **{each.number: each.layer for each in spec.predictors}}
        self._tables = {layer.rope: self._table(layer.rope) for layer in layers.values() if layer.rope is not None}
        self._keys = {i: np.zeros((0, layer.n_kv_heads, layer.head_dim), np.float32) for i, layer in layers.items()}
        self._values = dict(self._keys)
        self._states = States(weight)
        self.n_past = 0

    def _table(self, rope: Rope) -> Floats:
        factors = rope.factors_in(self._n_ctx)
        return rope_table(rope, self._n_ctx, None if factors is None else self.weight(factors))

    def run(self, token_ids: list[int]) -> Floats:
        """Appends tokens (T,) to the sequence and returns their logits (T, V)."""
        return self._run(token_ids)["logits"]

    def hidden_states(self, token_ids: list[int]) -> Floats:
        """Appends tokens (T,) to the sequence and returns what the final norm makes of them (T, d_model)."""
        return self._run(token_ids)["final"]

    def predict(self, predictor: Predictor, hidden: Floats, token_ids: list[int]) -> tuple[Floats, Floats]:
        """Appends rows to the sequence of a head that predicts further tokens.

        hidden (T, d_model): what the final norm made of rows; token_ids: the tokens behind them. Returns the logits
        (T, V) of the tokens behind those, and what the head's final norm makes of its rows (T, d_model).
        """
        n_past = len(self._keys[predictor.number])
        positions = np.arange(n_past, n_past + len(token_ids))
        ops = (*prediction(self.spec, predictor), *head_of(self.spec, predictor))
        values = self._run_ops(ops, {HIDDEN: hidden}, token_ids, positions)
        return values["logits"], values["final"]

    def _run(self, token_ids: list[int]) -> dict[str, Floats]:
        positions = np.arange(self.n_past, self.n_past + len(token_ids))
        values = self._run_ops((*decoder(self.spec), *head(self.spec)), {}, token_ids, positions)
        self.n_past += len(token_ids)
        return values

    def _run_ops(
        self, ops: tuple[Op, ...], values: dict[str, Floats], token_ids: list[int], positions: Integers
    ) -> dict[str, Floats]:
        for op in ops:
            values[op.output] = self._run_op(op, values, token_ids, positions)
        return values

    def _run_op(self, op: Op, values: dict[str, Floats], token_ids: list[int], positions: Integers) -> Floats:
        match op:
            case Embed():
                rows: Floats = self.weight(op.weights[0])[np.array(token_ids)] * np.float32(op.scale)
                return rows
            case Norm():
                return self._norm(op, values)
            case Matvec():
                return self._matvec(op, values)
            case HeadNormalization():
                return self._head_norm(op, values[op.input])
            case Rotation():
                return self._store_and_rotate(op, values[op.input], positions)
            case LatentRotation():
                return self._store_latent(op, values, positions)
            case Attention():
                return self._attention(op, values, positions)
            case Activate():
                y = activate(values[op.input], op.function, op.is_gated, op.slots)
                return y if op.up is None else y * values[op.up][:, op.up_column : op.up_column + y.shape[1]]
            case Convolution() | DeltaNetStep() | Mamba2Step() | GatedNorm() | GatedSquares():
                return self._states.run(op, values)
            case Route():
                return route(values[op.input], op.experts, None if op.bias is None else self.weight(op.bias))
            case ExpertMatvec():
                return self._expert_matvec(op, values)
            case ExpertSum():
                return self._expert_sum(op, values)
            case Softcap():
                return softcap(values[op.input], op.scale, op.cap)
            case AllReduce():
                return values[op.input]
        raise AssertionError(op.kind)

    def _matvec(self, op: Matvec, values: dict[str, Floats]) -> Floats:
        products = []
        for name, bias in zip(op.weights, op.biases, strict=True):
            product = values[op.input][:, : op.n_columns - op.column_padding] @ np.atleast_2d(self.weight(name)).T
            products.append(product if bias is None else product + self.weight(bias))
        y: Floats = np.float32(op.factor) * np.concatenate(products, axis=-1)
        return y if op.add is None else values[op.add] + y

    def _norm(self, op: Norm, values: dict[str, Floats]) -> Floats:
        x = values[op.input][:, : op.width]
        groups = x.reshape(len(x), -1, op.group) if op.group else x
        y = norm(op.form, groups, 1.0 if op.weight is None else self.weight(op.weight), op.eps)
        y = (y if op.bias is None else y + self.weight(op.bias)).reshape(x.shape)
        y = y if op.add is None else values[op.add] + y
        y = y * np.float32(op.factor) * (1.0 if op.scale is None else self.weight(op.scale))
        return np.concatenate([values[op.output][:, : op.output_column], y], axis=-1) if op.output_column else y

    def _expert_matvec(self, op: ExpertMatvec, values: dict[str, Floats]) -> Floats:
        x, n_columns = values[op.input], op.n_columns - op.column_padding
        x = x if op.is_input_shared else x.reshape(len(x), op.n_slots, op.input_stride)
        if op.routes is None:
            numbers = np.broadcast_to(np.arange(op.n_slots), (len(x), op.n_slots))
        else:
            numbers = chosen_experts(values[op.routes], op.n_slots)
        if op.is_weighed and op.routes is not None:
            x = x[:, None] * chosen_weights(values[op.routes], op.n_slots)[..., None]
        products: list[Floats] = []
        for name, bias, scale in zip(op.weights, op.biases, op.scales, strict=True):
            vectors = (None if vector is None else self.weight(vector) for vector in (bias, scale))
            product = expert_matvec(x[..., :n_columns], self.weight(name), numbers, *vectors)
            parts = np.pad(product.reshape(*product.shape[:2], op.n_parts, -1), (*3 * [(0, 0)], (0, op.row_padding)))
            products.append(parts.reshape(*product.shape[:2], -1))
        return np.concatenate(products, axis=-1).reshape(len(x), -1)

    def _expert_sum(self, op: ExpertSum, values: dict[str, Floats]) -> Floats:
        routes, results = values[op.routes], values[op.input]
        weights = chosen_weights(routes, op.n_slots) if op.is_weighed else None
        y = expert_sum(results.reshape(len(results), op.n_slots, -1), weights)
        if op.shared is not None:
            y = y + routes[:, -1:] * values[op.shared]
        y = np.float32(op.factor) * y
        return y if op.add is None else values[op.add] + y

    def _head_norm(self, op: HeadNormalization, qkv: Floats) -> Floats:
        q, gates, k, v = _parts(qkv, op)
        if op.values == "keys":
            v = norm("rms", k, 1.0, op.eps)
        elif op.values == "norm":
            v = norm("rms", v, 1.0, op.eps)
        names = [*(op.weights or ()), None, None]
        q, k = (self._normed(op, part, name) for part, name in zip((q, k), names, strict=False))
        queries = np.concatenate([q, gates], axis=-1)
        return np.concatenate([part.reshape(len(qkv), -1) for part in (queries, k, v)], axis=-1)

    def _normed(self, op: HeadNormalization, heads: Floats, name: str | None) -> Floats:
        """Queries or keys (T, heads, head_dim)."""
        weight = 1.0 if name is None else self.weight(name)
        groups = heads.reshape(len(heads), -1) if op.norm.over == "row" else heads
        return norm(op.norm.form, groups, weight, op.eps).reshape(heads.shape)

    def _store_and_rotate(self, op: Rotation, qkv: Floats, positions: Integers) -> Floats:
        q, _, k, v = _parts(qkv, op)
        if op.rope is not None:
            table = self._tables[op.rope][positions]
            q, k = rotate(q, table, op.rope.pairing), rotate(k, table, op.rope.pairing)
        if op.weights is not None:
            q, k = (part * self.weight(name) for part, name in zip((q, k), op.weights, strict=True))
        if op.temperature is not None:
            q = q * query_factors(op.temperature, self._n_ctx)[positions, None, None]
        if op.n_kv_heads:
            self._store(op.layer, k, v)
        rotated: Floats = q.reshape(len(qkv), -1)
        return rotated

    def _store_latent(self, op: LatentRotation, values: dict[str, Floats], positions: Integers) -> Floats:
        n_rows, table = len(positions), self._tables[op.rope][positions]
        queries, absorbed = (values[name].reshape(n_rows, op.n_heads, -1) for name in (op.queries, op.absorbed))
        q, cached = latent_rope(
            op.latent, values[op.input], self.weight(op.weight), op.eps, queries, absorbed, table, op.rope.pairing
        )
        if op.temperature is not None:
            q = q * query_factors(op.temperature, self._n_ctx)[positions, None, None]
        self._store(op.layer, cached, cached[..., : op.latent.kv_rank])
        return np.asarray(q.reshape(n_rows, -1))

    def _store(self, layer: int, keys: Floats, values: Floats) -> None:
        held = self._values[layer] if len(self._values[layer]) else values[:0]
        self._keys[layer] = np.concatenate([self._keys[layer], keys])
        self._values[layer] = np.concatenate([held, values])

    def _attention(self, op: Attention, values: dict[str, Floats], positions: Integers) -> Floats:
        k, v = self._keys[op.cache_layer], self._values[op.cache_layer]
        q = values[op.input].reshape(len(positions), op.n_heads, op.head_dim)
        sinks = None if op.sinks is None else self.weight(op.sinks)
        out = attention(q, k, v, positions, op.scale, op.softcap, op.window, op.ahead, op.chunk, sinks)
        if op.gates is not None:
            queries = values[op.gates][:, : 2 * op.n_heads * op.head_dim]
            out = out * sigmoid(queries.reshape(len(q), op.n_heads, -1)[..., op.head_dim :])
        return np.asarray(out.reshape(len(q), -1))


def _parts(qkv: Floats, op: HeadNormalization | Rotation) -> tuple[Floats, Floats, Floats, Floats]:
    """Queries, their gates if they have any, keys and values of (T, queries | keys | values): (T, heads, head_dim)."""
    n_q = (2 if op.has_gates else 1) * op.n_heads * op.head_dim
    n_k = op.n_kv_heads * op.head_dim
    queries, k, v = np.split(qkv, [n_q, n_q + n_k], axis=-1)
    q, gates = np.split(queries.reshape(len(qkv), op.n_heads, -1), [op.head_dim], axis=-1)
    return q, gates, k.reshape(len(qkv), -1, op.head_dim), v.reshape(len(qkv), -1, op.head_dim)
