"""Schemas, expressions and grammars: what they allow, and what is wrong with those that cannot be used."""

from __future__ import annotations

import json
import random
import threading

import pytest
from llguidance import LLMatcher, LLTokenizer

from vkllm.errors import InvalidParameter
from vkllm.text.grammar import answer_grammar
from vkllm.time_limit import TimeLimit

BYTES = LLTokenizer("byte")
PERSON = {
    "type": "object",
    "properties": {"zip": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["zip", "age"],
    "additionalProperties": False,
}
GBNF = """# a comment
root ::= "- " item ("\\n- " item)*
item ::= [a-z]+ | "\\"" [^"]+ "\\""
"""


def takes(text: str, **options: str) -> bool:
    """Whether the whole of a text is of a grammar."""
    grammar = answer_grammar(**options)
    assert grammar is not None
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    raw = list(text.encode())
    return bool(matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting())


def reason(**options: str) -> str:
    with pytest.raises(InvalidParameter) as caught:
        answer_grammar(**options)
    text = str(caught.value)
    assert "\n" not in text, "one sentence"
    return text


def test_without_any_there_is_no_grammar() -> None:
    assert answer_grammar() is None
    assert answer_grammar(None, None, None) is None
    assert answer_grammar(regex="") is not None


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('{"zip":"","age":0}', True),
        ('{"zip":"0412é","age":120}', True),
        ('{"age":1,"zip":""}', False),  # the order is the schema's
        ('{"zip":"","age":121}', False),
        ('{"zip":"123456","age":1}', False),
        ('{"zip":"","age":1,"x":1}', False),
        ('{"zip":""}', False),
        ('{"zip":"","age":1} ', False),
    ],
)
def test_a_schema_is_kept(text: str, is_valid: bool) -> None:
    assert takes(text, json_schema=json.dumps(PERSON)) == is_valid


def test_json_has_no_whitespace_unless_the_schema_asks_for_it() -> None:
    spaced = '{"a": [1, 2]}'
    assert takes('{"a":[1,2]}', json_schema="{}") and not takes(spaced, json_schema="{}")
    assert takes('{"a":"b c"}', json_schema='{"type":"object"}'), "in strings it is text"
    assert takes(spaced, json_schema='{"x-guidance":{"whitespace_flexible":true}}')


@pytest.mark.parametrize("schema", ["true", "{}", " {} "])
def test_a_schema_that_asks_for_nothing_takes_any_json(schema: str) -> None:
    for value in (None, True, -1.5e300, 'é\n"', [], {"a": [{}]}):
        assert takes(json.dumps(value, separators=(",", ":"), ensure_ascii=False), json_schema=schema)
    assert not takes("{'a':1}", json_schema=schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('{"type":', "json_schema is not valid JSON: Expecting value: line 1 column 9"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth"),
        ("[1]", 'must be an object, such as {"type": "object"}, not [1]'),
        ("false", "not false"),
        ('{"type": "int"}', "json_schema cannot be used: Invalid type: int"),
        ('{"type": "string", "pattern": "a("}', "regex parse error: unclosed group"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "minimum is greater than maximum"),
        ('{"type": "number", "minimum": NaN}', "minimum"),
        ('{"$ref": "#/$defs/none"}', "does not exist"),
        ('{"$ref": "https://example.com/schema"}', "only #/... within the schema"),
        ('{"enum": []}', "Unsatisfiable"),
        ('{"const": "\\ud800"}', "not JSON serializable"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(schema: str, why: str) -> None:
    assert why in reason(json_schema=schema)


@pytest.mark.parametrize(
    ("regex", "text", "is_match"),
    [
        (r"\d{3}-\d{2}", "123-45", True),
        (r"\d{3}-\d{2}", "1२3-45", False),  # a digit of another script
        (r"[\d.]+/x", "1.2/x", True),
        (r"^ab$", "ab", True),
        ("ab", "abc", False),
        ("ab", "xab", False),
        ("(?i)yes|no", "YES", True),
        ("a\nb", "a\nb", True),
        ("é+|日", "éé", True),
        ("a\\\\", "a\\", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_an_expression_is_for_the_whole_answer(regex: str, text: str, is_match: bool) -> None:
    assert takes(text, regex=regex) == is_match


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        ("a(", "regex cannot be used: regex parse error: unclosed group"),
        ("[", "unclosed character class"),
        ("\\", "ends with a backslash"),
        ("a\\\\\\", "ends with a backslash"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        (r"\bfoo", "lookarounds not supported"),
        ("a\ud800", "half a surrogate pair"),
    ],
)
def test_an_expression_that_cannot_be_kept_is_refused_with_the_reason(regex: str, why: str) -> None:
    assert why in reason(regex=regex)


@pytest.mark.parametrize(
    ("grammar", "text", "is_of_it"),
    [
        ('start: "yes" | "no"', "no", True),
        ('start: "yes" | "no"', "yesno", False),
        ('// Lark\nstart: WORD ("," WORD)*\nWORD: /[a-z]+/', "a,b", True),
        ('start: "= " %json {"type": "integer"}', "= 12", True),
        ("%llguidance {}\nstart: /a+/", "aaa", True),
        (GBNF, '- a\n- "B c"', True),
        (GBNF, "- a\n- B", False),
        ('root ::= "start:" x\nx ::= [0-9]{2,3}', "start:12", True),
    ],
)
def test_lark_and_gbnf_are_told_apart(grammar: str, text: str, is_of_it: bool) -> None:
    assert takes(text, grammar=grammar) == is_of_it


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("", "neither Lark, which has a rule `start: ...`, nor GBNF, which has a rule `root ::= ...`"),
        ('foo: "a"', "neither Lark"),
        ("start: foo", 'grammar cannot be used: at 1(8): unknown name: "foo"'),
        ('start: "a', "1(10): lexer error"),
        ("start: /(/", "regex parse error: unclosed group"),
        ('start: %json {"type": "int"}', "failed to compile JSON schema: Invalid type: int"),
        ('start: "\ud800"', "not JSON serializable"),
        ('x ::= "a"', "it has no rule `root ::= ...`"),
    ],
)
def test_a_grammar_that_is_none_is_refused_with_the_reason(grammar: str, why: str) -> None:
    assert why in reason(grammar=grammar)


@pytest.mark.parametrize(
    ("option", "text", "why"),
    [
        ("regex", "a" * 20_000, "regex is too large: it has 20000 characters, at most 16384 are read"),
        ("grammar", 'start: "' + "a" * 40_000 + '"', "grammar is too large"),
        (
            "grammar",
            "start: T\nT: " + " & ".join(f"/.*{i}.*/" for i in range(20)),
            "more than 8 expressions",
        ),
        ("grammar", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(500)), "more than 400 rules"),
        (
            "grammar",
            "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(60)) + "T60: /[a-z]*/",
            "complex",
        ),
        (
            "json_schema",
            '{"type": "string", "pattern": "^(.*a){30}$", "minLength": 4000, "maxLength": 4001}',
            "complex",
        ),
    ],
)
def test_what_would_take_too_long_is_refused(option: str, text: str, why: str) -> None:
    assert why in reason(**{option: text}), "of its size, not of the second that it may take"


@pytest.mark.parametrize(
    ("option", "text", "part"),
    [("json_schema", "{}", "read_schema"), ("regex", "a", "check_regex"), ("grammar", 'root ::= "a"', "lark_of_gbnf")],
)
def test_what_takes_too_long_to_read_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch, option: str, text: str, part: str
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr("vkllm.text.grammar._LIMIT", limit := TimeLimit(0.05))
    monkeypatch.setattr(f"vkllm.text.grammar.{part}", lambda *_: may_end.wait() and "")
    assert reason(**{option: text}).startswith(f"{option} takes longer than 0.05 s to read; make it smaller")
    assert reason(**{option: text}).startswith(f"{option} cannot be used while an earlier one still takes too long")
    assert any(worker.is_alive() for worker in limit._late), "it is refused before it has been read"
    may_end.set()
    for worker in limit._late:
        worker.join()


def test_errors_of_random_texts_are_typed() -> None:
    parts = ["start: ", "root ::= ", '"', "/", "(", "[", "\\", "{", "}", "|", "a", "\n", "%json ", "<", "é"]
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(parts, k=draw.randrange(1, 12)))
        for option in ("json_schema", "regex", "grammar"):
            try:
                answer_grammar(**{option: text})
            except InvalidParameter as error:
                assert "\n" not in str(error), text
