"""Schemas with bounds of numbers, in every form around them: the texts that they take are those of the schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from vkllm.errors import InvalidParameter
from vkllm.text.grammar import answer_grammar
from vkllm.text.json_schema import prepared
from vkllm.text.schema_lark import lark_of_schema

BYTES = LLTokenizer("byte")
LOW: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 9}
HIGH: dict[str, Any] = {"type": "number", "exclusiveMinimum": 5}
NODE = {
    "type": "object",
    "properties": {"n": LOW, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
    "required": ["n"],
    "additionalProperties": False,
}


def is_taken(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    raw = list(text.encode())
    return bool(matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting())


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"minimum": 1}, ["1", "0", "1e0", "null", '"a"', "[]", "[0]", "{}", "true"]),
    ({"type": ["integer", "null"], "maximum": 3}, ["3", "-4", "-0", "4", "null", '"3"']),
    ({"type": ["number", "string"], "minimum": 3, "maxLength": 1}, ["3.0", '"a"', '"ab"', "2.9", "3e0", "2e0"]),
    ({"anyOf": [LOW, HIGH]}, ["7", "7.5", "4.5", "4", "-1", "-0", "6e3", "12"]),
    ({"allOf": [LOW, HIGH]}, ["5", "6", "9", "10", "6.5"]),
    ({"allOf": [{"minimum": 2}, {"type": "integer"}], "maximum": 4}, ["1", "2", "4", "5", "2.5", "null"]),
    ({"type": "integer", "anyOf": [{"maximum": 1}, {"minimum": 5}], "minimum": 0}, ["-1", "0", "1", "2", "5", "6"]),
    ({"enum": [1, 4, "a", 2.5], "minimum": 2}, ["1", "4", '"a"', "2.5", "3"]),
    ({"enum": [1, 4, 2.5], "type": "integer", "minimum": 2}, ["1", "4", "2.5"]),
    ({"enum": [True, 1, 3], "minimum": 0, "maximum": 2}, ["true", "1", "3", "false"]),
    ({"const": 4, "minimum": 2, "multipleOf": 2}, ["4", "2"]),
    ({"type": "number", "minimum": 0, "multipleOf": 0.5}, ["0", "-0", "-0.0", "0.5", "1.5", "0.3", "-0.5"]),
    ({"type": "integer", "minimum": -4, "multipleOf": 3}, ["-3", "0", "-0", "3", "4", "-6"]),
    ({"type": "array", "items": LOW}, ["[]", "[1]", "[1,2]", "[10]", "[1,10]", "1"]),
    ({"type": "array", "items": LOW, "minItems": 1, "maxItems": 2}, ["[]", "[1]", "[1,2]", "[1,2,3]"]),
    ({"type": "array", "items": LOW, "minItems": 2, "maxItems": 2}, ["[1]", "[1,2]", "[1,2,3]"]),
    ({"type": "array", "items": LOW, "maxItems": 1}, ["[]", "[1]", "[1,2]"]),
    ({"type": "array", "items": LOW, "maxItems": 0}, ["[]", "[1]"]),
    ({"items": LOW, "minItems": 2}, ["[]", "[1]", "[1,2]", "[1,2,3]", "1", "{}"]),
    ({"type": "array", "prefixItems": [LOW, {"type": "null"}], "items": HIGH}, ["[]", "[1]", "[1,null]", "[1,1]"]),
    ({"type": "array", "prefixItems": [LOW, {}], "items": HIGH, "minItems": 2}, ["[1]", "[1,2]", "[1,2,3]", "[1,2,6]"]),
    ({"type": "array", "prefixItems": [LOW], "items": False}, ["[]", "[1]", "[1,2]"]),
    ({"type": "array", "prefixItems": [LOW, False], "items": {}}, ["[]", "[1]", "[1,2]"]),
    ({"allOf": [{"type": "array", "items": LOW}, {"items": {"minimum": 3}, "maxItems": 2}]}, ["[2]", "[3]", "[3,4,5]"]),
    (closed({"a": LOW, "b": {"type": "null"}}, "a", "b"), ['{"a":1,"b":null}', '{"a":1}', "{}", '{"a":10,"b":null}']),
    (closed({"a": LOW, "b": HIGH}, "b"), ['{"a":1,"b":6}', '{"b":6}', "{}", '{"a":1}', '{"b":6,"c":1}']),
    (closed({"a": LOW, "b": HIGH, "c": {}}), ["{}", '{"a":1}', '{"b":6}', '{"c":6}', '{"a":1,"c":6}', '{"a":1,"b":1}']),
    (
        {"properties": {"a": LOW}},
        ["{}", '{"a":1}', '{"a":10}', '{"a":1,"b":10}', '{"b":"a"}', "1", '{"a":1,"b":1,"c":1}'],
    ),
    ({"type": "object", "additionalProperties": LOW}, ["{}", '{"a":1}', '{"a":10}', '{"é\\n":1,"":2}', '{"a":null}']),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": LOW}, ['{"a":10}', '{"b":1}', '{"b":10}']),
    (
        {"type": "object", "required": ["b"], "additionalProperties": LOW},
        ['{"b":1}', "{}", '{"b":1,"c":2}', '{"b":10}'],
    ),
    (closed({'q"\\é': LOW}, 'q"\\é'), ['{"q\\"\\\\é":1}', '{"q\\"\\\\é":10}']),
    (closed({"a": {"allOf": [LOW, HIGH], "maximum": 4}}), ["{}", '{"a":1}', '{"a":5}']),
    (
        {"allOf": [closed({"a": LOW, "b": {}}, "a"), {"properties": {"a": HIGH}}]},
        ['{"a":6}', '{"a":4}', '{"a":6,"b":1}'],
    ),
    ({"$ref": "#/$defs/Node", "$defs": {"Node": NODE}}, ['{"n":1}', '{"n":1,"next":{"n":2,"next":null}}', '{"n":10}']),
    ({"$ref": "#/$defs/Low", "maximum": 3, "$defs": {"Low": LOW}}, ["3", "4", "-1"]),
    ({"properties": {"a": LOW, "b": {"$ref": "#/properties/a"}}}, ['{"a":1,"b":2}', '{"a":1,"b":10}']),
    ({"type": ["array", "number"], "items": {"$ref": "#"}, "minimum": 0}, ["[]", "[[],[1,[]]]", "[-1]", "5", "-5"]),
    ({"const": {"a": [2**53 + 1, "b"]}}, [f'{{"a":[{2**53 + 1},"b"]}}', f'{{"a":[{2**53},"b"]}}', "{}"]),
]


@pytest.mark.parametrize(("schema", "texts"), CASES, ids=[json.dumps(schema)[:60] for schema, _ in CASES])
def test_a_text_is_taken_exactly_if_it_is_valid(schema: dict[str, Any], texts: list[str]) -> None:
    lark = lark_of_schema(prepared(schema))
    assert lark is not None and answer_grammar(json_schema=json.dumps(schema)) == lark
    validator = Draft202012Validator(schema)
    found = {text: is_taken(lark, text) for text in texts}
    assert found == {text: validator.is_valid(json.loads(text)) for text in texts}
    assert len(set(found.values())) == 2, "some are valid, some are not"


def test_numbers_are_taken_in_every_usual_form_within_other_parts() -> None:
    schema = closed({"share": {"type": "number", "minimum": 0, "maximum": 1}, "n": {"type": "integer", "minimum": 0}})
    grammar = answer_grammar(json_schema=json.dumps(schema))
    assert grammar is not None
    for share in ("0", "-0", "-0.0", "0.5", "1", "1.0", "1e-07", "5E-1", "12.5e-2", "0e9"):
        assert is_taken(grammar, f'{{"share":{share},"n":-0}}'), share
    for share in ("-0.1", "1.01", "2e0", "1e1", "-1e-07", "01", "0x1", "Infinity"):
        assert not is_taken(grammar, f'{{"share":{share},"n":-0}}'), share


def test_hundreds_of_properties_may_all_be_left_out() -> None:
    grammar = answer_grammar(json_schema=json.dumps(closed({f"p{i}": LOW for i in range(500)})))
    assert grammar is not None
    for text, is_valid in {'{"p0":1,"p499":2}': True, '{"p250":3}': True, "{}": True, '{"p9":1,"p8":1}': False}.items():
        assert is_taken(grammar, text) == is_valid


def test_whitespace_is_taken_if_the_schema_asks_for_it() -> None:
    schema = closed({"a": {"type": "array", "items": LOW}, "b": {"type": "string"}}, "a", "b")
    spaced = '{ "a" : [ 1 , 2 ],\n  "b": "c d" }'
    for is_flexible in (True, False):
        options = {"x-guidance": {"whitespace_flexible": is_flexible}}
        lark = lark_of_schema(prepared({**schema, **options}))
        assert lark is not None
        assert is_taken(lark, spaced) == is_flexible
        assert is_taken(lark, json.dumps(json.loads(spaced), separators=(",", ":")))
        assert not is_taken(lark, f" {spaced}")


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (
            {"type": "object", "properties": {"a": LOW}, "minProperties": 2, "required": ["a"]},
            '{"a":1,"b":2}',
            '{"a":1}',
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [LOW]}, "[10]", "[1"),
        ({"x-guidance": {"item_separator": ", "}, "type": "array", "items": LOW}, "[1, 2]", "[1,2]"),
        ({"anyOf": [{"minimum": i + 0.123456789, "maximum": i / 7 + 999} for i in range(480)]}, "2", "0.1"),
        ({"allOf": [{"anyOf": [{"minimum": i}] * 9} for i in range(3)]}, "2", "1"),
    ],
    ids=["count", "draft 7", "separators", "many numbers", "many choices"],
)
def test_what_only_llguidance_reads_is_left_to_it(schema: dict[str, Any], valid: str, invalid: str) -> None:
    assert lark_of_schema(prepared(schema)) is None
    grammar = answer_grammar(json_schema=json.dumps(schema))
    assert grammar is not None and is_taken(grammar, valid) and not is_taken(grammar, invalid)


def test_a_part_that_only_llguidance_reads_is_left_to_it() -> None:
    part = {"type": "object", "patternProperties": {"^b": {"$ref": "#/$defs/High"}}, "additionalProperties": False}
    schema = {**closed({"n": LOW, "part": part}), "$defs": {"High": HIGH, "Other": {"const": 2**53 + 1}}}
    lark = lark_of_schema(prepared(schema))
    assert lark is not None
    for text in ('{"n":-0}', '{"n":-0,"part":{"b":6.5}}', '{"part":{}}'):
        assert is_taken(lark, text), text
    for text in ('{"part":{"b":5}}', '{"part":{"a":6}}'):
        assert not is_taken(lark, text), text


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (closed({"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "a"), "minimum is greater than maximum"),
        ({"properties": 5, "items": LOW}, "properties must be an object"),
        ({"properties": {"a": LOW}, "required": "a"}, "Expected array for 'required'"),
        ({"properties": {"a": LOW}, "required": [1]}, "Expected string for 'required' item"),
        ({"prefixItems": 5, "items": LOW}, "prefixItems must be an array"),
        ({"allOf": LOW}, "allOf must be an array"),
        ({"anyOf": [LOW, 5]}, "schema must be an object"),
        ({"enum": 2**60, "minimum": 5}, "enum must be an array"),
        ({"type": [{}], "minimum": 5}, "type must be a string"),
        ({"type": "int", "minimum": 5}, "Invalid type: int"),
        ({"$ref": 5, "minimum": 5}, "must be a string"),
        ({"properties": {"a": LOW, "b": {"$ref": "#/$defs/none"}}}, "does not exist"),
        ({"properties": {"a": LOW, "b": {"pattern": "("}}}, "unclosed group"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        answer_grammar(json_schema=json.dumps(schema))
    assert why in str(caught.value) and "\n" not in str(caught.value)
