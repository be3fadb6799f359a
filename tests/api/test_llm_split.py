"""The default model on several devices, here one named more than once: tokens, and log-probabilities within rounding,
are those of one device, for prompts side by side, answers by a schema and drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vkllm import LLM, Generation

pytestmark = [pytest.mark.gpu, pytest.mark.weights]

PROMPTS = ["The capital of France is", "Once upon a time, in a small village at the sea,", "1, 2, 3, 4,"]
REPEATED = "red green blue red green blue red green blue red green blue"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
MAX_LOGPROB_ERROR = 0.05
"""Activations of 8 bits turn the least difference into another of 255 values: see test_golden.py."""


def answers(llm: LLM) -> list[Generation]:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    return [
        *llm.generate(PROMPTS, logprobs=3, **options),
        llm.generate("A number as JSON:", json_schema=SCHEMA, **options | {"max_tokens": 12}),
        llm.generate(REPEATED, **options),
    ]


@pytest.mark.parametrize(
    ("mode", "n_devices"),
    [
        ("tensor", 2),
        *(pytest.param(*case, marks=pytest.mark.with_all) for case in [("tensor", 3), ("tensor", 4), ("layer", 2)]),
    ],
)
def test_several_devices_answer_as_one(smollm2: LLM, default_model: Path, mode: str, n_devices: int) -> None:
    wanted = answers(smollm2)
    with LLM(default_model, device=[0] * n_devices, split_mode=mode, n_ctx=256) as several:
        found = answers(several)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert all(answer.token_ids for answer in wanted)
    for one, other in zip(wanted[: len(PROMPTS)], found, strict=False):
        assert one.logprobs and other.logprobs and len(one.logprobs) == len(other.logprobs)
        errors = [abs(a.logprob - b.logprob) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
        assert max(errors) < MAX_LOGPROB_ERROR
