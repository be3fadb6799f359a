"""Fifty schemas that programs really send: each is taken, answers to it come through token by token, others do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import validators
from real_classes import PYDANTIC
from real_schemas import OPENAI, Case
from real_tools import TOOLS

from vkllm.engine.constraint import Vocabulary
from vkllm.text.grammar import answer_grammar

CASES = [*PYDANTIC, *OPENAI, *TOOLS]
# All bytes, and some tokens of several characters such as models have.
TOKENS = [*(bytes([i]) for i in range(256)), b'{"', b'":', b'","', b"the", b"ee", b"12", b'"}', b"\xff<end>"]
END = len(TOKENS) - 1
VOCABULARY = Vocabulary(TOKENS, {END})


def is_answer(grammar: str, value: Any) -> bool:
    """Whether a value may be the whole answer, by the longest token that the mask of each step allows."""
    constraint = VOCABULARY.constraint(grammar)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    while text and not constraint.is_complete:
        mask = constraint.mask()
        fit = [
            (len(token), i)
            for i, token in enumerate(TOKENS[:END])
            if text.startswith(token) and mask[i // 32] >> (i % 32) & 1
        ]
        if not fit:
            return False
        length, token_id = max(fit)
        constraint.accept(token_id)
        text = text[length:]
    if not constraint.is_complete and not text:
        if not constraint.mask()[END // 32] >> (END % 32) & 1:
            return False
        constraint.accept(END)
    return constraint.is_complete and not text


def test_there_are_fifty() -> None:
    assert len(CASES) >= 50 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_schema_takes_a_valid_answer_and_not_an_invalid_one(case: Case) -> None:
    kind = validators.validator_for(case.schema)
    validator = kind(case.schema, format_checker=kind.FORMAT_CHECKER)
    assert validator.is_valid(case.valid) and not validator.is_valid(case.invalid)
    grammar = answer_grammar(json_schema=json.dumps(case.schema))
    assert grammar is not None
    assert is_answer(grammar, case.valid)
    assert not is_answer(grammar, case.invalid)
