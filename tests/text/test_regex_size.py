"""The two sizes of regular expressions, and the grammars that are refused because of them."""

from __future__ import annotations

import json

import pytest
from work_time import assert_grows_linearly

from vkllm.errors import InvalidParameter
from vkllm.text.grammar import answer_grammar
from vkllm.text.regex_size import Size, check_lark, size_of_regex


@pytest.mark.parametrize(
    ("regex", "given", "optional"),
    [
        ("", 0, 0),
        ("abc", 3, 0),
        ("a{3}b{2,}c{0,4}", 6, 1),
        ("(a{1000}){1000}b", 1_000_001, 0),
        ("((ab){2}c){3}", 15, 0),
        ("a{2}{3}", 6, 0),
        ("a?b*c+d{,3}", 4, 3),
        ("a??b*?c+?(?:d)??", 4, 3),
        (r"\w*\p{L}?[^a]*.*é?", 8, 20),
        (r"[a-z]*[\x{0}-\x{10ffff}]*", 2, 5),
        ("(ab|)", 2, 4),
        ("(|ab)", 2, 4),
        ("(a?){5}", 5, 1),
        (r"\*\?\{9\}\(", 6, 0),
        ("[a?*{9}]{5}[]x]{2}", 7, 0),
        ("(?i)a(?P<name>b){2}(?s:.){3}", 6, 0),
        ("日{10}", 40, 0),
        ("^a$", 1, 0),
    ],
)
def test_the_size_of_an_expression(regex: str, given: int, optional: int) -> None:
    assert size_of_regex(regex) == Size(given, optional)


BIG = r"/(a{1000}){101}/"
MANY = "/" + r"\w*" * 501 + "/"


@pytest.mark.parametrize(
    ("option", "text", "why"),
    [
        ("regex", "(a{1000}){1000}b", "ask for texts of more than 100000 bytes"),
        ("regex", "((a{100}){100}){100}b", "100000 bytes"),
        ("regex", "(日本){40000}", "100000 bytes"),
        ("regex", r"\w*" * 5000, "more than 2000 parts that may be left out"),
        ("regex", "a?" * 8000, "2000 parts"),
        ("regex", r"(\w|)" * 2000, "2000 parts"),
        ("regex", r"(?:\p{L}{0,3})" * 1000, "2000 parts"),
        ("grammar", f"start: {MANY}", "2000 parts"),
        ("grammar", "start: T\nT: " + "/[a-z]*/ " * 3500, "2000 parts"),
        ("grammar", "start: T\nT: " + '["a"] ' * 3500, "2000 parts"),
        ("grammar", f"start: (T | U) x\nT: {MANY}\nU: /a/\nx: U", "2000 parts"),
        ("grammar", f"start: T\nT: U\nU: V\nV: {BIG} | /b/", "100000 bytes"),
        ("grammar", 'start: T\nT: U{1000}\nU: "a"{1000}', "100000 bytes"),
        ("grammar", 'start: T\nT[lazy]: (U ","){1000}\nU: "a"~1000', "100000 bytes"),
        ("grammar", "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(17)) + 'T17: "a"', "100000"),
        ("grammar", "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(12)) + "T12: /a*/", "2000"),
        ("grammar", "start: %json " + json.dumps({"type": "string", "pattern": r"\w*" * 501}), "2000 parts"),
        ("grammar", 'root ::= ("a"{1000} "b"){1000}', "100000 bytes"),
        ("grammar", "root ::= " + '"a"? ' * 3000, "2000 parts"),
        ("grammar", 'root ::= "(" root ")" | x\nx ::= ("a"{1000}){1000}', "100000 bytes"),
        ("json_schema", json.dumps({"type": "string", "pattern": "^(a{1000}){1000}$"}), "100000 bytes"),
        ("json_schema", json.dumps({"patternProperties": {"(a{1000}){1000}": {}}}), "100000 bytes"),
        ("json_schema", json.dumps({"allOf": [{"pattern": "a?" * 700 + str(i)} for i in range(3)]}), "2000 parts"),
        ("json_schema", json.dumps({"properties": {f"{i}": {"pattern": r"\w*" * 60} for i in range(9)}}), "2000 parts"),
        ("json_schema", json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "a*" * 2001}}}), "2000 parts"),
    ],
)
def test_what_would_take_seconds_is_refused_at_once(
    option: str, text: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vkllm.text.grammar._checked", None)  # which would have llguidance compile it
    with pytest.raises(InvalidParameter, match=f"^{option} is too complex: its regular expressions .*{why}"):
        answer_grammar(**{option: text})


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("regex", "[a-z]{1,90000}(,[a-z]{0,1000}){0,1000}"),
        ("regex", "|".join(f"word{i}" for i in range(1500))),
        ("regex", "(a?){3000}a{3000}"),
        ("grammar", 'root ::= line{0,2000}\nline ::= [^\\n]{0,2000} "\\n"'),
        ("grammar", "start: (WORD SEP?)*\nWORD: /[a-z]+(-[a-z]+)*/\nSEP: /[ ,]{1,5}/"),
        ("grammar", 'start: A ("a*" B)*  // a? b?\nA: "x"{9000}\nB: "y"{9000} | A\n'),
        (
            "json_schema",
            json.dumps(
                {"properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"} for i in range(400)}}
            ),
        ),
    ],
)
def test_large_expressions_that_are_quick_are_taken(option: str, text: str) -> None:
    assert answer_grammar(**{option: text})


def test_terminals_that_lead_back_to_themselves_have_no_size_and_are_refused() -> None:
    check_lark("start: T\nT: U{1000} T\nU: T{1000}", "grammar")
    with pytest.raises(InvalidParameter, match="grammar cannot be used"):
        answer_grammar(grammar="start: T\nT: U{1000} T\nU: T{1000}")


@pytest.mark.parametrize("piece", ["(", "[", "\\p{", "(?P<a", "{1", "(?", "a{99}"])
def test_sizes_of_texts_that_are_no_expressions_take_time_that_grows_with_them(piece: str) -> None:
    def sizes(n: int) -> None:
        size_of_regex(piece * n)
        check_lark(f"start: {piece * (n // 2)}", "grammar")

    assert_grows_linearly(sizes, 1000 // len(piece))
