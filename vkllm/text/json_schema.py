"""JSON schemas, with what can be enforced only.

llguidance refuses some keywords that assert nothing, and cannot keep others. What asserts nothing is left out here, and
what cannot be enforced is refused by its name and place. text/schema_lark.py and text/float_schema.py go on with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.text.number_regex import MAX_DIGITS, MAX_EXPONENT
from vkllm.text.one_of import any_of_apart
from vkllm.text.regex_size import Size, check_size, size_of_regex

MAX_LENGTH = 262_144
"""Most characters of a schema."""
MAX_DEPTH = 64
MAX_PROPERTIES = 1000
"""Most properties of one object. llguidance takes 0.7 s for 3,000."""
MAX_REFS = 200
"""Most different $refs. llguidance follows them on its stack, which ends at some hundreds."""
MAX_PATTERNS = 6
"""Most patterns and formats of one text, by allOf and the like; each more than doubles the time; 20 take seconds."""
MAX_TEXT = 16_384
"""Most characters of one constant or pattern: each step of an answer reads it again."""
_MAX_COUNT = 1_000_000

_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
}  # fmt: skip
_ANNOTATIONS = {
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "contentMediaType", "contentEncoding", "contentSchema", "discriminator", "$anchor", "$vocabulary", "x-guidance",
}  # fmt: skip
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_MAPS = {"properties", "patternProperties"}
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SINGLE = {"additionalProperties", "items", "additionalItems"}
# Keyword -> the values with which it asserts nothing. With others it is refused.
_IDLE: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "not": (False,),
    "propertyNames": (True, {}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "if": (),
    "then": (),
    "else": (),
    "$dynamicRef": (),
    "$recursiveRef": (),
}


def read_schema(text: str) -> Any:
    """The schema of a JSON text. Raises InvalidParameter."""
    if len(text) > MAX_LENGTH:
        raise InvalidParameter(
            f"json_schema is too large: it has {len(text)} characters, at most {MAX_LENGTH} are read"
        )
    try:
        return json.loads(text, parse_float=_exact_float)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"json_schema is not valid JSON: {error}") from None


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that asserts the same as this one, with keywords that llguidance knows. Its numbers are exact.

    Raises InvalidParameter for what cannot be enforced, with the keyword and its place.
    """
    return _Preparation(schema).whole()


def _exact_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value) or Decimal(digits) != Decimal(repr(value)):
        raise InvalidParameter(f"json_schema cannot be used: the number {digits} has more digits than can be kept")
    return value


class _Preparation:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._definitions: dict[tuple[str, str], Any] = {}
        self._refs: list[str] = []
        self._size = Size(0, 0)  # of all patterns

    def whole(self) -> dict[str, Any]:
        made = self._object(self._root, "#", 0)
        for key in ("$schema", "$id", "x-guidance"):
            if key in self._root:
                made[key] = self._root[key]
        for ref in self._refs:  # grows meanwhile
            parts = ref.split("/")
            if len(parts) >= 3 and parts[0] == "#" and parts[1] in ("$defs", "definitions"):
                group, name = parts[1], parts[2].replace("~1", "/").replace("~0", "~")
                found = self._root.get(group)
                if isinstance(found, Mapping) and name in found:
                    made.setdefault(group, {})[name] = self._schema(found[name], f"#/{group}/{name}", 1)
        self._check_patterns()
        return made

    def _schema(self, schema: Any, place: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise _error(f"a schema must be an object, true or false, not {_short(schema)}", place)
        return self._object(schema, place, depth)

    def _object(self, schema: Mapping[str, Any], place: str, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise InvalidParameter(f"json_schema is too complex: it is nested more than {MAX_DEPTH} deep; use $ref")
        made: dict[str, Any] = {}
        for key, value in schema.items():
            at = f"{place}/{key}"
            if key in _ANNOTATIONS or key in ("$schema", "$id", "id", "$defs", "definitions"):
                continue
            if key in _IDLE:
                self._idle(schema, key, value, place, made)
            elif key in _COUNTS:
                if (count := _count(value, key, place)) is not None:
                    made[key] = count
            elif key == "format":
                if isinstance(value, str) and value in _FORMATS:
                    made[key] = value
            elif key in _MAPS and isinstance(value, Mapping):
                if len(value) > MAX_PROPERTIES:
                    raise InvalidParameter(
                        f"json_schema is too complex: {at} has {len(value)} members, more than {MAX_PROPERTIES}"
                    )
                if key == "patternProperties":
                    for pattern in value:
                        self._pattern(pattern, f"{at}/{pattern}")
                made[key] = {name: self._schema(each, f"{at}/{name}", depth + 1) for name, each in value.items()}
            elif key in _SINGLE and not isinstance(value, list):
                made[key] = self._schema(value, at, depth + 1)
            elif (key in _LISTS or key in _SINGLE) and isinstance(value, list):
                made[key] = [self._schema(each, f"{at}/{i}", depth + 1) for i, each in enumerate(value)]
            elif key in ("const", "enum"):
                _check_constant(value, at)
                made[key] = value
            elif key == "pattern" and isinstance(value, str):
                self._pattern(value, at)
                made[key] = value
            elif key == "$ref":
                self._ref(value, at)
                made[key] = value
            else:
                made[key] = value
        if "oneOf" in made:
            self._one_of(made, place)
        _check_bounds(made, place)
        return made

    def _pattern(self, pattern: str, place: str) -> None:
        if len(pattern) > MAX_TEXT:
            raise InvalidParameter(f"json_schema is too complex: {place[:80]} is longer than {MAX_TEXT} characters")
        size = size_of_regex(pattern)
        self._size = Size(self._size.given + size.given, self._size.optional + size.optional)
        check_size(self._size, "json_schema")

    def _ref(self, ref: Any, place: str) -> None:
        if isinstance(ref, str) and ref not in self._refs:
            if not ref.startswith("#"):
                raise _error(f"$ref to {ref} is not supported; only #/... within the schema is", place)
            self._refs.append(ref)
            if len(self._refs) > MAX_REFS:
                raise InvalidParameter(f"json_schema is too complex: it has more than {MAX_REFS} different $refs")

    def _idle(self, schema: Mapping[str, Any], key: str, value: Any, place: str, made: dict[str, Any]) -> None:
        """Refuses a keyword that cannot be enforced, unless it asserts nothing or another keyword says the same."""
        if any(value == idle and type(value) is type(idle) for idle in _IDLE[key]):
            return
        most = schema.get("maxItems")
        lonely = {"if": {"then", "else"}, "then": {"if"}, "else": {"if"}, "minContains": {"contains"}}
        lonely["maxContains"] = {"contains"}
        if key in lonely and not lonely[key] & schema.keys():
            return
        if key == "uniqueItems" and value is True and isinstance(most, int | float) and most <= 1:
            return
        if key in ("contains", "minContains") and schema.get("minContains") == 0 and "maxContains" not in schema:
            return
        if key in ("dependentRequired", "dependencies") and isinstance(value, Mapping) and not any(value.values()):
            return
        applicators = {"allOf", "anyOf", "oneOf", "$ref", "if", "$dynamicRef", "dependentSchemas"}
        if key == "unevaluatedProperties" and not applicators & schema.keys():
            made.setdefault("additionalProperties", self._schema(value, f"{place}/{key}", 1))
            return
        if key == "unevaluatedItems" and not (applicators | {"contains", "items"}) & schema.keys():
            made["items"] = self._schema(value, f"{place}/{key}", 1)
            return
        raise _error(f"{key} is not supported; leave it out, or say the same with other keywords", place)

    def _one_of(self, made: dict[str, Any], place: str) -> None:
        options = made.pop("oneOf")
        if not isinstance(options, list):
            raise _error("oneOf must be a list", place)
        found = any_of_apart(options, self._root)
        if found is None:
            raise _error("oneOf is supported where no value can be of two of its schemas; use anyOf", place)
        if "anyOf" in made:
            made["allOf"] = [*made.get("allOf", []), {"anyOf": found}]
        else:
            made["anyOf"] = found

    def _check_patterns(self) -> None:
        """Counts the patterns that one text must match at once. Raises InvalidParameter for too many."""
        known: dict[int, int] = {}

        def count(schema: Any) -> int:
            if not isinstance(schema, Mapping):
                return 0
            if id(schema) not in known:
                known[id(schema)] = 0  # a circle adds nothing
                below = [count(each) for key in _MAPS | _SINGLE | {"prefixItems"} for each in _below(schema, key)]
                own = ("pattern" in schema) + ("format" in schema) + max(below, default=0)
                own += sum(count(each) for each in _below(schema, "allOf"))
                for key in ("anyOf", "oneOf"):
                    own += max((count(each) for each in _below(schema, key)), default=0)
                own += count(resolved(schema["$ref"], self._root)) if isinstance(schema.get("$ref"), str) else 0
                known[id(schema)] = own
            return known[id(schema)]

        if max(
            count(each) for key in ("$defs", "definitions", "") for each in (self._root, *_below(self._root, key))
        ) > (MAX_PATTERNS):
            raise InvalidParameter(
                f"json_schema is too complex: one text must match more than {MAX_PATTERNS} patterns and formats at once"
            )


def _below(schema: Mapping[str, Any], key: str) -> list[Any]:
    """The schemas that a keyword holds."""
    value = schema.get(key)
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        return []
    return [value] if key in _SINGLE else list(value.values())


def resolved(ref: str, root: Mapping[str, Any]) -> Any:
    """What a $ref of this schema leads to, or None."""
    if not ref.startswith("#"):
        return None
    found: Any = root
    for part in ref[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _count(value: Any, key: str, place: str) -> int | None:
    """A number of characters, items or members; None if it is too large to matter."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or value < 0:
        raise _error(f"{key} must be a whole number from 0 on, not {_short(value)}", place)
    if value > _MAX_COUNT:
        if key.startswith("max"):
            return None
        raise _error(f"{key} above {_MAX_COUNT} is not supported", place)
    return int(value)


def _check_constant(value: Any, place: str) -> None:
    """Raises InvalidParameter for what is not JSON, or takes too long."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str) and len(part) > MAX_TEXT:
            raise InvalidParameter(f"json_schema is too complex: {place} has a text of more than {MAX_TEXT} characters")
        elif isinstance(part, float) and not math.isfinite(part):
            raise _error(f"{part} is not a number of JSON", place)


def _check_bounds(made: dict[str, Any], place: str) -> None:
    """Checks the bounds of numbers, and writes those of draft 4 (`exclusiveMinimum: true`) as later drafts do."""
    for excluded, included in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if made.get(excluded) is True and included in made:
            made[excluded] = made.pop(included)
        elif isinstance(made.get(excluded), bool):
            del made[excluded]
        for key in (excluded, included):
            value = made.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:  # infinite
                raise _error(f"{key} must be a number, not {_short(value)}", place)
            exact = Decimal(repr(value)).copy_abs()
            if len(f"{exact:f}".replace(".", "").strip("0")) > MAX_DIGITS or abs(exact.adjusted()) > MAX_EXPONENT:
                raise _error(f"the number {_short(value)} has too many digits", f"{place}/{key}")
    if (step := made.get("multipleOf")) is not None and (
        isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf
    ):
        raise _error(f"multipleOf must be a number above 0, not {_short(step)}", place)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:50]} ..."


def _error(problem: str, place: str) -> InvalidParameter:
    return InvalidParameter(f"json_schema cannot be used: {problem} (at {place})")
