"""What callers give as sampling parameters: numbers of all kinds, -1, None, names that are not known."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vkllm import InvalidParameter, SamplingParams


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"max_tokens": -1}, "max_tokens", None),
        ({"max_tokens": 16.0}, "max_tokens", 16),
        ({"max_tokens": np.int32(16)}, "max_tokens", 16),
        ({"max_tokens": Fraction(16)}, "max_tokens", 16),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": np.float32(9)}, "top_k", 9),
        ({"penalty_window": -1}, "penalty_window", -1),
        ({"penalty_window": -1.0}, "penalty_window", -1),
        ({"seed": -1}, "seed", -1),
        ({"seed": 2**64 - 1}, "seed", 2**64 - 1),
        ({"seed": np.uint64(2**64 - 1)}, "seed", 2**64 - 1),
        ({"temperature": np.float16(0.5)}, "temperature", 0.5),
        ({"temperature": 1}, "temperature", 1),
        ({"temperature": None}, "temperature", 0.8),
        ({"top_p": None}, "top_p", 0.95),
        ({"stop": None}, "stop", ()),
        ({"stop": "ab"}, "stop", ("ab",)),
        ({"stop": ["ab", "c"]}, "stop", ("ab", "c")),
        ({"stop_token_ids": np.array([1, 2])}, "stop_token_ids", (1, 2)),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"logprobs": np.int64(3)}, "logprobs", 3),
        ({"ignore_eos": np.bool_(True)}, "ignore_eos", True),
        ({"ignore_eos": 0}, "ignore_eos", False),
        ({"logit_bias": {"5": 1, 6: np.float32(-0.5)}}, "logit_bias", ((5, 1), (6, -0.5))),
        ({"logit_bias": None}, "logit_bias", ()),
    ],
)
def test_values_become_plain(options: dict[str, Any], field: str, value: Any) -> None:
    params = SamplingParams(**options)
    found = getattr(params, field)
    assert found == value and type(found) is type(value)
    assert replace(params) == params and hash(params) == hash(pickle.loads(pickle.dumps(params)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number between 1 and 2147483648, or -1 for no limit, not 0"),
        ({"max_tokens": -2}, "or -1 for no limit, not -2"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number .* not 1.5"),
        ({"max_tokens": "16"}, "not '16'"),
        ({"max_tokens": True}, "not True"),
        ({"max_tokens": float("inf")}, "not inf"),
        ({"max_tokens": 10**400}, "max_tokens must be"),
        ({"top_k": -2}, "top_k must be a whole number between 0 and 2147483648, or -1 for all tokens, not -2"),
        ({"top_k": 3.5}, "top_k must be"),
        ({"seed": -2}, "or -1 for a random one, not -2"),
        ({"seed": 2**64}, "seed must be"),
        ({"temperature": float("nan")}, "temperature must be a number between 0 and 100, not nan"),
        ({"temperature": np.float32("inf")}, "temperature must be"),
        ({"temperature": 1j}, "temperature must be"),
        ({"temperature": np.ones(2)}, "temperature must be"),
        ({"ignore_eos": "false"}, "ignore_eos must be True or False, not 'false'"),
        ({"context_shift": 2}, "context_shift must be True or False, not 2"),
        ({"logprobs": 1001}, "logprobs must be a whole number between 0 and 1000, not 1001"),
        ({"stop": b"ab"}, "stop must be a string or a list of strings"),
        ({"stop_token_ids": "12"}, "stop_token_ids must be a list of token ids, not '12'"),
        ({"stop_token_ids": [1.5]}, "a token id of stop_token_ids must be a whole number"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "a token id of logit_bias must be a whole number .* not 'five'"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 must be a number between -100 and 100, not 101"),
        ({"logit_bias": {5: float("-inf")}}, "logit_bias of token 5 must be"),
        ({"temprature": 1}, "temprature is no parameter that vkllm knows; did you mean temperature?"),
        ({"repeat_penalty": 1.1}, "repeat_penalty is no parameter .* did you mean repetition_penalty?"),
        ({"max_new_tokens": 1}, "did you mean max_tokens?"),
        ({"repeat_last_n": 1}, "did you mean penalty_window?"),
        ({"mirostat": 1}, r"^mirostat is no parameter that vkllm knows; docs/embed\.md says which there are$"),
    ],
)
def test_what_cannot_be_is_named_in_a_typed_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        SamplingParams(**options)


def test_none_is_the_default_of_every_field() -> None:
    assert SamplingParams(**{field.name: None for field in fields(SamplingParams)}) == SamplingParams()
