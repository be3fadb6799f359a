"""An answer that has to be a call of a tool: the schema that it follows, and what reads it.

The model writes the call as JSON, whatever form its template shows: a grammar sees to it, so that the call is complete,
unless a limit cuts the answer, and its arguments are what the tool's schema says.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.text.answers.parts import CutCall, Parts, ToolCall

_DEFINITIONS = ("$defs", "definitions")
_STRING = r'"(?:[^"\\]|\\.)*"'
_BEGUN_CALL = re.compile(rf'\s*{{\s*"name"\s*:\s*({_STRING})(?:\s*,\s*"arguments"\s*:\s*(.*))?', re.DOTALL)
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
    """Reads an answer that is a call as `schema_of_call` has it. A call that was cut stays text, and is told where its
    name is there."""

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
            return Parts(text=self._text, cut_call=_cut_call(self._text))
        return Parts(tool_calls=(ToolCall(_new_id(), call["name"], call["arguments"]),))


def _cut_call(text: str) -> CutCall | None:
    """The call that a text begins; a string in its arguments goes as far as it came. None where it begins none."""
    from pydantic_core import from_json  # takes longer to import than all of this file

    if (begun := _BEGUN_CALL.match(text)) is None:
        return None
    written = begun[2] or ""
    try:
        name, said = json.loads(begun[1]), from_json(written or "{", allow_partial="trailing-strings")
    except ValueError:
        return None
    return CutCall(_new_id(), name, said, written) if isinstance(said, dict) else None


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
