"""Operators of templates on their values, each within the limits.

A value is None, a bool, int, float, str, list, tuple, dict, range, an Undefined or one of values.py's objects. Nothing
else comes into a template, and lists never change, so that what an operation costs is known before it starts.
"""

from __future__ import annotations

import json
import operator
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

from vkllm.text.templates import marked
from vkllm.text.templates.limits import MAX_BITS, MAX_DEPTH, Budget, TemplateLimit, checked_width

_CONTAINERS = (list, tuple, dict)
_KEYS = (str, int, float, type(None), Undefined)

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


def measure(budget: Budget, value: Any) -> bool:
    """Counts the steps and characters that going through a whole value takes; whether it holds content."""
    has_content = False
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            has_content = has_content or isinstance(item, marked.Marked)
            budget.write(len(item))
        elif isinstance(item, _CONTAINERS):
            budget.step(len(item) + 1)
            if depth >= MAX_DEPTH:
                raise TemplateLimit("its lists are nested too deep")
            if isinstance(item, dict):
                pending.extend((key, depth + 1) for key in item)
            pending.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
        else:
            budget.step()
    return has_content


def to_text(budget: Budget, value: Any) -> str:
    """What a template writes for a value: as Python's str."""
    if isinstance(value, str):
        return value
    if not isinstance(value, _CONTAINERS):
        return str(value)
    has_content = measure(budget, value)
    text = str(value)
    budget.write(len(text))
    return marked.content(text) if has_content else text


def to_json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models have seen it; jinja2's own filter would write < and & as escapes for HTML."""
    has_content = measure(budget, value)
    if indent is not None:
        checked_width(indent if isinstance(indent, int) else len(indent), "an indent")
    between = None
    if separators is not None:
        item, pair = (to_text(budget, separator) for separator in separators)
        checked_width(100 * (len(item) + len(pair)), "separators")
        between = (item, pair)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=between, sort_keys=sort_keys)
    budget.write(len(text))
    return marked.content(text) if has_content else text


def items_of(budget: Budget, value: Any) -> list[Any]:
    """The items of a list, the keys of a dictionary, the characters of a text. Raises TypeError for other values."""
    if isinstance(value, str):
        budget.step(len(value))
        if isinstance(value, marked.Marked):
            return [marked.cut(value, i, i + 1) for i in range(len(value))]
        return list(value)
    if isinstance(value, (*_CONTAINERS, range)):
        budget.step(len(value))
    return list(value)


def compare(budget: Budget, kind: str, left: Any, right: Any) -> Any:
    """left == right, left in right and their like, by jinja2's names of them."""
    for side, other in ((left, right), (right, left)):
        if isinstance(side, str):
            budget.write(len(side) // 10)
        elif isinstance(side, _CONTAINERS) and isinstance(other, _CONTAINERS):
            measure(budget, side)  # goes through both
        elif isinstance(side, _CONTAINERS):
            budget.step(len(side) // 10 + 1)
    if isinstance(right, dict) and kind in ("in", "notin"):
        key(left)
    return _COMPARISONS[kind](left, right)


def key(value: Any) -> Any:
    """A value that is to be a dictionary's key. Raises TypeError for one that cannot be."""
    if isinstance(value, _KEYS):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be a key")


def number(value: Any) -> Any:
    """A computed value; raises TemplateLimit for an integer that is absurdly large."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TemplateLimit("it computes with huge numbers")
    return value


def add(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        budget.write(len(left) + len(right))
        return marked.join((left, right))
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        budget.step(len(left) + len(right))
    return number(left + right)


def multiply(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str) and isinstance(right, int):
        budget.write(len(left) * max(right, 0))
        return marked.join([left] * right) if isinstance(left, marked.Marked) else left * right
    if isinstance(left, list | tuple) and isinstance(right, int):
        budget.step(len(left) * max(right, 0))
    return number(number(left) * number(right))


def power(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_BITS:
        if abs(left) > 1:
            raise TemplateLimit("it computes with huge numbers")
        right = right % 2 + 2  # powers of -1, 0 and 1
    return left**right


def modulo(budget: Budget, left: Any, right: Any) -> Any:
    return percent_format(budget, left, right) if isinstance(left, str) else number(left % right)


def subtract(budget: Budget, left: Any, right: Any) -> Any:
    return number(left - right)


def divide(budget: Budget, left: Any, right: Any) -> Any:
    return left / right


def divide_whole(budget: Budget, left: Any, right: Any) -> Any:
    return left // right


def get_slice(budget: Budget, value: Any, start: Any, stop: Any, step: Any) -> Any:
    """value[start:stop:step]."""
    where = slice(start, stop, step)
    if isinstance(value, str):
        budget.write(len(value) // 10)
        if step is None or step == 1:
            first, last, _ = where.indices(len(value))
            return marked.cut(value, first, last)
        return marked.like(str(value)[where], value)
    if isinstance(value, list | tuple | range):
        budget.step(len(value) // 10 + 1)
    return value[where]


def percent_format(budget: Budget, text: str, values: Any) -> str:
    """text % values."""
    budget.write(_widths(text))
    if "*" in text:
        raise TemplateLimit("it formats with a width that is not written out")

    def scalar(value: Any) -> Any:
        return to_text(budget, value) if isinstance(value, _CONTAINERS) else number(value)

    if isinstance(values, dict):
        plain: Any = {name: scalar(value) for name, value in values.items()}
    else:
        plain = tuple(map(scalar, values)) if isinstance(values, tuple) else scalar(values)
    sources = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, tuple) else (plain,)
    for source in sources:
        budget.write(len(source) if isinstance(source, str) else 0)
    # each field may write each of the values again
    budget.write((1 + text.count("%")) * sum(len(source) for source in sources if isinstance(source, str)) + len(text))
    return marked.like(str(text) % plain, text, *sources)


def brace_format(budget: Budget, text: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """text.format(*values, **named), of fields that are plain names or numbers."""
    parts = []
    automatic = iter(range(len(values)))
    for literal, field, spec, conversion in string.Formatter().parse(str(text)):
        parts.append(marked.like(literal, text))
        if field is None:
            continue
        if any(mark in field for mark in ".[") or "{" in (spec or ""):
            raise SecurityError(f"the format field {field!r} is not a plain name")
        position = next(automatic, len(values)) if not field else int(field) if field.isdigit() else None
        value = named[field] if position is None else values[position]
        if conversion == "r":
            value = to_text(budget, [value])[1:-1]
        elif conversion is not None or isinstance(value, _CONTAINERS):
            value = to_text(budget, value)
        budget.write(_widths(spec or ""))
        piece = value if not spec and isinstance(value, str) else marked.like(format(value, spec or ""), value)
        budget.write(len(piece))
        parts.append(piece)
    return marked.join(parts)


def _widths(spec: str) -> int:
    """All widths and precisions of a format together; raises TemplateLimit if one is absurd."""
    numbers = "".join(c if c.isdigit() else " " for c in spec).split()
    return sum(checked_width(int(digits.lstrip("0")[:9] or "0")) for digits in numbers)
