"""Objects that templates have beside plain values: functions, macros, namespaces, what a loop knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2.runtime import Undefined


class Object:
    """Something with attributes that a template may read."""

    def attribute(self, name: str) -> Any:
        """Its attribute of this name, or Undefined."""
        return Undefined(obj=self, name=name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()}>"


@dataclass(frozen=True, repr=False, eq=False)
class Method(Object):
    """A method of a text, list or dictionary, bound to it."""

    value: Any
    name: str


@dataclass(frozen=True, repr=False, eq=False)
class Function(Object):
    """A function that templates may call: call(*args, **named)."""

    name: str
    call: Callable[..., Any]


class Namespace(Object):
    """namespace(...): values that a template may set from within loops."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def attribute(self, name: str) -> Any:
        return self.values[name] if name in self.values else Undefined(obj=self, name=name)


class Cycler(Object):
    """cycler(...): gives its items in turn."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._at = 0

    def attribute(self, name: str) -> Any:
        match name:
            case "current":
                return self._items[self._at]
            case "next":
                return Function("next", self._next)
            case "reset":
                return Function("reset", self._reset)
        return super().attribute(name)

    def _next(self) -> Any:
        item = self._items[self._at]
        self._at = (self._at + 1) % len(self._items)
        return item

    def _reset(self) -> None:
        self._at = 0


@dataclass(repr=False, eq=False)
class Joiner(Object):
    """joiner(...): nothing at the first call, then the separator."""

    separator: str
    is_used: bool = False

    def __call__(self) -> str:
        if self.is_used:
            return self.separator
        self.is_used = True
        return ""


@dataclass(repr=False, eq=False)
class Loop(Object):
    """`loop` in a loop over items. again: runs the loop's body over other items, if the loop is recursive."""

    items: Sequence[Any]
    depth0: int
    again: Callable[[Any], str] | None = None
    index0: int = 0
    _last_changed: list[Any] = field(default_factory=list)

    def attribute(self, name: str) -> Any:
        n, at = len(self.items), self.index0
        match name:
            case "index":
                return at + 1
            case "index0":
                return at
            case "revindex":
                return n - at
            case "revindex0":
                return n - at - 1
            case "first":
                return at == 0
            case "last":
                return at == n - 1
            case "length":
                return n
            case "depth":
                return self.depth0 + 1
            case "depth0":
                return self.depth0
            case "previtem":
                return self.items[at - 1] if at else Undefined("there is no previous item")
            case "nextitem":
                return self.items[at + 1] if at + 1 < n else Undefined("there is no next item")
            case "cycle":
                return Function("cycle", lambda *values: values[at % len(values)])
            case "changed":
                return Function("changed", self._changed)
        return super().attribute(name)

    def _changed(self, *values: Any) -> bool:
        changed = self._last_changed != [values]
        self._last_changed = [values]
        return changed
