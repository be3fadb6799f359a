"""How the tokens of an answer are chosen, and the ranges of these parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vkllm.errors import InvalidParameter


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The samplers run in llama.cpp's order: penalties, top-k, top-p, min-p, temperature.

    temperature: 0 is greedy; top_k: 0 keeps all; top_p: 1 keeps all; min_p: 0 keeps all.
    repetition_penalty (1 = off), presence_penalty and frequency_penalty (0 = off) look at the last
    `penalty_window` tokens of prompt and answer (0 = none, -1 = all).
    max_tokens: None means as many as the context holds. seed: None draws one.
    context_shift: an answer that fills the context goes on after its middle was dropped (`Request.n_keep`), instead of
    ending there; then max_tokens None is no limit.
    stop: strings that end the answer (handled in `vkllm.api.llm`). logprobs: how many alternatives to report.
    json_schema, regex, grammar: at most one; the whole answer is JSON of this schema (given as text), matches this
    expression (Rust's syntax) or is of this grammar (Lark as llguidance reads it, or llama.cpp's GBNF), unless
    max_tokens, a stop string or a stop token ends it early. It ends where nothing may follow, ignore_eos or not.

    >>> params = SamplingParams(temperature=0, max_tokens=1)
    >>> llm.generate("The capital of France is", params).text
    ' Paris'
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    context_shift: bool = False
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidParameter for a value out of its range."""
        _within("max_tokens", self.max_tokens, 1, 2**31)
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, 0, 2**31)
        _within("top_p", self.top_p, 0, 1)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("penalty_window", self.penalty_window, -1, 2**31)
        _within("seed", self.seed, 0, 2**64 - 1)
        _within("logprobs", self.logprobs, 0, 1000)
        if any(not text for text in self.stop):
            raise InvalidParameter("stop must not contain an empty string; leave it out instead")
        given = {name: getattr(self, name) for name in ("json_schema", "regex", "grammar")}
        given = {name: text for name, text in given.items() if text is not None}
        if len(given) > 1:
            raise InvalidParameter(f"an answer cannot follow both {' and '.join(given)}; give one of them")
        for name, text in given.items():
            if not isinstance(text, str):
                raise InvalidParameter(f"{name} must be a string, not {type(text).__name__}")

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on earlier tokens beyond the model itself."""
        return self.penalty_window != 0 and (
            self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value) or not low <= value <= high:
        raise InvalidParameter(f"{name} must be a number between {low} and {high}, not {value!r}")
