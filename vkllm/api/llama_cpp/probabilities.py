"""Probabilities of tokens in the shape of llama.cpp's own API: as the model finds them, or after the samplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from vkllm.api.answer import Logprob, TopLogprob
from vkllm.engine.params import SamplingParams
from vkllm.text.tokenizer import Tokenizer


def probabilities(logprobs: Sequence[Logprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities of tokens and of those that could have come."""

    def told(token_id: int, text: str, logprob: float) -> dict[str, Any]:
        return {"id": token_id, "token": text, "bytes": list(tokenizer.token_bytes(token_id)), "logprob": logprob}

    return [
        told(entry.token_id, entry.text, entry.logprob) | {"top_logprobs": [told(*top) for top in entry.top]}
        for entry in logprobs
    ]


def sampled_probabilities(
    logprobs: Sequence[Logprob], tokenizer: Tokenizer, params: SamplingParams, n_wanted: int
) -> list[dict[str, Any]]:
    """How likely each token was to be drawn, and the n_wanted likeliest ones in its place.

    The logprobs must have as many alternatives as top-k keeps. Penalties and biases are not counted.
    """

    def told(token_id: int, text: str, probability: float) -> dict[str, Any]:
        return {"id": token_id, "token": text, "bytes": list(tokenizer.token_bytes(token_id)), "prob": probability}

    made = []
    for entry in logprobs:
        kept = drawn_from(entry.top, params)
        own = next((p for top, p in kept if top.token_id == entry.token_id), math.exp(entry.logprob))
        top = [told(top.token_id, top.text, p) for top, p in kept[:n_wanted]]
        made.append(told(entry.token_id, entry.text, own) | {"top_probs": top})
    return made


def drawn_from(tops: Sequence[TopLogprob], params: SamplingParams) -> list[tuple[TopLogprob, float]]:
    """The tokens that the samplers leave, likeliest first, and their probabilities, which add up to 1."""
    kept = list(tops[: params.top_k] if params.top_k else tops)
    if params.temperature == 0:
        kept = kept[:1]
    weights = [math.exp(top.logprob - kept[0].logprob) for top in kept]
    total = sum(weights)
    before = [0.0, *accumulate(weight / total for weight in weights)]
    kept = [
        top
        for top, weight, share in zip(kept, weights, before, strict=False)
        if share < params.top_p and weight >= params.min_p
    ] or kept[:1]
    scale = 1 / (params.temperature or 1.0)
    weights = [math.exp((top.logprob - kept[0].logprob) * scale) for top in kept]
    total = sum(weights)
    return [(top, weight / total) for top, weight in zip(kept, weights, strict=True) if weight > 0]
