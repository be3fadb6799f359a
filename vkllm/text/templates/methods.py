"""Attributes and methods of a template's values: those that only read. What would change a value is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

from vkllm.text.templates import marked
from vkllm.text.templates.limits import Budget, checked_width
from vkllm.text.templates.operations import brace_format, items_of, key, to_text
from vkllm.text.templates.values import Method, Object

_CHANGES = frozenset(
    ("append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "sort", "reverse", "popitem")
)
_ASKS_FOR_PLACES = ("startswith", "endswith", "find", "rfind", "index", "rindex", "count")
_ASKS_FOR_KIND = ("isalpha", "isdigit", "isdecimal", "isnumeric", "isalnum", "isspace", "isascii", "isprintable")
_ASKS_FOR_CASE = ("isupper", "islower", "istitle", "isidentifier")
_ASKS = frozenset((*_ASKS_FOR_PLACES, *_ASKS_FOR_KIND, *_ASKS_FOR_CASE))
_MAKES = ("format", "join", "replace", "ljust", "rjust", "center", "zfill", "expandtabs")
_SPLITS = ("split", "rsplit", "splitlines")
_CASES: dict[str, Callable[[str], str]] = {
    name: getattr(str, name) for name in ("upper", "lower", "title", "capitalize", "swapcase", "casefold")
}


def get_attribute(value: Any, name: str) -> Any:
    """value.name: a method, an item of a dictionary, or Undefined."""
    if name.startswith("__") and not isinstance(value, dict | Undefined):
        raise SecurityError(f"access to attribute {name!r} of a {type(value).__name__} is not safe")
    if isinstance(value, Object):
        return value.attribute(name)
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if name in _METHODS.get(type(value), ()) or (isinstance(value, str) and name in _TEXT_METHODS):
        return Method(value, name)
    if isinstance(value, dict) and name in value:
        return value[name]
    if name.startswith("__") or name in _CHANGES:
        raise SecurityError(f"access to attribute {name!r} of a {type(value).__name__} is not safe")
    return Undefined(obj=value, name=name)


def get_item(value: Any, index: Any) -> Any:
    """value[index]: an item, or else an attribute of this name, or Undefined."""
    if isinstance(value, Undefined):
        return value[index]  # raises UndefinedError
    if isinstance(value, str) and isinstance(index, int):
        if -len(value) <= index < len(value):
            return marked.cut(value, index % len(value), index % len(value) + 1)
    elif isinstance(value, list | tuple | dict | range):
        try:
            return value[key(index)]
        except (LookupError, TypeError):
            pass
    if isinstance(index, str):
        return get_attribute(value, str(index))
    return Undefined(obj=value, name=str(index) if isinstance(index, int | float) else type(index).__name__)


def call_method(budget: Budget, method: Method, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """value.name(*args, **named)."""
    value, name = method.value, method.name
    if not isinstance(value, str):
        budget.step(len(value) // 10 + 1)
        return _METHODS[type(value)][name](budget, value, *args, **named)
    budget.write(len(value))
    if name == "format":
        return brace_format(budget, value, args, named)
    if name == "join":
        (parts,) = args
        texts = [to_text(budget, part) for part in items_of(budget, parts)]
        budget.write(sum(map(len, texts)) + len(value) * len(texts))
        return marked.join(texts, value)
    if name == "replace":
        old, new, *count = args
        budget.write(value.count(old) * len(new))
        return marked.replace(value, old, new, *count)
    if name in ("ljust", "rjust", "center", "zfill"):
        budget.write(checked_width(args[0]))
        return marked.like(getattr(str(value), name)(*args), value)
    if name == "expandtabs":
        width = checked_width(args[0] if args else named.get("tabsize", 8))
        budget.write(value.count("\t") * max(width, 1))
        return marked.like(str(value).expandtabs(width), value)
    if name in _ASKS:
        return getattr(str(value), name)(*args)
    if name in ("split", "rsplit"):
        separator = args[0] if args else named.get("sep")
        budget.step(len(value) // 10 if separator is None else value.count(separator))
        return marked.split(value, *args, **named, from_right=name == "rsplit")
    if name == "splitlines":
        budget.step(len(value) // 10)
        return marked.splitlines(value, *args, **named)
    return _TEXT_METHODS[name](value, *args)


def _recasing(convert: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: marked.recased(text, convert)


_TEXT_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _recasing(convert) for name, convert in _CASES.items()},
    "strip": marked.strip,
    "lstrip": lambda text, characters=None: marked.strip(text, characters, right=False),
    "rstrip": lambda text, characters=None: marked.strip(text, characters, left=False),
    "partition": marked.partition,
    "rpartition": lambda text, separator: marked.partition(text, separator, from_right=True),
    "removeprefix": lambda text, prefix: (
        marked.cut(text, len(prefix), len(text)) if str.startswith(text, prefix) else text
    ),
    "removesuffix": lambda text, suffix: (
        marked.cut(text, 0, len(text) - len(suffix)) if str.endswith(text, suffix) else text
    ),
    **dict.fromkeys((*_ASKS, *_MAKES, *_SPLITS), len),  # call_method runs these itself
}

_METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    dict: {
        "get": lambda budget, value, name, default=None: value.get(key(name), default),
        "items": lambda budget, value: items_of(budget, value) and list(value.items()),
        "keys": items_of,
        "values": lambda budget, value: items_of(budget, value) and list(value.values()),
        "copy": lambda budget, value: items_of(budget, value) and dict(value),
    },
    list: {
        "index": lambda budget, value, item: value.index(key(item)),
        "count": lambda budget, value, item: value.count(key(item)),
        "copy": items_of,
    },
    tuple: {
        "index": lambda budget, value, item: value.index(key(item)),
        "count": lambda budget, value, item: value.count(key(item)),
    },
}
