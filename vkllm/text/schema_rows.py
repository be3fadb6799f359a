"""JSON schemas without applicators: which rows of simple schemas a value must be valid against, one of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.text.float_schema import float_schema, is_kept

NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
CONTAINERS = {
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems"},
    "object": {
        "properties", "additionalProperties", "patternProperties", "required", "minProperties", "maxProperties",
    },
}  # fmt: skip
_SHAPES: dict[str, type | tuple[type, ...]] = {
    "properties": Mapping,
    "patternProperties": Mapping,
    "$defs": Mapping,
    "definitions": Mapping,
    "allOf": list,
    "anyOf": list,
    "prefixItems": list,
    "enum": list,
    "required": list,
    "type": (str, list),
    "$ref": str,
}
_OTHERS = ("null", "boolean", "string", "array", "object")
_APPLICATORS = {"$ref", "allOf", "anyOf", "const", "enum"}
_NOT_ASSERTING = {"$schema", "$id", "$defs", "definitions", "x-guidance"}
_MAX_ROWS = 500


class Unsupported(Exception):
    """A part of a schema has a form that only llguidance reads."""


class TooLarge(Exception):
    """A schema is so large that only llguidance reads it."""


def check_shapes(schema: Any) -> None:
    """Raises Unsupported if a keyword, here or within, has no value that it may have; llguidance says what is wrong."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        kind = _SHAPES.get(key, object)
        if not isinstance(value, kind) or (
            key in ("type", "required") and isinstance(value, list) and not all(isinstance(each, str) for each in value)
        ):
            raise Unsupported
        for each in below(schema, key):
            check_shapes(each)


def has_numbers(schema: Any) -> bool:
    """Whether a schema, or one within it, has bounds of numbers or integers that llguidance would change."""
    if not isinstance(schema, Mapping):
        return False
    if NUMBERS - {"multipleOf"} & schema.keys() and types_of([schema])[1] is not None:
        return True
    if not is_kept([schema.get("const"), schema.get("enum")]):
        return True
    return any(has_numbers(each) for key in schema for each in below(schema, key))


def below(schema: Mapping[str, Any], key: str) -> list[Any]:
    """The schemas that a keyword holds."""
    value = schema[key]
    if key in ("properties", "patternProperties", "$defs", "definitions"):
        return list(value.values()) if isinstance(value, Mapping) else []
    if key in ("allOf", "anyOf", "prefixItems", "items", "additionalItems", "additionalProperties"):
        return value if isinstance(value, list) else [value]
    return []


def types_of(row: Sequence[Mapping[str, Any]]) -> tuple[set[str], str | None]:
    """The types that all schemas of a row allow: without numbers, and "number", "integer" or None for these."""
    types, ranks = set(_OTHERS), [2]
    for schema in row:
        given = schema.get("type")
        if given is not None:
            names = {given} if isinstance(given, str) else set(given)
            if names - {*_OTHERS, "number", "integer"}:
                raise Unsupported
            types &= names
            ranks.append(2 if "number" in names else 1 if "integer" in names else 0)
    return types, (None, "integer", "number")[min(ranks)]


class Rows:
    """The rows of the schemas within one schema. They stay the same objects."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._foreign: dict[int, bool] = {}
        self._simple: dict[int, Mapping[str, Any]] = {}
        self._kept: list[Any] = []

    def keep(self, schemas: list[Any]) -> list[Any]:
        """The same schemas, which stay alive, so that no other one gets the id of one of them."""
        self._kept += schemas
        return schemas

    def is_foreign(self, schema: Any, keywords: set[str] | None = None) -> bool:
        """Whether llguidance can read a schema for itself. keywords: the only ones that count."""
        if not isinstance(schema, Mapping):
            return True
        if keywords is not None:
            return all(self.is_foreign(each) for key in keywords & schema.keys() for each in below(schema, key))
        if id(schema) not in self._foreign:
            self._foreign[id(schema)] = (
                "$ref" not in schema
                and not has_numbers({key: value for key, value in schema.items() if not below(schema, key)})
                and all(self.is_foreign(each) for key in schema for each in below(schema, key))
            )
        return self._foreign[id(schema)]

    def of(self, schemas: Sequence[Any], refs: frozenset[str] = frozenset()) -> list[list[Mapping[str, Any]]]:
        """The rows of values that are valid against all these schemas. refs: those that led to them."""
        rows: list[list[Mapping[str, Any]]] = [[]]
        for schema in schemas:
            rows = _product(rows, self._expanded(schema, refs))
        return rows

    def _expanded(self, schema: Any, refs: frozenset[str]) -> list[list[Mapping[str, Any]]]:
        if not isinstance(schema, Mapping):
            return [[]] if schema is True else []
        if id(schema) not in self._simple:
            self._simple[id(schema)] = {
                key: value for key, value in schema.items() if key not in _APPLICATORS | _NOT_ASSERTING
            }
        simple = self._simple[id(schema)]
        place = "properties" if "properties" in simple else next(iter(simple), None)  # in the order of properties
        rows: list[list[Mapping[str, Any]]] = [[]]
        for key, value in schema.items():
            if key == place:
                rows = _product(rows, [[simple]])
            elif key == "$ref":
                if value in refs:
                    raise Unsupported
                rows = _product(rows, self._expanded(self._target(value), refs | {value}))
            elif key == "allOf":
                rows = _product(rows, self.of(value, refs))
            elif key == "anyOf":
                rows = _product(rows, [row for each in value for row in self._expanded(each, refs)])
            elif key == "const":
                rows = _product(rows, [self.keep([{"const": value}])])
            elif key == "enum":
                rows = _product(rows, [self.keep([{"const": each}]) for each in value])
        return rows

    def _target(self, ref: str) -> Any:
        if ref != "#" and not ref.startswith("#/"):
            raise Unsupported
        found: Any = self._root
        for part in ref.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise Unsupported
        return found

    def definitions(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Those that a schema leads to, for llguidance. Raises Unsupported for other places within the whole."""
        found: dict[str, Any] = {}
        waiting = [schema]
        while waiting:
            part = waiting.pop()
            if not isinstance(part, Mapping):
                continue
            waiting += [each for key in part for each in below(part, key)]
            if isinstance(ref := part.get("$ref"), str):
                _, group, name, *rest = [*ref.split("/"), "", ""]
                if group not in ("$defs", "definitions") or rest[:-2] != []:
                    raise Unsupported
                name = name.replace("~1", "/").replace("~0", "~")
                if name not in found.setdefault(group, {}):
                    target = self._target(ref)
                    found[group][name] = float_schema(target)
                    waiting.append(target)
        return found


def _product(
    rows: list[list[Mapping[str, Any]]], others: list[list[Mapping[str, Any]]]
) -> list[list[Mapping[str, Any]]]:
    if len(rows) * len(others) > _MAX_ROWS:
        raise Unsupported
    return [row + other for row in rows for other in others]
