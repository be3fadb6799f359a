"""JSON schemas with numbers that llguidance holds: it takes them as float64 and int64, and not exactly at that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from vkllm.errors import InvalidParameter

_LAST_INTEGER = 2**63 - 1024  # the largest float64 that llguidance can take for an integer
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_LISTS = {"allOf", "anyOf", "prefixItems", "items"}
_SINGLE = {"additionalProperties", "items", "additionalItems"}


def float_schema(schema: Any, place: str = "#") -> Any:
    """A schema that asserts the same, or slightly more where its numbers need it: bounds only move inwards.

    schema: as `prepared` in text/json_schema.py returns it. place: of it, for errors.
    Raises InvalidParameter for numbers that cannot be kept so.
    """
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        at = f"{place}/{key}"
        if key in _MAPS and isinstance(value, Mapping):
            made[key] = {name: float_schema(each, f"{at}/{name}") for name, each in value.items()}
        elif key in _LISTS and isinstance(value, list):
            made[key] = [float_schema(each, f"{at}/{i}") for i, each in enumerate(value)]
        elif key in _SINGLE:
            made[key] = float_schema(value, at)
        else:
            if key in ("const", "enum"):
                _check_constant(value, at)
            made[key] = value
    _set_bounds(made, place)
    return made


def is_kept(value: Any) -> bool:
    """Whether llguidance writes all numbers of a constant as they are."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, int) and not (abs(part) <= _LAST_INTEGER and int(float(part)) == part):
            return False
    return True


def is_multiple(value: int | float, step: int | float) -> bool:
    """Whether a number is a multiple of another, as both are written."""
    return (Fraction(repr(value)) / Fraction(repr(step))).denominator == 1


def _check_constant(value: Any, place: str) -> None:
    if not is_kept(value):
        raise _error("an integer beyond 2^53 cannot be kept exactly here; use a string", place)


def _set_bounds(made: dict[str, Any], place: str) -> None:
    if made.get("type") == "integer":
        _set_integer_bounds(made, place)
    else:
        for key in _BOUNDS & made.keys():
            made[key] = _inside(made[key], key.lower().endswith("minimum"))
        _set_excluded_integers(made)
    if (step := made.get("multipleOf")) is not None:
        _set_step(made, step, place)


def _set_excluded_integers(made: dict[str, Any]) -> None:
    """Moves an excluded bound inwards where llguidance 1.9.1 would take it: 0 of numbers above 0 and up to 0.5.

    It takes any integer n so if the other bound is below n + 1, and -n if the other is above -n - 1.
    """
    for excluded, included, others, sign in (
        ("exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum"), 1),
        ("exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum"), -1),
    ):
        edge = made.get(excluded)
        if edge is None or edge != int(edge) or sign * edge < 0:
            continue
        widths = [sign * (made[key] - edge) for key in others if key in made]
        if widths and 0 < min(widths) < 1:
            del made[excluded]
            inside = edge + sign * min(1e-12 * max(1, abs(edge)), min(widths) / 2)
            bounds = [inside, *([made[included]] if included in made else [])]
            made[included] = max(bounds) if sign == 1 else min(bounds)


def _set_integer_bounds(made: dict[str, Any], place: str) -> None:
    low, high = made.pop("minimum", None), made.pop("maximum", None)
    above, below = made.pop("exclusiveMinimum", None), made.pop("exclusiveMaximum", None)
    lows = [math.ceil(low)] if low is not None else []
    lows += [math.floor(above) + 1] if above is not None else []
    highs = [math.floor(high)] if high is not None else []
    highs += [math.ceil(below) - 1] if below is not None else []
    if lows and highs and max(lows) > min(highs):
        raise _error(f"no integer is from {max(lows)} to {min(highs)}: minimum is greater than maximum", place)
    if lows:
        made["minimum"] = int(_inside(max(lows), True))
    if highs:
        made["maximum"] = int(_inside(min(highs), False))
    if lows and highs and made["minimum"] > made["maximum"]:
        raise _error(f"integers from {max(lows)} to {min(highs)} are beyond 2^53 and cannot be kept exactly", place)


def _inside(value: int | float, is_minimum: bool) -> int | float:
    """The nearest number that float64 and int64 hold, at or above a minimum, at or below a maximum."""
    if abs(value) > _LAST_INTEGER:
        outside = (value > 0) == is_minimum
        if outside:
            raise InvalidParameter(f"json_schema cannot be used: the bound {value} is beyond what can be kept, 2^63")
        return -_LAST_INTEGER if is_minimum else _LAST_INTEGER
    if isinstance(value, float):
        return 0 if value == 0 else value
    near = float(value)
    if int(near) != value and (int(near) > value) != is_minimum:
        near = math.nextafter(near, math.inf if is_minimum else -math.inf)
    return int(near)


def _set_step(made: dict[str, Any], step: Any, place: str) -> None:
    exact = Decimal(repr(step))
    if made.get("type") == "integer" and is_multiple(1, step):
        del made["multipleOf"]  # as all integers are
        return
    value, exponent = float(min(step, 2**32)), 0  # llguidance finds the decimals so
    while value % 1 and exponent < 20:
        value, exponent = value * 10, exponent + 1
    if value >= 2**32 or Decimal(int(value)).scaleb(-exponent) != exact:
        raise _error(f"multipleOf {step} has too many digits to be kept exactly", place)
    made["multipleOf"] = int(step) if step == int(step) else step


def _error(problem: str, place: str) -> InvalidParameter:
    return InvalidParameter(f"json_schema cannot be used: {problem} (at {place})")
