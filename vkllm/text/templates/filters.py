"""Filters and tests of templates: jinja2's, as far as chat templates have a use for them, each within the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import jinja2.filters as jinja_filters
from jinja2.exceptions import FilterArgumentError
from jinja2.runtime import Undefined
from jinja2.tests import TESTS as JINJA_TESTS

from vkllm.text.templates import marked
from vkllm.text.templates.limits import Budget, TemplateLimit, checked_width
from vkllm.text.templates.methods import get_attribute, get_item
from vkllm.text.templates.operations import (
    add,
    compare,
    items_of,
    key,
    measure,
    modulo,
    number,
    percent_format,
    to_json,
    to_text,
)
from vkllm.text.templates.values import Object

Filter = Callable[..., Any]
"""filter(budget, value, *args, **named)"""

_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))


def attribute_of(value: Any, path: str | int, default: Any = None) -> Any:
    """What `attribute="a.b"` of a filter names; the default instead of Undefined, if there is one."""
    for name in str(path).split(".") if isinstance(path, str) else (path,):
        value = get_item(value, int(name) if isinstance(name, str) and name.isdigit() else name)
        if default is not None and isinstance(value, Undefined):
            return default
    return value


def _sort_key(attribute: str | int | None, case_sensitive: bool) -> Callable[[Any], Any]:
    def folded(value: Any) -> Any:
        return value.lower() if isinstance(value, str) and not case_sensitive else value

    if attribute is None:
        return folded
    paths = attribute.split(",") if isinstance(attribute, str) else [attribute]
    if len(paths) == 1:
        return lambda item: folded(attribute_of(item, paths[0]))
    return lambda item: [folded(attribute_of(item, path)) for path in paths]


def _sort(
    budget: Budget, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    measure(budget, value)
    return sorted(items_of(budget, value), key=_sort_key(attribute, case_sensitive), reverse=reverse)


def _dictsort(
    budget: Budget, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[Any]:
    measure(budget, value)
    if by not in ("key", "value"):
        raise FilterArgumentError('You can only sort by either "key" or "value"')
    fold = _sort_key(None, case_sensitive)
    return sorted(value.items(), key=lambda item: fold(item[by == "value"]), reverse=reverse)


def _unique(budget: Budget, value: Any, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
    fold = _sort_key(attribute, case_sensitive)
    firsts: dict[Any, Any] = {}
    for item in items_of(budget, value):
        firsts.setdefault(key(fold(item)), item)
    return list(firsts.values())


def _extreme(choose: Callable[..., Any]) -> Filter:
    def find(budget: Budget, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        measure(budget, value)
        items = items_of(budget, value)
        fold = _sort_key(attribute, case_sensitive)
        return choose(items, key=fold) if items else Undefined("No aggregated item, sequence was empty.")

    return find


def _groupby(
    budget: Budget, value: Any, attribute: Any, default: Any = None, case_sensitive: bool = False
) -> list[tuple[Any, list[Any]]]:
    measure(budget, value)
    fold = _sort_key(None, case_sensitive)
    found = [(attribute_of(item, attribute, default), item) for item in items_of(budget, value)]
    groups: dict[Any, tuple[Any, list[Any]]] = {}
    for name, item in sorted(found, key=lambda pair: fold(pair[0])):
        groups.setdefault(key(fold(name)), (name, []))[1].append(item)
    return list(groups.values())


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for item in items_of(budget, value):
        total = add(budget, total, item if attribute is None else attribute_of(item, attribute))
    return total


def _join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> str:
    items = items_of(budget, value)
    texts = [to_text(budget, item if attribute is None else attribute_of(item, attribute)) for item in items]
    separator = to_text(budget, d)
    budget.write(sum(map(len, texts)) + len(separator) * len(texts))
    return marked.join(texts, separator)


def _replace(budget: Budget, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = (to_text(budget, part) for part in (value, old, new))
    budget.write(len(text) + str.count(text, old) * len(new))
    return marked.replace(text, old, new, -1 if count is None else count)


def _indent(budget: Budget, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * checked_width(width, "an indent")
    text = to_text(budget, s)
    budget.step(len(text) // 10)
    lines = marked.splitlines(marked.join((text, "\n")))
    budget.write(len(text) + len(lines) * len(margin))
    kept = [marked.join((margin, line)) if i and (line or blank) else line for i, line in enumerate(lines)]
    return marked.join((margin if first else "", marked.join(kept, "\n")))


def _escape(budget: Budget, value: Any) -> str:
    text = to_text(budget, value)
    for plain, escaped in _ESCAPES:
        text = _replace(budget, text, plain, escaped)
    return text


def _format(budget: Budget, value: Any, *args: Any, **named: Any) -> str:
    if args and named:
        raise FilterArgumentError("can't handle positional and keyword arguments at the same time")
    return percent_format(budget, to_text(budget, value), named or args)


def _batch(budget: Budget, value: Any, linecount: int, fill_with: Any = None) -> list[list[Any]]:
    items = items_of(budget, value)
    budget.step(abs(linecount))
    rows = [items[i : i + linecount] for i in range(0, len(items), linecount)]
    if rows and fill_with is not None:
        rows[-1] = rows[-1] + [fill_with] * (linecount - len(rows[-1]))
    return rows


def _slice(budget: Budget, value: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
    budget.step(abs(slices))
    return [list(part) for part in jinja_filters.sync_do_slice(items_of(budget, value), slices, fill_with)]


def _round(budget: Budget, value: Any, precision: int = 0, method: str = "common") -> float:
    checked_width(precision * 100, "a precision")
    if not isinstance(method, str):
        raise FilterArgumentError("method must be common, ceil or floor")
    return jinja_filters.do_round(number(value), precision, method)  # type: ignore[arg-type]


def _length(budget: Budget, value: Any) -> int:
    return len(value)


def _first(budget: Budget, value: Any) -> Any:
    return next(iter(items_of(budget, value)), Undefined("No first item, sequence was empty."))


def _last(budget: Budget, value: Any) -> Any:
    return next(reversed(items_of(budget, value)), Undefined("No last item, sequence was empty."))


def _reverse(budget: Budget, value: Any) -> Any:
    if isinstance(value, str):
        budget.write(len(value))
        return marked.like(str(value)[::-1], value)
    return items_of(budget, value)[::-1]


def _default(budget: Budget, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _whole_text(convert: Callable[..., Any], *widths: str) -> Filter:
    """A filter of jinja2 on text; the result is all content if any of the text was."""

    def run(budget: Budget, value: Any, *args: Any, **named: Any) -> Any:
        text = to_text(budget, value)
        budget.write(10 * len(text))
        if any(isinstance(arg, int) and abs(arg) > 10**6 for arg in (*args, *named.values())):
            raise TemplateLimit("a filter gets a huge number")
        if any(isinstance(arg, str) and len(arg) > 100 for arg in (*args, *named.values())):
            raise TemplateLimit("a filter gets a very long text as argument")
        result = convert(str(text), *args, **named)
        return marked.like(str(result), text, *args) if isinstance(result, str) else result

    return run


def _recased(convert: Callable[[str], str]) -> Filter:
    def run(budget: Budget, value: Any) -> str:
        text = to_text(budget, value)
        budget.write(len(text))
        return marked.recased(text, convert)

    return run


def _center(budget: Budget, value: Any, width: int = 80) -> str:
    text = to_text(budget, value)
    budget.write(checked_width(width))
    return marked.like(str(text).center(width), text)


def _trim(budget: Budget, value: Any, chars: str | None = None) -> str:
    text = to_text(budget, value)
    budget.write(len(text))
    return marked.strip(text, chars)


def _items(budget: Budget, value: Any) -> Iterable[tuple[Any, Any]]:
    return [] if isinstance(value, Undefined) else (items_of(budget, value), list(value.items()))[1]


def _truncate(s: str, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5) -> str:
    if len(s) <= length + leeway:
        return s
    kept = s[: length - len(end)]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


FILTERS: dict[str, Filter] = {
    "abs": lambda budget, value: abs(value),
    "attr": lambda budget, value, name: get_attribute(value, str(name)),
    "batch": _batch,
    "capitalize": _recased(str.capitalize),
    "center": _center,
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "e": _escape,
    "escape": _escape,
    "filesizeformat": lambda budget, value, binary=False: jinja_filters.do_filesizeformat(value, binary),
    "first": _first,
    "float": lambda budget, value, default=0.0: jinja_filters.do_float(value, default),
    "forceescape": _escape,
    "format": _format,
    "groupby": _groupby,
    "indent": _indent,
    "int": lambda budget, value, default=0, base=10: number(jinja_filters.do_int(value, default, base)),
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": items_of,
    "lower": _recased(str.lower),
    "max": _extreme(max),
    "min": _extreme(min),
    "pprint": lambda budget, value, verbose=False: to_text(budget, value),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "safe": lambda budget, value: value,
    "slice": _slice,
    "sort": _sort,
    "string": to_text,
    "sum": _sum,
    "title": _recased(jinja_filters.do_title),
    "tojson": to_json,
    "trim": _trim,
    "truncate": _whole_text(_truncate),
    "unique": _unique,
    "upper": _recased(str.upper),
    "urlencode": _whole_text(jinja_filters.do_urlencode),
    "wordcount": _whole_text(lambda text: len(text.split())),
}
"""By their names. `map`, `select` and their like, which call others, are expressions.py's."""

_COMPARING = {
    "eq": ("eq", "equalto", "=="),
    "ne": ("ne", "!="),
    "lt": ("lt", "lessthan", "<"),
    "lteq": ("le", "<="),
    "gt": ("gt", "greaterthan", ">"),
    "gteq": ("ge", ">="),
    "in": ("in",),
}


def _plain_test(test: Callable[..., Any]) -> Filter:
    return lambda budget, value, *args: test(value, *args)


def _comparing_test(kind: str) -> Filter:
    return lambda budget, left, right: compare(budget, kind, left, right)


TESTS: dict[str, Filter] = {
    **{
        name: _plain_test(cast(Callable[..., Any], test))
        for name, test in JINJA_TESTS.items()
        if name not in ("filter", "test")
    },
    **{name: _comparing_test(kind) for kind, names in _COMPARING.items() for name in names},
    "callable": lambda budget, value: isinstance(value, Object),
    "divisibleby": lambda budget, value, number: modulo(budget, value, number) == 0,
    "even": lambda budget, value: modulo(budget, value, 2) == 0,
    "odd": lambda budget, value: modulo(budget, value, 2) == 1,
    "lower": lambda budget, value: to_text(budget, value).islower(),
    "upper": lambda budget, value: to_text(budget, value).isupper(),
}
"""By their names. What `filter` and `test`, which ask for a name, do is in expressions.py."""
