"""How the tokens of an answer are chosen, and the ranges of these parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.parameters import checks_fields, number, truth, whole_number

RANDOM_SEED = -1
MAX_STOPS, MAX_STOP_CHARACTERS = 1024, 65_536
MAX_BIASES = 16_384
"""So many are looked through for every token without making answers slower."""


@checks_fields
@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The samplers run in llama.cpp's order: penalties, top-k, top-p, min-p, temperature.

    temperature: 0 is greedy; top_k: 0 or -1 keeps all; top_p: 1 keeps all; min_p: 0 keeps all.
    repetition_penalty (1 = off), presence_penalty and frequency_penalty (0 = off) look at the last
    `penalty_window` tokens of prompt and answer (0 = none, -1 = all).
    max_tokens: None or -1 means as many as the context holds. seed: -1 takes a random one; so does None, unless the
    model was loaded with a seed.
    context_shift: when an answer fills the context, the middle is dropped (`Request.n_keep`) and the answer goes on,
    instead of ending there; then max_tokens None is no limit.
    stop: strings that end the answer, which does not contain them. logprobs: how many alternatives to report for each
    token; True means 0. logit_bias: token ids -> numbers from -100 to 100, added to their logits before anything else.
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
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Turns None into the default and numbers into plain ones. Raises InvalidParameter for values out of range."""
        for field in fields(self):
            value, check = getattr(self, field.name), _CHECKS.get(field.name)
            checked = field.default if value is None else value if check is None else check(field.name, value)
            object.__setattr__(self, field.name, checked)
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
    def biases(self) -> dict[int, float]:
        """logit_bias as a dictionary: token ids, and what is added to their logits."""
        return dict(self.logit_bias)

    @property
    def has_penalties(self) -> bool:
        """Whether penalties change the logits."""
        return self.penalty_window != 0 and (
            self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    return lambda name, value: number(name, value, low, high)


def _unlimited(low: int, high: int, meaning: str, unlimited: int | None) -> Callable[[str, Any], int | None]:
    """A whole number, or -1, which becomes `unlimited`."""

    def check(name: str, value: Any) -> int | None:
        if isinstance(value, Real) and value == -1:
            return unlimited
        return whole_number(name, value, low, high, also=f", or -1 for {meaning}")

    return check


def _logprobs(name: str, value: Any) -> int | None:
    """True asks for the tokens' own log-probabilities, False for none."""
    if isinstance(value, bool):
        return 0 if value else None
    return whole_number(name, value, 0, 1000)


def _stop(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InvalidParameter(f"{name} must be a string or a list of strings, not {value!r}")
    if len(texts) > MAX_STOPS or sum(map(len, texts)) > MAX_STOP_CHARACTERS:
        raise InvalidParameter(
            f"{name} must have at most {MAX_STOPS} strings with {MAX_STOP_CHARACTERS} characters in all, not "
            f"{len(texts)} with {sum(map(len, texts))}"
        )
    return texts


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidParameter(f"{name} must be a list of token ids, not {value!r}")
    return tuple(whole_number(f"a token id of {name}", token_id, 0, 2**31) for token_id in value)


def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token id, which JSON writes as text, and what is added to its logit."""
    if not isinstance(value, Mapping | tuple):
        raise InvalidParameter(f"{name} must map token ids to numbers between -100 and 100, not {value!r}")
    if len(value) > MAX_BIASES:
        raise InvalidParameter(f"{name} must have at most {MAX_BIASES} tokens, not {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items() if isinstance(value, Mapping) else value:
        token_id = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key
        token_id = whole_number(f"a token id of {name}", token_id, 0, 2**31)
        biases[token_id] = number(f"{name} of token {token_id}", bias, -100, 100)
    return tuple(biases.items())


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_tokens": _unlimited(1, 2**31, "no limit", None),
    "temperature": _number(0, 100),
    "top_k": _unlimited(0, 2**31, "all tokens", 0),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.01, 100),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "penalty_window": _unlimited(0, 2**31, "all tokens", -1),
    "seed": _unlimited(0, 2**64 - 1, "a random one", RANDOM_SEED),
    "stop": _stop,
    "stop_token_ids": _token_ids,
    "ignore_eos": truth,
    "logprobs": _logprobs,
    "context_shift": truth,
    "logit_bias": _logit_bias,
}
