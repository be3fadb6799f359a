"""Chooses the next token from logits: biases, penalties, top-k, top-p, min-p, temperature, a seeded draw.

The order is llama.cpp's. Draws come from a counter-based generator, so the n-th token of a seed does not
depend on what ran before or how steps were batched. `masked` is the reference for the kernel `mask_logits`, `pick` for
`top_logits` and `sample`, which choose the very same token from the same logits. Knows token ids and numbers, no text.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vkllm.engine.events import TokenLogprob
from vkllm.engine.params import RANDOM_SEED, SamplingParams
from vkllm.gpu.program.kernels import TOP_K
from vkllm.gpu.program.step import KEEP_ALL, Draw

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FRACTION_BITS = 26
MAX_WEIGHT_BITS = 25
EXP2 = (2147483648, 1488522224, 515881616, 119183791, 20609763, 2774097, 246919)
"""2^-f = c0 - f (c1 - f (c2 - ...)) for f in [0, 1), in units of 2^-31; `EXP2` in shaders/sample.comp."""


class Sampler:
    """The choices of one request. prompt_token_ids: what the penalties see besides the answer."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed in (None, RANDOM_SEED) else params.seed
        self._biases = params.biases
        self._tokens = list(prompt_token_ids)
        self._n_prompt = len(self._tokens)

    @property
    def suits_gpu(self) -> bool:
        """Whether the GPU can choose: it keeps the TOP_K largest logits and knows neither penalties nor biases."""
        params = self.params
        is_plain = not (params.has_penalties or params.logit_bias)
        return is_plain and (params.temperature == 0 or 0 < params.top_k <= TOP_K)

    def choose(self, logits: Floats, mask: Words | None = None) -> int:
        """The next token from logits (V,), of those that a mask allows; later ones' penalties count it as generated."""
        params = self.params
        scores = self._biased(logits) if params.logit_bias else logits
        scores = self._penalized(scores) if params.has_penalties else scores
        if mask is not None:
            scores = masked(scores, mask)
        if params.temperature == 0:
            token_id = int(np.argmax(scores))
        else:
            token_id = pick(scores, self.draw(len(self._tokens) - self._n_prompt))
        self._tokens.append(token_id)
        return token_id

    def draw(self, n: int) -> Draw:
        """The draw of the n-th token of the answer, for `pick` here or on the GPU. Temperature 0 draws none."""
        params = self.params
        return Draw(
            top_k=params.top_k,
            top_p=min(int(params.top_p * 2**32), KEEP_ALL),
            min_p=math.ceil(params.min_p * 2**MAX_WEIGHT_BITS),
            slope=slope(params.temperature),
            number=random_word(self.seed, n),
        )

    def _biased(self, logits: Floats) -> Floats:
        """Adds the request's logit biases, as in OpenAI's API."""
        scores = logits.copy()
        for token_id, bias in self._biases.items():
            scores[token_id] += np.float32(bias)
        return scores

    def _penalized(self, logits: Floats) -> Floats:
        """Lowers the scores of recent tokens. Keskar et al. 2019, arXiv 1909.05858; OpenAI's API."""
        params = self.params
        recent = self._tokens if params.penalty_window < 0 else self._tokens[-params.penalty_window :]
        counts = Counter(recent)
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        n_seen = np.fromiter(counts.values(), np.float64, len(counts))
        seen = logits[ids].astype(np.float64)
        seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        scores = logits.copy()
        scores[ids] = seen - params.frequency_penalty * n_seen - params.presence_penalty
        return scores


def masked(scores: Floats, mask: Words) -> Floats:
    """Scores (V,) with -inf for tokens that are not allowed; token t is bit t % 32 of word t // 32 of the mask."""
    is_allowed = np.unpackbits(mask.view(np.uint8), count=len(scores), bitorder="little")
    return np.where(is_allowed, scores, np.float32(-np.inf))


def pick(scores: Floats, draw: Draw) -> int:
    """The token that a draw chooses from scores (V,).

    A weight is 2^25 times the ratio of a token's probability to the largest one, as an integer, so a token less than
    2^-26 times as likely as the likeliest has weight 0. Sums of integers are exact, so neither the device nor the order
    of additions can change the choice.
    """
    ids = _largest(scores, draw.top_k)
    behind = scores[ids[0]] - scores[ids]
    weights = _weights(behind, slope(1.0))
    before = np.cumsum(weights) - weights
    is_kept = weights >= draw.min_p  # Nguyen et al. 2024, arXiv 2407.01082
    if draw.top_p < KEEP_ALL:  # Holtzman et al. 2020, arXiv 1904.09751
        is_kept &= before < (int(weights.sum()) * draw.top_p) >> 32
    is_kept[0] = True
    weights = np.where(is_kept, _weights(behind, draw.slope), 0)
    sums = np.cumsum(weights)
    place = (int(sums[-1]) * draw.number) >> 32
    return int(ids[np.searchsorted(sums, place, side="right")])


def slope(temperature: float) -> float:
    """How often a weight halves, in units of 2^-26, for each unit that a logit lies behind; a float32."""
    return float(np.float32(min(math.log2(math.e) * 2**FRACTION_BITS / temperature, 1e38)))


def _weights(behind: Floats, slope: float) -> Integers:
    """2^25 for the largest score, half for each halving behind it, to the nearest integer."""
    with np.errstate(over="ignore", invalid="ignore"):
        halvings = behind * np.float32(slope)
    has_weight = ~(halvings >= (MAX_WEIGHT_BITS + 1) << FRACTION_BITS)
    fixed_point = np.where(has_weight & (halvings > 0), halvings, 0).astype(np.int64)
    fraction = (fixed_point << (32 - FRACTION_BITS)) & 0xFFFFFFFF
    power = np.full(len(behind), EXP2[-1], np.int64)
    for coefficient in EXP2[-2::-1]:
        power = coefficient - ((power * fraction) >> 32)
    shift = 31 - MAX_WEIGHT_BITS + (fixed_point >> FRACTION_BITS)
    rounded = (power + (1 << (shift - 1))) >> shift
    return np.where(has_weight, rounded, 0)


def _largest(scores: Floats | Doubles, k: int) -> Integers:
    """Indices of the k largest scores (0: all) in falling order; equal ones by index."""
    if k == 0 or k >= len(scores):
        return np.argsort(-scores, kind="stable")
    ids = np.flatnonzero(~(scores < np.partition(scores, -k)[-k]))
    return ids[np.argsort(-scores[ids], kind="stable")][:k]


def logprobs(logits: Floats, token_id: int, n_top: int) -> tuple[float, tuple[TokenLogprob, ...]]:
    """Log-probability of a token under logits (V,), and the n_top likeliest tokens with theirs."""
    scores = logits.astype(np.float64)
    largest = scores.max()
    log_total = float(largest + np.log(np.exp(scores - largest).sum()))
    top = _largest(scores, n_top) if n_top else np.zeros(0, np.int64)
    return float(scores[token_id]) - log_total, tuple(TokenLogprob(int(i), float(scores[i]) - log_total) for i in top)


def random_word(seed: int, n: int) -> int:
    """The n-th 32 random bits of a seed: Philox 2x32-10. Salmon et al. 2011, doi 10.1145/2063384.2063405."""
    mask = 0xFFFFFFFF
    left, right, key = n & mask, (seed >> 32) & mask, seed & mask
    for _ in range(10):
        product = 0xD256D193 * left
        left, right = (product >> 32) ^ key ^ right, product & mask
        key = (key + 0x9E3779B9) & mask
    return left
