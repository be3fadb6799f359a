"""Chooses the next token from logits: penalties, top-k, top-p, min-p, temperature, a seeded draw.

The order is llama.cpp's. Draws come from a counter-based generator, so the n-th token of a seed does not
depend on what ran before or how steps were batched. Knows token ids and numbers, no text.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vkllm.engine.request import SamplingParams, TokenLogprob

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Sampler:
    """The choices of one request. prompt_token_ids: what the penalties see besides the answer."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._tokens = list(prompt_token_ids)
        self._n_drawn = 0

    def choose(self, logits: Floats) -> int:
        """The next token from logits (V,); it counts as generated for the penalties of later ones."""
        params = self.params
        scores = logits.astype(np.float64)
        if params.has_penalties:
            self._penalize(scores)
        token_id = int(np.argmax(scores)) if params.temperature == 0 else self._draw(scores)
        self._tokens.append(token_id)
        return token_id

    def _penalize(self, scores: Doubles) -> None:
        """Lowers the scores of recent tokens, in place. Keskar et al. 2019, arXiv 1909.05858; OpenAI's API."""
        params = self.params
        recent = self._tokens if params.penalty_window < 0 else self._tokens[-params.penalty_window :]
        counts = Counter(recent)
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        n_seen = np.fromiter(counts.values(), np.float64, len(counts))
        seen = scores[ids]
        seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        scores[ids] = seen - params.frequency_penalty * n_seen - params.presence_penalty

    def _draw(self, scores: Doubles) -> int:
        params = self.params
        ids = _largest(scores, params.top_k)
        probabilities = _softmax(scores[ids])
        if params.top_p < 1:  # Holtzman et al. 2020, arXiv 1904.09751
            n_kept = int(np.searchsorted(np.cumsum(probabilities), params.top_p)) + 1
            ids, probabilities = ids[:n_kept], probabilities[:n_kept]
        if params.min_p > 0:  # Nguyen et al. 2024, arXiv 2407.01082
            n_kept = int(np.count_nonzero(probabilities >= params.min_p * probabilities[0]))
            ids = ids[:n_kept]
        cumulative = np.cumsum(_softmax(scores[ids] / params.temperature))
        drawn = uniform(self.seed, self._n_drawn) * cumulative[-1]
        self._n_drawn += 1
        return int(ids[min(int(np.searchsorted(cumulative, drawn, side="right")), len(ids) - 1)])


def _largest(scores: Doubles, k: int) -> npt.NDArray[np.int64]:
    """Indices of the k largest scores (0: all) in falling order; equal ones by index."""
    ids = np.arange(len(scores)) if k == 0 or k >= len(scores) else np.argpartition(scores, -k)[-k:]
    order: npt.NDArray[np.int64] = ids[np.lexsort((ids, -scores[ids]))]
    return order


def _softmax(scores: Doubles) -> Doubles:
    weights = np.exp(scores - scores[0])
    shares: Doubles = weights / weights.sum()
    return shares


def logprobs(logits: Floats, token_id: int, n_top: int) -> tuple[float, tuple[TokenLogprob, ...]]:
    """Log-probability of a token under logits (V,), and the n_top likeliest tokens with theirs."""
    scores = logits.astype(np.float64)
    largest = scores.max()
    log_total = float(largest + np.log(np.exp(scores - largest).sum()))
    top = _largest(scores, n_top) if n_top else np.zeros(0, np.int64)
    return float(scores[token_id]) - log_total, tuple(TokenLogprob(int(i), float(scores[i]) - log_total) for i in top)


def uniform(seed: int, n: int) -> float:
    """The n-th number in [0, 1) of a seed: Philox 2x32-10, 24 bits. Salmon et al. 2011, doi 10.1145/2063384.2063405."""
    mask = 0xFFFFFFFF
    left, right, key = n & mask, (seed >> 32) & mask, seed & mask
    for _ in range(10):
        product = 0xD256D193 * left
        left, right = (product >> 32) ^ key ^ right, product & mask
        key = (key + 0x9E3779B9) & mask
    return (left >> 8) / 2**24
