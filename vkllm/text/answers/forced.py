"""An answer that has to be a call of a tool: the schema that it follows, and what reads it.

The model writes the call as JSON, whatever form its template shows: a grammar sees to it, so that the call is always
complete and its arguments are what the tool's schema says.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.text.answers.parts import Parts, ToolCall

_DEFINITIONS = ("$defs", "definitions")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def schema_of_call(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of one call of any of these tools, which are as `plain_tools` makes them."""
    functions = [tool.get("function") or tool for tool in tools]
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for place, function in enumerate(functions):
        parameters = function.get("parameters") or function.get("input_schema") or _NO_ARGUMENTS
        at = f"tool_{place}"
        definitions |= _parts(parameters, at)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": str(function["name"])}, "arguments": {"$ref": f"#/$defs/{at}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions} if len(calls) > 1 else {**calls[0], "$defs": definitions}


def _parts(schema: Any, name: str) -> dict[str, Any]:
    """A schema and its definitions, each by a name of its own among those of all tools."""
    if not isinstance(schema, Mapping):
        return {name: schema}
    parts = {name: _renamed({key: value for key, value in schema.items() if key not in _DEFINITIONS}, name)}
    for group in _DEFINITIONS:
        if isinstance(schema.get(group), Mapping):
            parts |= {f"{name}.{key}": _renamed(value, name) for key, value in schema[group].items()}
    return parts


def _renamed(schema: Any, name: str) -> Any:
    """A schema whose references go to where its parts lie now."""
    if isinstance(schema, Mapping):
        renamed = {key: _renamed(value, name) for key, value in schema.items() if key not in ("$schema", "$id")}
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
            group = next((group for group in _DEFINITIONS if reference.startswith(f"#/{group}/")), None)
            rest = reference[1:] if group is None else f".{reference.removeprefix(f'#/{group}/')}"
            renamed["$ref"] = f"#/$defs/{name}{rest}"
        return renamed
    return [_renamed(item, name) for item in schema] if isinstance(schema, list) else schema


class ForcedCall:
    """Reads an answer that is a call as `schema_of_call` has it. A call that was cut stays text."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> Parts:
        """Takes in some text of the answer; nothing is clear before its end."""
        self._text += text
        return Parts()

    def finish(self) -> Parts:
        """The call."""
        try:
            call = json.loads(self._text)
        except ValueError:
            return Parts(text=self._text)
        return Parts(tool_calls=(ToolCall(f"call_{uuid.uuid4().hex[:24]}", call["name"], call["arguments"]),))
