"""The tools that a model may call: their names, and the types of arguments that it writes as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vkllm.text.answers.source import Broken, whole
from vkllm.text.answers.values import JSON, PYTHON, number, read_value

_MAX_REFERENCES = 20


class Tools:
    """Tools as plain dictionaries in OpenAI's form, as `plain_tools` makes them. names: of their functions."""

    def __init__(self, described: Sequence[Mapping[str, Any]] = ()) -> None:
        functions = [_mapping(tool.get("function")) or tool for tool in described]
        self._parameters = {
            str(function["name"]): _mapping(function.get("parameters")) or _mapping(function.get("input_schema"))
            for function in functions
            if function.get("name")
        }
        self.names = frozenset(self._parameters)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._parameters)

    def arguments(self, tool: str) -> list[str]:
        """The names of a tool's arguments that its schema lists."""
        return [str(name) for name in _mapping(self._parameters.get(tool, {}).get("properties"))]

    def typed(self, tool: str, argument: str, text: str) -> Any:
        """The value of an argument that is written as text, by the tool's schema; the text itself where that has no
        such argument or the text is no value of its type."""
        root = self._parameters.get(tool, {})
        properties = _mapping(root.get("properties"))
        if argument in properties:
            schema = properties[argument]
        else:
            schema = root.get("additionalProperties")
            if not isinstance(schema, Mapping):
                return text
        types = list(dict.fromkeys(_types(schema, root, _MAX_REFERENCES)))
        for kind in sorted(types, key=lambda kind: kind == "string"):  # a text is what nothing else is
            try:
                return _as_type(text, kind)
            except Broken:
                continue
        return None if "string" not in types and text.strip().lower() in ("null", "none") else text


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _types(schema: Any, root: Mapping[str, Any], n_left: int) -> Iterable[str]:
    """The JSON types that a schema allows; "any" where it says nothing."""
    if not isinstance(schema, Mapping) or n_left == 0:
        return ["any"]
    if isinstance(reference := schema.get("$ref"), str):
        found: Any = root
        for name in reference.removeprefix("#/").split("/"):
            found = _mapping(found).get(name)
        return _types(found, root, n_left - 1)
    if isinstance(kind := schema.get("type"), str):
        return [kind]
    if isinstance(kind, list):
        return [str(each) for each in kind]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(choices := schema.get(key), list) and choices:
            return [each for choice in choices for each in _types(choice, root, n_left - 1)]
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values:
        return [_NAMES.get(type(value), "object") for value in values]
    if "properties" in schema or "additionalProperties" in schema:
        return ["object"]
    return ["array"] if "items" in schema else ["any"]


_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}


def _as_type(text: str, kind: str) -> Any:
    """The text as a value of a type. Raises Broken if it is none."""
    stripped = text.strip()
    match kind:
        case "string":
            return text
        case "integer":
            value = number(stripped.lstrip("0") or "0")
            if value != int(value):
                raise Broken
            return int(value)
        case "number":
            return number(stripped)
        case "boolean":
            return _one_of(stripped.lower(), {"true": True, "false": False})
        case "null":
            return _one_of(stripped.lower(), {"null": None, "none": None})
        case "object":
            return _structure(stripped, dict)
        case "array":
            return _structure(stripped, list)
        case _:
            return _structure(stripped, object)


def _one_of(text: str, values: Mapping[str, Any]) -> Any:
    if text not in values:
        raise Broken
    return values[text]


def _structure(text: str, kind: type) -> Any:
    """JSON, or Python's writing of it, which some templates show to models."""
    try:
        value = whole(text, lambda source: read_value(source, JSON))
    except Broken:
        if kind is object:
            raise
        value = whole(text, lambda source: read_value(source, PYTHON))
    if not isinstance(value, kind):
        raise Broken
    return value
