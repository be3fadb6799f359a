"""JSON schemas with bounds of numbers, in Lark.

llguidance reads a bound as float64, and then takes no exponents and no -0. So the parts of a schema around numbers with
bounds are written here as rules, the numbers as regular expressions, and all other parts as llguidance's `%json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import count
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.text.float_schema import float_schema, is_kept, is_multiple
from vkllm.text.number_regex import Interval, integer_regex, number_regex
from vkllm.text.schema_rows import CONTAINERS, NUMBERS, Rows, TooLarge, Unsupported, check_shapes, has_numbers, types_of

# Beyond these, llguidance reads the whole schema.
_MAX_PREFIX_ITEMS = 50
_MAX_DEPTH = 200  # rules within rules; llguidance follows them on its stack, which ends at about 1,000
_MAX_NUMBERS = 400_000  # characters of all expressions of numbers: some tenths of a second

_WHITESPACE = '%llguidance {"ignore_once": true}\n%ignore /[\\x20\\x0A\\x0D\\x09]+/\n'
# A string that llguidance's %json takes too: control characters are escaped, others that need not be are not.
_KEY = r'/"(?:[^"\\\x00-\x1f\x7f]|\\(?:["\\bfnrt]|u00(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])))*"/'


def lark_of_schema(schema: Mapping[str, Any]) -> str | None:
    """A schema as a grammar, or None if its numbers need none, or only llguidance can read it.

    schema: as `prepared` in text/json_schema.py returns it.
    """
    options = schema.get("x-guidance", {})
    if options not in ({}, {"whitespace_flexible": True}, {"whitespace_flexible": False}):
        return None
    try:
        check_shapes(schema)
        return _Writer(schema, options.get("whitespace_flexible", False)).whole() if has_numbers(schema) else None
    except (Unsupported, TooLarge, InvalidParameter, RecursionError):
        return None


class _Writer:
    """Writes rules (r0, r1 ... for schemas, j0, j1 ... for what llguidance reads, s0, s1 ... for rows of properties)
    and terminals (N0, N1 ... for numbers, K0, K1 ... for names of properties)."""

    def __init__(self, root: Mapping[str, Any], has_whitespace: bool) -> None:
        self._root = root
        self._has_whitespace = has_whitespace
        self._rows = Rows(root)
        self._rules: dict[tuple[Any, ...], str | None] = {}
        self._named: dict[str, str] = {}  # body -> name
        self._lines: list[str] = []
        self._leaves: set[str] = set()
        self._rule_numbers = count()
        self._depth = 0
        self._n_characters = 0

    def whole(self) -> str:
        start = self._rule((self._root,))
        if start is None:
            raise Unsupported  # llguidance says why no value is valid
        return (_WHITESPACE if self._has_whitespace else "") + "\n".join([f"start: {start}", *self._lines])

    def _rule(self, schemas: Sequence[Any]) -> str | None:
        """The rule of the values that are valid against all these schemas, or None if there are none."""
        key = tuple(dict.fromkeys(id(schema) for schema in schemas if schema is not True))

        def choices() -> list[str]:
            try:
                return self._choices(schemas)
            except Unsupported:
                if any(schema is self._root for schema in schemas):
                    raise
                return [self._json(_all_of(schemas))]

        return self._known(key, choices)

    def _known(self, key: tuple[Any, ...], choices: Callable[[], list[str]]) -> str | None:
        """The name of a rule, written when it is first needed; None without choices."""
        if key not in self._rules:
            self._rules[key] = name = f"r{next(self._rule_numbers)}"  # which may be needed for itself
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise TooLarge
            try:
                found = list(dict.fromkeys(choices()))
            except Unsupported:
                del self._rules[key]
                raise
            finally:
                self._depth -= 1
            if len(found) == 1 and found[0] in self._leaves:
                self._rules[key] = found[0]
            else:
                self._rules[key] = name if found else None
                self._lines += [f"{name}: {' | '.join(found)}"] if found else []
        return self._rules[key]

    def _name(self, letter: str, body: str) -> str:
        """The name of a rule or terminal with this body."""
        if body not in self._named:
            self._named[body] = name = f"{letter}{len(self._named)}"
            self._lines.append(f"{name}: {body}")
        return self._named[body]

    def _json(self, schema: Mapping[str, Any]) -> str:
        """The rule of a schema that llguidance reads."""
        made = {**float_schema(schema), **self._rows.definitions(schema)}
        if "$schema" in self._root:
            made["$schema"] = self._root["$schema"]
        made["x-guidance"] = {"whitespace_flexible": self._has_whitespace}
        return self._leaf("j", f"%json {json.dumps(made)}")

    def _number_name(self, regex: str) -> str:
        self._n_characters += len(regex) if f"/{regex}/" not in self._named else 0
        if self._n_characters > _MAX_NUMBERS:
            raise TooLarge
        return self._leaf("N", f"/{regex}/")

    def _leaf(self, letter: str, body: str) -> str:
        """The name of what leads to no other rule."""
        name = self._name(letter, body)
        self._leaves.add(name)
        return name

    def _choices(self, schemas: Sequence[Any]) -> list[str]:
        if all(self._rows.is_foreign(schema) for schema in schemas):
            return [] if any(schema is False for schema in schemas) else [self._json(_all_of(schemas))]
        return [choice for row in self._rows.of(schemas) for choice in self._of_row(row)]

    def _of_row(self, row: Sequence[Mapping[str, Any]]) -> list[str]:
        """row: schemas without applicators."""
        constants = [schema["const"] for schema in row if "const" in schema]
        if constants:
            return self._constant(constants, row)
        types, number = types_of(row)
        choices = []
        foreign = set(types)
        interval = _interval(row)
        if number is not None and interval != Interval():
            choices += self._number(row, number, interval)
        elif number is not None:
            foreign.add(number)
        for kind, keywords in CONTAINERS.items():
            parts = [schema for schema in row if not keywords.isdisjoint(schema)]
            if kind in types and not all(self._rows.is_foreign(schema, keywords) for schema in parts):
                foreign.discard(kind)
                written = self._container(kind, parts)
                choices += [] if written is None else [written]
        if foreign:
            ignored = set() if number in foreign else NUMBERS
            for kind, keywords in CONTAINERS.items():
                ignored = ignored if kind in foreign else ignored | keywords
            kept = [{key: value for key, value in schema.items() if key not in ignored} for schema in row]
            choices.append(self._json({**_all_of(kept), "type": sorted(foreign)}))
        return choices

    def _number(self, row: Sequence[Mapping[str, Any]], kind: str, interval: Interval) -> list[str]:
        interval = interval.integers() if kind == "integer" else interval
        if interval.is_empty:
            return []
        if not any(kind == "number" or not is_multiple(1, step) for step in _steps(row)):
            regex = integer_regex(interval) if kind == "integer" else number_regex(interval)
            return [self._number_name(regex)]
        kept = [{key: value for key, value in schema.items() if key in NUMBERS} for schema in row]
        zero = number_regex(Interval(Decimal(0), Decimal(0))) if kind == "number" else "-?0"
        choices = [self._json({"allOf": [{"type": kind, **each} for each in kept]})]
        return [*choices, self._number_name(zero)] if 0 in interval else choices

    def _constant(self, constants: Sequence[Any], row: Sequence[Mapping[str, Any]]) -> list[str]:
        value = constants[0]
        others = [{key: part for key, part in schema.items() if key != "const"} for schema in row]
        if any(not _are_equal(value, other) for other in constants[1:]):
            return []
        if is_kept(value) and not has_numbers({"allOf": others}):
            return [self._json({"allOf": [{"const": value}, *(other for other in others if other)]})]
        if isinstance(value, list):
            same: dict[str, Any] = {"type": "array", "minItems": len(value), "maxItems": len(value)}
            same |= {"items": [{"const": each} for each in value], "additionalItems": False} if value else {}
        elif isinstance(value, Mapping):
            same = {"type": "object", "required": list(value), "additionalProperties": False}
            same |= {"properties": {name: {"const": each} for name, each in value.items()}}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return self._constant_number(value, others)
        else:
            kept = [{key: part for key, part in other.items() if key not in NUMBERS} for other in others]
            return [self._json({"allOf": [{"const": value}, *kept]})]
        return [name] if (name := self._rule(self._rows.keep([same, *others]))) is not None else []

    def _constant_number(self, value: int | float, others: Sequence[Mapping[str, Any]]) -> list[str]:
        exact = Decimal(repr(value))
        _, number = types_of(others)
        if number is None or exact not in _interval(others):
            return []
        steps = [*_steps(others), *([1] if number == "integer" else [])]
        if not all(is_multiple(value, step) for step in steps):
            return []
        digits = str(int(exact)) if is_multiple(value, 1) else f"{exact:f}"
        return [self._number_name(digits.replace(".", "[.]"))]

    def _container(self, kind: str, parts: Sequence[Mapping[str, Any]]) -> str | None:
        def choices() -> list[str]:
            body = self._array(parts) if kind == "array" else self._object(parts)
            return [] if body is None else [body]

        return self._known((kind, *map(id, parts)), choices)

    def _array(self, parts: Sequence[Mapping[str, Any]]) -> str | None:
        prefixes, rests = [], []
        for part in parts:
            is_list = isinstance(part.get("items"), list)
            prefixes.append(part["items"] if is_list else part.get("prefixItems", []))
            rests.append(part.get("additionalItems", True) if is_list else part.get("items", True))
        n_first = max(map(len, prefixes))
        least = max(part.get("minItems", 0) for part in parts)
        limits = [part["maxItems"] for part in parts if "maxItems" in part]
        most = min(limits, default=None)
        is_old = any("prefixItems" in part for part in parts) and "/draft-0" in str(self._root.get("$schema"))
        if is_old or n_first > _MAX_PREFIX_ITEMS:
            raise Unsupported
        first: list[str] = []
        for i in range(n_first if most is None else min(n_first, most)):
            schemas = [prefix[i] if i < len(prefix) else rest for prefix, rest in zip(prefixes, rests, strict=True)]
            if (item := self._rule(schemas)) is None:
                most = i
                break
            first.append(item)
        rest = self._rule(rests) if most is None or most > n_first else None
        if rest is None and (most is None or most > len(first)):
            most = len(first)
        if most is not None and least > most:
            return None
        return f'"[" {self._items(first, rest, least, most)} "]"' if most != 0 else '"[" "]"'

    def _items(self, first: Sequence[str], rest: str | None, least: int, most: int | None) -> str:
        """Items with commas between. first: rules of the first ones; rest: of those behind."""
        if not first:
            items = f"{rest} {_more(rest, max(least - 1, 0), None if most is None else most - 1)}"
            return items if least else f"({items})?"
        n = len(first)
        written = "" if rest is None else _more(rest, max(least - n, 0), None if most is None else most - n)
        for i in reversed(range(n)):
            written = f'"," {first[i]} {written}' if i else f"{first[i]} {written}"
            written = written if i < least else f"({written})?"
        return written

    def _object(self, parts: Sequence[Mapping[str, Any]]) -> str | None:
        if any({"patternProperties", "minProperties", "maxProperties"} & part.keys() for part in parts):
            raise Unsupported
        names = dict.fromkeys(name for part in parts for name in part.get("properties", ()))
        required = dict.fromkeys(name for part in parts for name in part.get("required", ()))
        rests = [part.get("additionalProperties", True) for part in parts]
        properties: list[tuple[str, bool]] = []
        for name in {**names, **required}:
            schemas = [part.get("properties", {}).get(name, rest) for part, rest in zip(parts, rests, strict=True)]
            if (value := self._rule(schemas)) is not None:
                properties.append((f'{_quoted(name)} ":" {value}', name in required))
            elif name in required:
                return None
        if (value := self._rule(rests)) is not None:
            taken = " | ".join(_quoted(name) for name in {**names, **required})
            key = self._name("K", f"{_KEY} & ~({taken})" if taken else _KEY)
            properties.append((f'{key} ":" {value} ("," {key} ":" {value})*', False))
        return f'"{{" {self._properties(properties)} "}}"'

    def _properties(self, properties: Sequence[tuple[str, bool]]) -> str:
        """Properties in a row, each with whether it is required, with commas between."""
        after = [f'"," {text}' if is_required else f'("," {text})?' for text, is_required in properties]
        starts = []
        for i, (text, is_required) in enumerate(properties):
            starts.append(" ".join([text, *self._after(after, i + 1, 0, len(after))]))
            if is_required:
                return starts[0] if len(starts) == 1 else f"({' | '.join(starts)})"
        return f"({' | '.join(starts)})?" if starts else ""

    def _after(self, after: Sequence[str], first: int, start: int, end: int) -> list[str]:
        """Properties from the first one on, of those from start to end: a few rules even for many."""
        if first >= end:
            return []
        if first <= start and end - start <= 1:
            return [after[start]]
        middle = (start + end) // 2
        found = [*self._after(after, first, start, middle), *self._after(after, first, middle, end)]
        return [self._name("s", " ".join(found))] if first <= start and start > 0 else found


def _interval(row: Sequence[Mapping[str, Any]]) -> Interval:
    whole = Interval()
    for schema in row:
        for key, value in schema.items():
            if key in NUMBERS and key != "multipleOf":
                exact, is_excluded = Decimal(repr(value)), key.startswith("exclusive")
                is_low = key.endswith("inimum")
                whole &= Interval(exact, None, is_excluded) if is_low else Interval(None, exact, False, is_excluded)
    return whole


def _steps(row: Sequence[Mapping[str, Any]]) -> list[int | float]:
    return [schema["multipleOf"] for schema in row if "multipleOf" in schema]


def _more(item: str | None, least: int, most: int | None) -> str:
    """Items after others."""
    return "" if most == 0 else f'("," {item}){{{least},{"" if most is None else most}}}'


def _all_of(schemas: Sequence[Any]) -> Mapping[str, Any]:
    """All these schemas as one."""
    given = [schema for schema in schemas if schema is not True and schema != {}]
    return given[0] if len(given) == 1 and isinstance(given[0], Mapping) else {"allOf": given} if given else {}


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two values of JSON are the same; True is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def _quoted(name: str) -> str:
    """A property's name as JSON, as a text of Lark."""
    return json.dumps(json.dumps(name, ensure_ascii=False)).replace("\x7f", "\\u007f")
