"""Structured output through the Python API: options, errors, and the default model's JSON at temperature 1."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tiny_vocabularies import tiny_spm, write_gguf

from vkllm import LLM, Generation, InvalidParameter, SamplingParams
from vkllm.api.prompts import Prompts
from vkllm.engine.events import Token
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

MakeLLM = Callable[..., LLM]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach an engine."""
    requests: list[Request] = []
    send = EngineProcess.send
    monkeypatch.setattr(
        EngineProcess, "send", lambda self, request, *rest: requests.append(request) or send(self, request, *rest)
    )
    return requests


@pytest.mark.parametrize("schema", [{"type": "boolean"}, '{"type": "boolean"}'])
def test_a_schema_is_a_dictionary_or_text(fake_llm: MakeLLM, sent: list[Request], schema: Any) -> None:
    answer = fake_llm().generate("Xab", max_tokens=2, json_schema=schema)
    assert answer.text == "ab", "this engine keeps to no grammar"
    assert sent[0].params.json_schema == '{"type": "boolean"}'
    assert sent[0].grammar is not None and '"json_schema":{"type":"boolean"' in sent[0].grammar


def test_options_of_a_call_and_params_are_the_same(fake_llm: MakeLLM, sent: list[Request]) -> None:
    llm = fake_llm()
    llm.generate("Xab", regex="[ab]+", max_tokens=1)
    llm.generate("Xab", SamplingParams(regex="[ab]+"), max_tokens=1)
    llm.chat([{"role": "user", "content": "hi"}], grammar="root ::= [ab]+", max_tokens=1)
    llm.generate("Xab", SamplingParams(regex="[ab]+"), regex=None, max_tokens=1)
    grammars = [request.grammar for request in sent]
    assert grammars[0] == grammars[1] == "start: /[ab]+/" and grammars[3] is None
    assert "/[\\x{61}-\\x{62}]/+" in (grammars[2] or "")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"json_schema": "{"}, "json_schema is not valid JSON"),
        ({"json_schema": {"type": "colour"}}, "json_schema cannot be used: Invalid type: colour"),
        ({"json_schema": {"enum": {1, 2}}}, "json_schema cannot be written as JSON: Object of type set"),
        ({"json_schema": [1]}, "json_schema must be an object"),
        ({"regex": "("}, "regex cannot be used: regex parse error: unclosed group"),
        ({"regex": 5}, "regex must be a string, not int"),
        ({"grammar": "say something"}, "grammar is neither Lark"),
        ({"regex": "a", "grammar": 'start: "a"'}, "an answer cannot follow both regex and grammar; give one of them"),
        ({"json_schema": {}, "regex": "a"}, "both json_schema and regex"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_it_is_queued(
    fake_llm: MakeLLM, sent: list[Request], options: dict[str, Any], why: str
) -> None:
    llm = fake_llm()
    with pytest.raises(InvalidParameter, match=why):
        llm.generate("Xab", **options)
    with pytest.raises(InvalidParameter, match=why):
        llm.chat([{"role": "user", "content": "hi"}], stream=True, **options)
    assert sent == []
    assert llm.generate("Xab", max_tokens=2).text == "ab"


def test_a_schema_in_params_must_be_text() -> None:
    with pytest.raises(InvalidParameter, match="json_schema must be a string, not dict"):
        SamplingParams(json_schema={})  # type: ignore[arg-type]


def test_a_space_at_the_beginning_is_a_part_of_an_answer_with_a_grammar(tmp_path: Path) -> None:
    metadata = write_gguf(tmp_path / "spm.gguf", tiny_spm())
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    prompts = Prompts(
        tokenizer,
        template,
        SamplingParams(),
        itertools.count(),
        model="tiny",
        pooling=None,
        d_embedding=64,
        n_ctx=256,
        n_ctx_train=256,
    )
    (the,) = tokenizer.encode("the", add_special=False)
    for options, text in (({}, "the"), ({"regex": " the"}, " the")):
        answer = prompts.of_chat([{"role": "user", "content": "abc"}], None, options)
        assert answer.push(Token(answer.request.id, the)) == text


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def cases() -> list[tuple[str, dict[str, Any]]]:
    """50 prompts with schemas of ten kinds."""
    found: list[tuple[str, dict[str, Any]]] = []
    for i, topic in enumerate(("a cat", "Paris", "an apple", "the Moon", "a king")):
        found += [
            (f"The colour of {topic}?", {"enum": ["red", "dark green", "blue", "grey", None][: 5 - i % 2]}),
            (f"A year for {topic}?", {"type": "integer", "minimum": 1900 + 7 * i, "maximum": 2025}),
            (f"Name {topic}.", {"type": "string", "minLength": i, "maxLength": 9 + i}),
            (f"When was {topic}?", {"type": "string", "pattern": "^(19|20)\\d{2}-(0[1-9]|1[0-2])-[0-2][1-8]$"}),
            (
                f"Numbers of {topic}?",
                {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99 * i}, "maxItems": 3},
            ),
            (
                f"Is {topic} big?",
                record(big={"type": "boolean"}, sure={"enum": ["yes", "no"]}, why={"type": "string", "maxLength": 12}),
            ),
            (
                f"Where is {topic}?",
                record(at=record(x={"type": "integer", "minimum": -i, "maximum": 9}, y={"const": i})),
            ),
            (
                f"How many {topic}?",
                {"anyOf": [{"type": "null"}, record(n={"type": "integer", "minimum": 1, "maximum": 9 + i})]},
            ),
            (f"Rate {topic}.", {"type": "array", "items": {"type": "boolean"}, "minItems": 1 + i % 3, "maxItems": 4}),
            (f"Price of {topic}?", record(usd={"type": "integer", "minimum": 0, "maximum": 10**i, "multipleOf": 5})),
        ]
    return found


@pytest.mark.gpu
@pytest.mark.weights
def test_answers_to_schemas_of_ten_kinds_at_temperature_1_are_valid(smollm2: LLM, pytestconfig: pytest.Config) -> None:
    def asked(seed: int, question: str, schema: dict[str, Any]) -> Generation:
        prompt = [{"role": "user", "content": f"JSON only. {question}"}]
        return smollm2.chat(prompt, json_schema=schema, temperature=1, seed=seed, max_tokens=200)

    # every kind once, of each topic two kinds
    seeds = [i for i in range(50) if pytestconfig.getoption("--all") or (i // 10 + i % 10) % 5 == 0]
    questions, schemas = zip(*(cases()[i] for i in seeds), strict=True)
    with ThreadPoolExecutor(8) as threads:  # eight at once, each with a grammar of its own
        answers = list(threads.map(asked, seeds, questions, schemas))
    for question, schema, answer in zip(questions, schemas, answers, strict=True):
        assert answer.finish_reason == "stop", (question, answer.text)
        Draft202012Validator(schema).validate(json.loads(answer.text))
        if "When" in question:
            assert date.fromisoformat(json.loads(answer.text))
