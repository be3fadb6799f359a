"""`oneOf` as `anyOf`, where no value can be of two of its schemas. llguidance keeps no other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

_TYPES = {"null", "boolean", "number", "string", "array", "object"}
_MAX_PAIRS = 20_000


def any_of_apart(options: list[Any], root: Mapping[str, Any]) -> list[Any] | None:
    """The schemas of an anyOf that asserts what the oneOf does, or None if they may overlap.

    Constants that two of the schemas allow are left out: oneOf allows a value of exactly one.
    """
    constants = [_constants(option, root) for option in options]
    if options and all(values is not None for values in constants):
        n_schemas = Counter(key for values in constants for key in values or ())
        return [
            {"enum": [value]} for values in constants for key, value in (values or {}).items() if n_schemas[key] == 1
        ] or [False]
    if len(options) ** 2 > _MAX_PAIRS:
        return None
    pairs = ((a, b) for i, a in enumerate(options) for b in options[:i])
    return options if all(_are_apart(a, b, root, 0) for a, b in pairs) else None


def _are_apart(a: Any, b: Any, root: Mapping[str, Any], depth: int) -> bool:
    """Whether no value can be of both."""
    a, b = _target(a, root), _target(b, root)
    if a is False or b is False:
        return True
    if not isinstance(a, Mapping) or not isinstance(b, Mapping) or depth > 4:
        return False
    shared = _types(a) & _types(b)
    if not shared:
        return True
    some, others = _constants(a, root), _constants(b, root)
    if some is not None and others is not None:
        return not some.keys() & others.keys()
    for options, other in ((a.get("anyOf"), b), (b.get("anyOf"), a)):
        if isinstance(options, list) and all(_are_apart(option, other, root, depth + 1) for option in options):
            return True
    if shared != {"object"}:
        return False
    first, second = a.get("properties"), b.get("properties")
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    required = {name for each in (a, b) for name in _strings(each.get("required"))}
    return any(
        name in first and name in second and _are_apart(first[name], second[name], root, depth + 1) for name in required
    )


def _target(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a lone $ref leads to."""
    for _ in range(10):
        if not isinstance(schema, Mapping) or not isinstance(ref := schema.get("$ref"), str):
            break
        found: Any = root
        for part in ref.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            break
        schema = found
    return schema


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type")
    names = {given} if isinstance(given, str) else set(_strings(given)) or set(_TYPES)
    found = {"number" if name == "integer" else name for name in names}
    values = _constants(schema, {})
    return found if values is None else found & {_type(value) for value in values.values()}


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _constants(schema: Any, root: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that a schema allows at most, by a text that is equal for equal values; None for no list of them."""
    schema = _target(schema, root)
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        values = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        values = schema["enum"]
    else:
        return None
    given = schema.get("type")
    names = {given} if isinstance(given, str) else set(_strings(given))
    kept = [
        value for value in values if not names or _type(value) in {"number" if n == "integer" else n for n in names}
    ]
    return {json.dumps(_plain(value), sort_keys=True): value for value in kept}


def _plain(value: Any) -> Any:
    """1.0 is the same value as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
