"""Drafts of answers with a grammar: tokens that must come, and copied ones as far as they may; the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_specs import tiny_spec
from random_model import engine_config, write_random_model
from tiny_vocabularies import tiny_bpe, write_gguf

from vkllm.engine.constraint import Vocabulary
from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, TokenTexts
from vkllm.engine.speculation.drafter import Speculation
from vkllm.engine.speculation.gain import DraftLengths
from vkllm.errors import NoDevice
from vkllm.text.grammar import answer_grammar
from vkllm.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"temperature": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"const": "celsius"}},
    "required": ["temperature", "unit"],
    "additionalProperties": False,
}
JSON = answer_grammar(json_schema=json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(write_gguf(tmp_path_factory.mktemp("vocabulary") / "tiny.gguf", tiny_bpe()))


def test_a_constraint_looks_ahead_without_going_on(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer.answer_bytes(), tokenizer.stop_ids)
    constraint = vocabulary.constraint(JSON)
    ahead, forced = constraint.look_ahead([], 31)
    assert tokenizer.decode(ahead) == '{"temperature":' and forced == {*range(len(ahead))}
    masks = [constraint.mask(i).tolist() for i in range(len(ahead) + 1)]
    assert constraint.look_ahead([], 3) == (ahead[:3], {0, 1, 2})
    wrong = [ahead[0], ahead[0]]
    assert constraint.look_ahead(wrong, 31)[0] == ahead, "what must come replaces what was guessed"
    for i, token_id in enumerate(ahead):
        assert constraint.mask().tolist() == masks[i]
        constraint.accept(token_id)
    assert constraint.mask().tolist() == masks[-1] and constraint.look_ahead([], 31) == ([], set())
    number = tokenizer.encode("42")
    guess = [*number, *tokenizer.encode(',"unit":"celsius"}')]
    ahead, forced = constraint.look_ahead(guess, 31)
    assert tokenizer.decode(ahead).startswith('42,"unit":"celsius"') and 0 not in forced
    one, letter = tokenizer.encode("4"), tokenizer.encode("x")
    assert constraint.look_ahead([*one, *letter], 31)[0] == one, "no letter may follow a number"
    for token_id in ahead:
        constraint.accept(token_id)
        assert not constraint.is_complete, "an end is never drafted"


def test_tokens_that_must_come_are_drafted_where_that_pays(tokenizer: Tokenizer) -> None:
    constraint = Vocabulary(tokenizer.answer_bytes(), tokenizer.stop_ids).constraint(JSON)
    speculation = Speculation((1, 2, 4, 8, 16, 32))
    drafter = speculation.drafter("", [1, 2, 3])
    assert drafter.draft(31, 1, constraint) == [], "nothing was timed yet"
    for _ in range(2):
        speculation.lengths.timed(1, 1.0)
        speculation.lengths.timed(4, 1.2)
    must_come = constraint.look_ahead([], 31)[0]
    assert drafter.draft(3, 1, constraint) == must_come[:3]
    for width in (2, 4, 8, 16):
        for _ in range(40):
            speculation.lengths.timed(width, 1.2 * width)
    assert drafter.draft(31, 1, constraint) == []


@pytest.mark.gpu
def test_answers_with_a_grammar_are_the_same_with_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    spec = tiny_spec(n_vocab=tokenizer.n_vocab)
    path = write_random_model(tmp_path / "model.gguf", spec, {})
    monkeypatch.setattr(DraftLengths, "best", lambda self, probabilities, n_rows=1, waits=False: len(probabilities))
    config = engine_config(path, spec)
    prompt = tuple(int(t) for t in np.random.default_rng(3).integers(0, 256, 20))
    options: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0}, {"temperature": 1.5, "seed": 2}]
    found = {}
    for name in ("off", "auto"):
        try:
            engine = Engine(replace(config, options=replace(config.options, spec=name)))
        except NoDevice as error:
            pytest.skip(str(error))
        engine.learn(TokenTexts(tokenizer.answer_bytes(), tokenizer.stop_ids))
        requests = [
            Request(i, prompt, SamplingParams(max_tokens=60, **each), tokenizer.stop_ids, grammar=JSON)
            for i, each in enumerate(options)
        ]
        requests.append(
            Request(3, prompt, SamplingParams(max_tokens=6, temperature=0), tokenizer.stop_ids, grammar=JSON)
        )
        events = []
        for together in ([requests[0]], requests[1:]):
            for request in together:
                engine.submit(request)
            while engine.has_work:
                events += engine.step()
        ends = sorted((e for e in events if isinstance(e, Finished)), key=lambda end: end.request_id)
        texts = [[e.token_id for e in events if isinstance(e, Token) and e.request_id == i] for i in range(4)]
        found[name] = [(text, end.reason) for text, end in zip(texts, ends, strict=True)]
        n_accepted = [end.stats.n_accepted for end in ends]
        engine.close()
    assert found["auto"] == found["off"] and min(n_accepted[:3]) > 10
    for text, reason in found["auto"][:3]:
        assert reason == "stop" and json.loads(tokenizer.decode(text))["unit"] == "celsius"
    assert len(found["auto"][3][0]) == 6 and found["auto"][3][1] == "length"
