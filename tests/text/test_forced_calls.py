"""The schema of an answer that has to be a call, by jsonschema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from vkllm.errors import InvalidParameter
from vkllm.text.answers.forced import schema_of_call
from vkllm.text.answers.tool_choice import ToolChoice, tool_choice
from vkllm.text.grammar import answer_grammar

CITY = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "again": {"$ref": "#"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"type": "string", "maxLength": 8}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.mark.parametrize("tools", [TOOLS, TOOLS[:1]])
def test_a_call_has_a_tools_name_and_its_arguments(tools: list[dict]) -> None:
    schema = schema_of_call(tools)
    assert answer_grammar(json.dumps(schema)) is not None
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid({"name": "weather", "arguments": {"city": "Rome"}})
    assert valid({"name": "weather", "arguments": {"city": "Rome", "again": {"city": "Bern"}}})
    assert valid({"name": "now", "arguments": {}}) == (len(tools) == 2)
    for wrong in (
        {"name": "weather", "arguments": {}},
        {"name": "weather", "arguments": {"city": "Constantinople"}},
        {"name": "weather", "arguments": {"city": "Rome", "again": {"city": 3}}},
        {"name": "now", "arguments": {"city": "Rome"}},
        {"name": "other", "arguments": {}},
        {"name": "weather"},
    ):
        assert not valid(wrong)


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice(names=())),
        ({"type": "any"}, ToolChoice(is_forced=True)),
        ({"type": "function", "name": "f"}, ToolChoice(is_forced=True, names=("f",))),
        ({"type": "tool", "name": "f"}, ToolChoice(is_forced=True, names=("f",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            ToolChoice(names=("f",)),
        ),
    ],
)
def test_forms_of_the_choice(value: object, choice: ToolChoice) -> None:
    assert tool_choice(value) == choice


@pytest.mark.parametrize("value", ["f", 1, {"type": "function"}, {"type": "function", "function": {"name": 1}}, []])
def test_what_is_no_choice_is_refused(value: object) -> None:
    with pytest.raises(InvalidParameter, match="tool_choice must be"):
        tool_choice(value)


@pytest.mark.parametrize(
    ("choice", "is_forced", "names", "most"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, False, None, 1),
        ({"type": "any", "disable_parallel_tool_use": False}, True, None, None),
        ({"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, True, ("weather",), 1),
        ({"type": "none"}, False, (), None),
    ],
)
def test_choices_in_anthropics_form(
    choice: dict[str, Any], is_forced: bool, names: tuple[str, ...] | None, most: int | None
) -> None:
    assert tool_choice(choice) == ToolChoice(is_forced, names, most)
