"""Schemas: what asserts nothing is taken, numbers are kept exactly, and what cannot be kept is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from vkllm.errors import InvalidParameter
from vkllm.text.grammar import answer_grammar

BYTES = LLTokenizer("byte")


def takes(schema: Any, text: str) -> bool:
    grammar = answer_grammar(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
    assert grammar is not None
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    raw = list(text.encode())
    return bool(matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting())


def reason(schema: Any) -> str:
    with pytest.raises(InvalidParameter) as caught:
        answer_grammar(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
    assert "\n" not in str(caught.value), "one sentence"
    return str(caught.value)


VALUES = [None, True, False, 0, 1, 2, 3, 5, 7, -1, 1.5, 10, "", "a", "ab", "abc", "x", [], [1], [1, 1], [1, 2], ["a"]]
VALUES += [{}, {"a": 1}, {"a": "x"}, {"b": 2}, {"a": 1, "b": 2}, {"kind": "cat", "n": 1}, {"kind": "dog", "n": 1}]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": False},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "string", "not": False},
        {"type": "string", "minLength": 1.0, "maxLength": 2.0},
        {"type": "array", "minItems": 1.0, "maxItems": 1e0, "contains": {"type": "null"}, "minContains": 0},
        {"type": "object", "minProperties": 1.0, "propertyNames": True, "dependentRequired": {"a": []}},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "unevaluatedProperties": False},
        {"type": "string", "format": "password"},
        {"type": "string", "format": "binary"},
        {"type": "string", "format": "path", "title": "T", "x-unknown": {"not": 1}, "discriminator": {"a": 1}},
        {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 3.0},
        {"type": "number", "minimum": -0.0, "maximum": 1e3},
        {"type": "integer", "multipleOf": 0.5},
        {"type": "integer", "multipleOf": 5.0},
        {"if": {"type": "string"}},
        {"then": False, "else": False},
        {"oneOf": [{"const": 1}, {"const": "a"}, {"const": None}]},
        {"oneOf": [{"enum": [1, 2]}, {"enum": [2.0, 3]}]},
        {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]},
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": {"const": 1}, "b": {"const": 2}}},
        {
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
            "$defs": {
                name.title(): {
                    "type": "object",
                    "properties": {"kind": {"const": name, "type": "string"}, "n": {"type": "integer"}},
                    "required": ["kind", "n"],
                }
                for name in ("cat", "dog")
            },
        },
        {"type": "string", "$defs": {"unused": {"not": {"type": "string"}}}},
    ],
)
def test_what_asserts_nothing_is_taken(schema: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema)
    for value in VALUES:
        assert takes(schema, json.dumps(value, separators=(",", ":"))) == validator.is_valid(value), value


BIG = 2**53


@pytest.mark.parametrize("value", [BIG, BIG + 2, -BIG, 2**60, 2**63 - 1024, 0, -7, 1.5, 0.1, 1e-7, 1e20, 123456789.125])
@pytest.mark.parametrize("keyword", ["const", "enum"])
def test_a_constant_number_is_itself(keyword: str, value: float) -> None:
    schema = {"const": value} if keyword == "const" else {"enum": [value]}
    written = f"{value:.7f}" if value == 1e-7 else str(int(value)) if value == int(value) else str(value)
    assert takes(schema, written) and json.loads(written) == value
    for other in (value + max(1, abs(value) // 2**52), value - max(1, abs(value) // 2**52)):
        assert not takes(schema, str(int(other)))


@pytest.mark.parametrize("value", [BIG + 1, -BIG - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**30])
def test_an_integer_of_any_size_is_itself(value: int) -> None:
    for schema, before, after in (
        ({"const": value}, "", ""),
        ({"enum": ["a", value]}, "", ""),
        ({"enum": [value], "type": "integer", "minimum": value}, "", ""),
        ({"const": [{"a": value}, "b", []]}, '[{"a":', '},"b",[]]'),
    ):
        assert takes({"properties": {"a": schema}}, f'{{"a":{before}{value}{after}}}')
        for other in (value + 1, value - 1):
            assert not takes({"properties": {"a": schema}}, f'{{"a":{before}{other}{after}}}')
    for bounds in (
        {"minimum": value, "maximum": value},
        {"exclusiveMinimum": value - 1, "exclusiveMaximum": value + 1},
    ):
        assert takes({"type": "integer", **bounds}, str(value))
        assert not takes({"type": "integer", **bounds}, str(value + 1))
        assert not takes({"type": "integer", **bounds}, str(value - 1))


@pytest.mark.parametrize("keyword", ["patternProperties", "minProperties"])
def test_an_integer_that_would_become_another_is_refused(keyword: str) -> None:
    """In what only llguidance reads."""
    rest = {"patternProperties": {"^a": {}}} if keyword == "patternProperties" else {"minProperties": 2}
    schema = {"properties": {"b": {"const": BIG + 1}}, "required": ["b"], **rest}
    why = reason(schema)
    assert "an integer beyond 2^53 cannot be kept exactly here" in why and "#/properties/b/const" in why
    assert takes({**schema, "properties": {"b": {"const": BIG}}}, f'{{"b":{BIG},"a":1}}')


@pytest.mark.parametrize(
    ("bounds", "taken", "refused"),
    [
        ({"minimum": BIG + 1}, [BIG + 1, BIG + 2, BIG + 3], [BIG, BIG - 1]),
        ({"maximum": BIG + 1}, [BIG + 1, BIG, 5, -BIG], [BIG + 2, BIG + 3]),
        ({"exclusiveMinimum": BIG}, [BIG + 1], [BIG]),
        ({"exclusiveMaximum": BIG}, [BIG - 1], [BIG]),
        (
            {"minimum": -(2**63), "maximum": 2**63 - 1},
            [0, -BIG, 2**63 - 1, -(2**63)],
            [2**63, -(2**63) - 1, 10**19],
        ),
        ({"minimum": 0, "maximum": 2**64 - 1}, [0, 2**53 + 1, 2**64 - 1], [-1, 2**64]),
        ({"minimum": 10**40, "multipleOf": 1e-30}, [10**40, 10**40 + 1], [10**40 - 1, 0]),
        ({"minimum": 1, "exclusiveMaximum": 4}, [1, 3], [0, 4]),
        ({"minimum": 1, "exclusiveMinimum": True, "maximum": 4}, [2, 4], [1, 5]),
    ],
)
def test_bounds_of_integers_are_exact(bounds: dict[str, Any], taken: list[int], refused: list[int]) -> None:
    schema = {"type": "integer", **bounds}
    assert all(takes(schema, str(value)) for value in taken)
    assert not any(takes(schema, str(value)) for value in refused)


@pytest.mark.parametrize(
    ("bounds", "taken", "refused"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.001", "0.49"], ["0", "-0", "0.0", "0.51", "1", "-0.1"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1e-3}, ["0.0009", "0.00001"], ["0", "0.0", "0.001", "-0.0001"]),
        ({"exclusiveMinimum": 1, "maximum": 1.5}, ["1.001", "1.5"], ["1", "1.0", "1.51", "0.9"]),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, ["-1.5", "-1.01"], ["-1", "-1.0", "-1.51", "-0.9"]),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5", "-0.01"], ["0", "-0", "-0.0", "-0.51", "0.1"]),
        ({"minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}, ["0.5", "0.1"], ["0", "0.0", "0.51"]),
        ({"exclusiveMinimum": 0, "maximum": 1}, ["0.5", "1"], ["0", "0.0", "1.1"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-20}, ["0.00000000000000000001"], ["0", "0.1"]),
    ],
)
def test_an_excluded_bound_is_refused_in_a_range_of_less_than_one(
    bounds: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    for text in taken:
        assert takes({"type": "number", **bounds}, text), text
    for text in refused:
        assert not takes({"type": "number", **bounds}, text), text


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {"a": {"not": {"type": "string"}}}}, "not is not supported; leave it out"),
        ({"properties": {"a": {"not": {"type": "string"}}}}, "(at #/properties/a)"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
        ({"contains": {"type": "null"}}, "contains is not supported"),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "if is not supported"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired is not supported"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {"a": ["b"]}},
            "dependentRequired",
        ),
        ({"dependencies": {"a": ["b"]}}, "dependencies is not supported"),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas is not supported"),
        ({"propertyNames": {"maxLength": 3}}, "propertyNames is not supported"),
        ({"anyOf": [{}], "unevaluatedProperties": False}, "unevaluatedProperties is not supported"),
        ({"anyOf": [{}], "unevaluatedItems": False}, "unevaluatedItems is not supported"),
        ({"$dynamicRef": "#x"}, "$dynamicRef is not supported"),
        ({"$recursiveRef": "#"}, "$recursiveRef is not supported"),
        ({"$ref": "https://example.com/a"}, "only #/... within the schema is"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf is supported where no value can be of two"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "nsatisfiable"),
        ({"minLength": -1}, "minLength must be a whole number from 0 on, not -1"),
        ('{"minItems": Infinity}', "minItems must be a whole number"),
        ({"format": ["date"], "minLength": -1}, "minLength must be a whole number"),
        ({"multipleOf": 10**400}, "has too many digits"),
        ({"maxItems": 1.5}, "maxItems must be a whole number"),
        ({"minimum": "1"}, "minimum must be a number"),
        ({"minimum": True}, "minimum must be a number"),
        ({"exclusiveMaximum": "1"}, "exclusiveMaximum must be a number"),
        ('{"minimum": Infinity}', "minimum must be a number"),
        ({"minimum": 10**401}, "has too many digits (at #/minimum)"),
        ({"maximum": int("12" * 60)}, "has too many digits (at #/maximum)"),
        ({"type": "integer", "multipleOf": 7e-30}, "has too many digits"),
        ({"multipleOf": True}, "multipleOf must be a number above 0"),
        ({"multipleOf": 0}, "multipleOf must be a number above 0"),
        ({"multipleOf": 0.0000123}, "has too many digits"),
        ('{"const": 0.1000000000000000055511}', "the number 0.1000000000000000055511 has more digits than can be kept"),
        ('{"const": 1e400}', "1e400 has more digits than can be kept"),
        ({"items": 5}, "a schema must be an object, true or false, not 5"),
        ({"properties": {"a": None}}, "(at #/properties/a)"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_name(schema: Any, why: str) -> None:
    assert why in reason(schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('{"items":' * 100 + "{}" + "}" * 100, "nested more than 64 deep"),
        ({"properties": {f"p{i}": {} for i in range(1001)}}, "1001 members"),
        ({"allOf": [{"type": "string", "pattern": f"w{i}"} for i in range(30)]}, "more than 6 patterns and formats"),
        ({"const": "x" * 20_000}, "more than 16384 characters"),
        ({"enum": ["x" * 300] * 1000}, "too large"),
        (
            {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(900)}},
            "more than 200 different $refs",
        ),
        (
            {
                "$ref": "#/$defs/d0",
                "$defs": {f"d{i}": {"items": {"items": {"items": {"$ref": f"#/$defs/d{i + 1}"}}}} for i in range(190)},
            },
            "lead through too many levels",
        ),
    ],
)
def test_a_schema_that_would_take_too_long_is_refused(schema: Any, why: str) -> None:
    assert why in reason(schema)


ONE = {"minItems": 1, "type": "array"}
NEEDS_A = {"type": "object", "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "ref"),
    [
        ({"$ref": "#"}, "#"),
        ({"anyOf": [{"$ref": "#"}]}, "#"),
        ({"allOf": [{"$ref": "#"}]}, "#"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "#/$defs/a"),
        ({**NEEDS_A, "properties": {"a": {"$ref": "#"}}}, "#"),
        ({**NEEDS_A, "additionalProperties": {"$ref": "#"}}, "#"),
        ({**ONE, "items": {"$ref": "#"}}, "#"),
        ({**ONE, "prefixItems": [{"$ref": "#"}]}, "#"),
        ({**ONE, "items": {"anyOf": [{"$ref": "#"}, {**NEEDS_A, "properties": {"a": {"$ref": "#"}}}]}}, "#"),
    ],
)
def test_a_schema_that_always_leads_back_to_itself_is_refused(schema: Any, ref: str) -> None:
    assert f"no answer could end, because $ref to {ref} always leads back to itself; leave a way out" in reason(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"type": "array", "items": {"$ref": "#"}},
        {**NEEDS_A, "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}},
        {**NEEDS_A, "properties": {"b": {"$ref": "#"}}},
        {**ONE, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/b"}]},
                                                          "b": {"const": 1}}},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},  # a number is of this schema too
        {**ONE, "minItems": 2, "prefixItems": [{"type": "null"}, {"type": "null"}], "items": {"$ref": "#"}},
    ],
)  # fmt: skip
def test_a_schema_with_a_way_out_of_itself_is_taken(schema: Any) -> None:
    assert answer_grammar(json_schema=json.dumps(schema))


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
    assert takes({**tree, "additionalProperties": False}, '{"kids":[{"kids":[]}]}')
    linked = {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
                "required": ["n", "next"],
                "additionalProperties": False,
            }
        },
    }
    assert takes(linked, '{"n":1,"next":{"n":2,"next":null}}') and not takes(linked, '{"n":1,"next":2}')
