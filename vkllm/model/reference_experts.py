"""Mixtures of experts in numpy float32: the mathematical definition of the kernels of the same names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vkllm.model.spec import Experts, Gating

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

MIN_SUM = 2.0**-14
"""Weights are divided by no smaller sum; float16's smallest normal number, as in llama.cpp."""


def route(logits: Floats, experts: Experts, bias: Floats | None = None) -> Floats:
    """Chooses experts by a router's logits (T, n_experts [+ 1 for the gate of the shared expert]).

    bias (n_experts,): added for the choice. Returns the routes (T, 2 * n_used + 1): the numbers of the chosen (the bits
    of uint32), the best first, of equal ones the lower number; their weights; the shared expert's weight.
    """
    of_experts = logits[:, : experts.n_experts]
    gates = _gates(of_experts, experts.gating)
    scores = of_experts if experts.chooses_by_logits else gates
    if bias is not None:
        scores = scores + bias
    if experts.n_groups > 1:
        scores = _in_best_groups(scores, experts)
    numbers = _largest(scores, experts.n_used)
    weights = np.take_along_axis(gates, numbers, axis=1)
    if experts.gating == "softmax_of_chosen":
        weights = _softmax(weights)
    if experts.is_normalized:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(MIN_SUM))
    weights = weights * np.float32(experts.scale)
    shared = _sigmoid(logits[:, experts.n_experts :]) if experts.has_shared_gate else np.ones((len(logits), 1))
    return np.concatenate([numbers.astype(np.uint32).view(np.float32), weights, shared], axis=1, dtype=np.float32)


def chosen_experts(routes: Floats, n_used: int) -> Integers:
    """(T, n_used): the numbers of the chosen experts in routes."""
    return np.ascontiguousarray(routes[:, :n_used]).view(np.uint32).astype(np.int64)


def chosen_weights(routes: Floats, n_used: int) -> Floats:
    """(T, n_used): their weights."""
    return routes[:, n_used : 2 * n_used]


def expert_matvec(
    x: Floats, matrices: Floats, numbers: Integers, bias: Floats | None = None, scale: Floats | None = None
) -> Floats:
    """scale * (W x) + bias of the matrix that each slot of a row chose.

    x (T, C), or (T, K, C) where each slot reads its own; matrices (E, R, C); numbers (T, K); bias (E, R); scale (E,).
    Returns (T, K, R).
    """
    inputs = np.broadcast_to(x[:, None], (*numbers.shape, x.shape[-1])) if x.ndim == 2 else x
    out = np.zeros((*numbers.shape, matrices.shape[1]), np.float32)
    for number in np.unique(numbers):
        is_chosen = numbers == number
        product = inputs[is_chosen] @ matrices[number].T
        if scale is not None:
            product = product * scale[number]
        out[is_chosen] = product if bias is None else product + bias[number]
    return out


def expert_sum(results: Floats, weights: Floats | None = None) -> Floats:
    """The sum of results (T, K, C), each times its weight (T, K), 1 by default: (T, C)."""
    weighed = results if weights is None else results * weights[..., None]
    y: Floats = weighed.sum(axis=1)
    return y


def _gates(logits: Floats, gating: Gating) -> Floats:
    match gating:
        case "softmax":
            return _softmax(logits)
        case "sigmoid":
            return _sigmoid(logits)
        case "softmax_of_chosen":
            return logits


def _softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    y: Floats = powers / powers.sum(axis=1, keepdims=True)
    return y


def _sigmoid(x: Floats) -> Floats:
    power = np.exp(-np.abs(x))  # never overflows
    y: Floats = np.where(x >= 0, 1, power) / (1 + power)
    return y


def _largest(scores: Floats, n: int) -> Integers:
    """(T, n): the places of the largest scores of each row, the largest first, of equal ones the first."""
    places: Integers = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    return places


def _in_best_groups(scores: Floats, experts: Experts) -> Floats:
    """The scores, -inf outside the groups whose two best have the largest sums."""
    groups = scores.reshape(len(scores), experts.n_groups, -1)
    best = _largest(np.sort(groups, axis=2)[..., -2:].sum(axis=2), experts.n_groups_used)
    is_best = np.zeros(groups.shape[:2], bool)
    np.put_along_axis(is_best, best, True, axis=1)
    masked: Floats = np.where(is_best[..., None], groups, np.float32(-np.inf)).reshape(scores.shape)
    return masked
