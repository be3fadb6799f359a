"""Masks against brute force on small vocabularies, and answers of any model on real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from llguidance import LLParserLimits
from tiny_vocabularies import tiny_bpe, tiny_spm, write_gguf

from vkllm.engine.constraint import Constraint, Vocabulary
from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import ModelFile
from vkllm.text.grammar import answer_grammar
from vkllm.text.tokenizer import Tokenizer

SHARED = Path(__file__).parents[3] / "shared"
TINY = {"bpe": tiny_bpe, "spm": tiny_spm}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "reddish", "blue"]}, "minItems": 1, "maxItems": 3},
        "size": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 1000}, {"type": "null"}]},
        "day": {"type": "string", "pattern": "^20\\d{2}-(0[1-9]|1[0-2])$"},
        "inner": {
            "type": "object",
            "properties": {"is_on": {"type": "boolean"}},
            "required": ["is_on"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "size", "day", "inner"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.gguf"
    return Tokenizer.from_gguf(write_gguf(path, TINY[request.param]()))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.answer_bytes(), tokenizer.stop_ids)


def after(vocabulary: Vocabulary, grammar: str, ids: tuple[int, ...]) -> Constraint:
    constraint = vocabulary.constraint(grammar)
    for token_id in ids:
        constraint.accept(token_id)
    return constraint


def allowed(constraint: Constraint, n_vocab: int) -> set[int]:
    mask = constraint.mask()
    assert mask.shape == (-(-n_vocab // 32),) and mask.dtype == np.uint32
    token_ids = np.arange(n_vocab)
    return set(np.flatnonzero(mask[token_ids // 32] >> (token_ids % 32).astype(np.uint32) & 1).tolist())


def by_force(texts: set[bytes], tokenizer: Tokenizer, start: bytes) -> set[int]:
    """The tokens after which a text of the language can still come, and the ends after a whole one."""
    kinds = tokenizer.answer_bytes()
    found = {
        token_id
        for token_id, piece in enumerate(kinds)
        if piece and piece[0] != 0xFF and any(text.startswith(start + piece) for text in texts)
    }
    return found | (tokenizer.stop_ids if start in texts else set())


def words(parts: list[list[str]]) -> tuple[str, set[bytes]]:
    """An expression of alternatives in a row, and all texts that match it."""
    regex = "".join(f"({'|'.join(map(re.escape, part))})" for part in parts)
    return regex, {"".join(choice).encode() for choice in product(*parts)}


LANGUAGES = {
    "words": words([["hello", "hell", "held"], [" world", " wor", ""], ["", "é", "è"]]),
    "spaces": words([["the", " the", "a"], ["", " ", "  "], ["the", "abc", "日"]]),
    "one text": words([["hello world é"]]),
    "nothing at all, too": words([["", "aab", "aaa"]]),
    "marks as text": words([["<", ""], ["think", "|im_end|", "s"], [">"]]),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_masks_lead_to_all_texts_of_a_language_and_to_no_others(
    tokenizer: Tokenizer, vocabulary: Vocabulary, name: str
) -> None:
    regex, texts = LANGUAGES[name]
    grammar = answer_grammar(regex=regex)
    assert grammar is not None
    pieces, reached, n_exact = tokenizer.answer_bytes(), set(), 0
    starts: dict[bytes, tuple[int, ...]] = {b"": ()}
    waiting = [b""]
    while waiting:
        start = waiting.pop()
        constraint = after(vocabulary, grammar, starts[start])
        wanted = by_force(texts, tokenizer, start)
        if constraint.is_complete:
            assert start in texts and wanted == tokenizer.stop_ids
            reached.add(start)
            continue
        got = allowed(constraint, tokenizer.n_vocab)
        assert got and got <= wanted, start
        first_bytes = {pieces[token_id][:1] for token_id in wanted}
        if len(first_bytes) > 1:
            assert got == wanted, "where the next byte is open, every token may come"
            n_exact += 1
        for token_id in got:
            if token_id in tokenizer.stop_ids:
                assert after(vocabulary, grammar, (*starts[start], token_id)).is_complete
                reached.add(start)
            elif (longer := start + pieces[token_id]) not in starts:
                starts[longer] = (*starts[start], token_id)
                waiting.append(longer)
    assert reached == texts
    assert n_exact > 1 or len(texts) == 1


def test_every_end_token_may_end_an_answer() -> None:
    vocabulary = Vocabulary([b"a", b"b", b"\xff<end>", b"\xff</s>", b"\xff<s>"], {3, 2})
    grammar = answer_grammar(regex="ab?")
    assert grammar is not None
    for end in (2, 3):
        constraint = vocabulary.constraint(grammar)
        assert allowed(constraint, 5) == {0} and not constraint.is_complete
        constraint.accept(0)
        assert allowed(constraint, 5) == {1, 2, 3} and not constraint.is_complete
        constraint.accept(end)
        assert constraint.is_complete
    constraint = after(vocabulary, grammar, (0, 1))
    assert constraint.is_complete, "it needs no end token where nothing else may come"


def test_a_grammar_may_name_special_tokens() -> None:
    vocabulary = Vocabulary([b"a", b"b", b"\xff<end>", b"\xff<tool>"], {2})
    constraint = after(vocabulary, 'start: "a" <tool> "b"', (0,))
    assert allowed(constraint, 4) == {3}
    constraint.accept(3)
    assert allowed(constraint, 4) == {1}
    with pytest.raises(InvalidParameter, match=r'cannot be followed: .*unknown special token: "<tools>"'):
        vocabulary.constraint("start: <tools>")


@pytest.mark.parametrize(
    ("grammar", "ids", "why"),
    [
        ('start: "a"', (1,), "doesn't satisfy the grammar"),
        ('start: "ac"', (0,), "no token may follow"),
        ("start: foo", (), "unknown name"),
    ],
)
def test_what_goes_wrong_is_a_typed_error(grammar: str, ids: tuple[int, ...], why: str) -> None:
    vocabulary = Vocabulary([b"a", b"b", b"\xff<end>"], {2})
    with pytest.raises(InvalidParameter, match=f"^the grammar of the answer cannot be followed: .*{why}.*$"):
        after(vocabulary, grammar, ids).mask()


@pytest.mark.parametrize(
    ("grammar", "is_work_of_one_step"),
    [
        ("start: " + "c? " * 50 + "\nc: /[a-z]/ | c c", True),
        ("start: " + "c? " * 1500 + "\nc: /[a-z]/ | c c", False),
        ("start: T\nT: " + "/[a-z]*/ " * 750, True),
        ("start: T\nT: " + "/[a-z]*/ " * 3000, False),
    ],
)
def test_a_grammar_that_is_too_complex_ends_the_answer_after_a_bounded_amount_of_work(
    grammar: str, is_work_of_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary(
        [bytes([97 + i]) for i in range(26)] + [b"a" * n for n in range(2, 40)] + [b"\xff<end>"],
        {64},
        patience_s=60,
    )
    with pytest.raises(InvalidParameter, match="the grammar of the answer is too complex; make it smaller"):
        after(vocabulary, grammar, ()).mask()
    if is_work_of_one_step:  # llguidance's own limits, at which a step can take 15 s, would let it pass
        monkeypatch.setattr("vkllm.engine.constraint._LIMITS", LLParserLimits(verbose_errors=False))
        assert after(vocabulary, grammar, ()).mask().any()


@pytest.mark.parametrize(
    "regex",
    ["\\w*" * 499, "a?" * 1999, "(\\w|)" * 499, "(a{1000}){99}b", "(abcdefghij){9999}", "(a?){3000}a{3000}"],
)
def test_an_expression_at_the_limits_holds_up_no_one_for_a_second(regex: str) -> None:
    vocabulary = Vocabulary([bytes([97 + i]) for i in range(26)] + [b"aa", b"aaa", b"\xff<end>"], {28}, patience_s=1)
    grammar = answer_grammar(regex=regex)
    assert grammar is not None
    try:
        constraint = vocabulary.constraint(grammar)
        constraint.accept(0)
        assert allowed(constraint, 29)
    except InvalidParameter as error:
        assert "too complex" in str(error), "which is said before the second is over"


def test_a_model_without_end_tokens_takes_no_grammar() -> None:
    with pytest.raises(InvalidParameter, match="no token that ends an answer"):
        Vocabulary([b"a", b"b"], ()).constraint('start: "a"')


@pytest.fixture(scope="module", params=["smollm2", "llama-bpe", "llama-spm", "qwen2"])
def real(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "smollm2":
        path = request.getfixturevalue("default_model")
    elif not (path := SHARED / "vocabs" / f"ggml-vocab-{request.param}.gguf").exists():
        pytest.skip(f"{path} is not here")
    return Tokenizer.from_gguf(ModelFile.open(path).metadata)


def random_answers(tokenizer: Tokenizer, grammar: str, n: int) -> Iterator[str]:
    """Answers of a model that finds every allowed token as likely as any other."""
    vocabulary = Vocabulary(tokenizer.answer_bytes(), tokenizer.stop_ids)
    for seed in range(n):
        rng = np.random.default_rng(seed)
        constraint, ids = vocabulary.constraint(grammar), []
        while not constraint.is_complete:
            ids.append(int(rng.choice(sorted(allowed(constraint, tokenizer.n_vocab)))))
            constraint.accept(ids[-1])
            assert len(ids) < 200
        yield tokenizer.decode(ids, continues=True)


def test_any_answer_to_a_schema_is_valid(real: Tokenizer) -> None:
    grammar = answer_grammar(json_schema=json.dumps(SCHEMA))
    assert grammar is not None
    validator = Draft202012Validator(SCHEMA)
    answers = list(random_answers(real, grammar, 10))
    for answer in answers:
        validator.validate(json.loads(answer))
    assert len(set(answers)) == 10
