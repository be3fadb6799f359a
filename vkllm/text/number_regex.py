"""Regular expressions for the numbers of JSON between two bounds, exact for bounds of any kind.

A number may be written in plain digits, or with one to three digits other than a leading zero before an exponent: 250,
250.0, 2.5e2 and 25E+01. Zero may have a sign and any exponent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Context, Decimal
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

MAX_DIGITS = 100
"""Most significant digits of a bound."""
MAX_EXPONENT = 400
"""Bounds other than 0 are from 10^-400 up to 10^400."""
_MANTISSA_DIGITS = 3  # before the point, where an exponent follows
_EXACT = Context(prec=MAX_DIGITS + 2 * MAX_EXPONENT)


class Interval(NamedTuple):
    """The numbers from low to high; None is without a bound. A bound may be excluded itself."""

    low: Decimal | None = None
    high: Decimal | None = None
    excludes_low: bool = False
    excludes_high: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no number lies in it."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.excludes_low or self.excludes_high))

    def __and__(self, other: Interval) -> Interval:
        """The numbers that lie in both."""
        low, excludes_low = _tighter(self.low, self.excludes_low, other.low, other.excludes_low, 1)
        high, excludes_high = _tighter(self.high, self.excludes_high, other.high, other.excludes_high, -1)
        return Interval(low, high, excludes_low, excludes_high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Decimal | int) and not (self & Interval(Decimal(value), Decimal(value))).is_empty

    def integers(self) -> Interval:
        """The smallest interval of the same integers, whose bounds are integers."""
        low, high = self.low, self.high
        if low is not None:
            low = Decimal(math.floor(low) + 1 if self.excludes_low else math.ceil(low))
        if high is not None:
            high = Decimal(math.ceil(high) - 1 if self.excludes_high else math.floor(high))
        return Interval(low, high)

    def negated(self) -> Interval:
        """The same numbers with the other sign."""
        low = None if self.high is None else self.high.copy_negate()
        high = None if self.low is None else self.low.copy_negate()
        return Interval(low, high, self.excludes_high, self.excludes_low)


_FROM_0 = Interval(Decimal(0))


def _tighter(
    a: Decimal | None, excludes_a: bool, b: Decimal | None, excludes_b: bool, sign: int
) -> tuple[Decimal | None, bool]:
    if a is None or b is None:
        return (a, excludes_a) if b is None else (b, excludes_b)
    if a == b:
        return a, excludes_a or excludes_b
    return (a, excludes_a) if (a > b) == (sign > 0) else (b, excludes_b)


def number_regex(interval: Interval) -> str:
    """All ways to write the numbers of an interval that is not empty."""
    return _with_signs(interval, is_integer=False)


def integer_regex(interval: Interval) -> str:
    """The integers of an interval that has some, in digits."""
    return _with_signs(interval.integers(), is_integer=True)


@lru_cache(maxsize=256)
def _with_signs(interval: Interval, *, is_integer: bool) -> str:
    options = []
    for sign, side in (("", interval), ("-", interval.negated())):
        half = side & _FROM_0
        if half.is_empty:
            continue
        found = _plain(half, is_integer)
        if not is_integer:
            found += _scientific(half)
            if 0 in half:
                found.append(r"0(?:\.0+)?[eE][+-]?[0-9]+")
        options += [sign + option for option in found]
    return _any(options)


def _plain(half: Interval, is_integer: bool) -> list[str]:
    """Numbers without an exponent. half: of numbers from 0 on."""
    rest = "" if is_integer else r"(?:\.[0-9]+)?"
    low = _low(half, 0)
    shortest = len(low.whole)
    if half.high is None:
        return [*_from(low, rest), f"[1-9][0-9]{{{shortest},}}{rest}"]
    high = _high(half, 0)
    longest = len(high.whole)
    if shortest == longest:
        return _between(low, high, rest)
    between = [f"[1-9]{_digits(shortest, longest - 2)}{rest}"] if longest - shortest > 1 else []
    return [*_from(low, rest), *between, *_up_to(high, rest, least=1)]


def _scientific(half: Interval) -> list[str]:
    """Numbers with an exponent, except 0. half: of numbers from 0 on."""
    if half.high == 0:
        return []
    first = half.low.adjusted() if half.low else None  # powers of ten
    last = None if half.high is None else half.high.adjusted()
    rest = r"(?:\.[0-9]+)?"
    found = []
    for shift in range(_MANTISSA_DIGITS):
        if first is not None and first == last:
            edges = _between(_low(half, shift - first), _high(half, shift - first), rest)
            found.append(_any(edges) + _exponents(first - shift, first - shift))
            continue
        if first is not None:
            found.append(_any(_from(_low(half, shift - first), rest)) + _exponents(first - shift, first - shift))
        if last is not None and (below := _up_to(_high(half, shift - last), rest, least=1)):
            found.append(_any(below) + _exponents(last - shift, last - shift))
        least = None if first is None else first + 1 - shift
        most = None if last is None else last - 1 - shift
        if least is None or most is None or least <= most:
            found.append(f"[1-9]{_digits(shift)}{rest}{_exponents(least, most)}")
    return found


def _exponents(least: int | None, most: int | None) -> str:
    """The exponents from least to most, with or without sign and leading zeros."""
    powers = Interval(None if least is None else Decimal(least), None if most is None else Decimal(most))
    options = ["[+-]?0+"] if 0 in powers else []
    for sign, side in ((r"\+?", powers), ("-", powers.negated())):
        half = side & Interval(Decimal(1))
        if not half.is_empty:
            options.append(f"{sign}0*{_any(_plain(half, is_integer=True))}")
    return f"[eE]{_any(options)}"


class _Edge(NamedTuple):
    """A bound in digits. whole: before the point. fraction: behind it, without zeros at its end."""

    whole: str
    fraction: str
    is_excluded: bool


def _low(half: Interval, power: int) -> _Edge:
    """The lower bound, times a power of ten."""
    assert half.low is not None
    return _edge(half.low.scaleb(power, _EXACT), half.excludes_low)


def _high(half: Interval, power: int) -> _Edge:
    assert half.high is not None
    return _edge(half.high.scaleb(power, _EXACT), half.excludes_high)


def _edge(value: Decimal, is_excluded: bool) -> _Edge:
    whole, _, fraction = format(value.copy_abs(), "f").partition(".")  # -0 is 0
    return _Edge(whole, fraction.rstrip("0"), is_excluded)


def _from(low: _Edge, rest: str) -> list[str]:
    """Numbers with as many digits before the point as the bound, that are not below it. rest: any fraction, if there
    may be one."""
    whole, fraction, is_excluded = low
    larger: list[str] = []
    for i, digit in enumerate(whole):
        if not whole[i + 1 :].strip("0") and not fraction and not is_excluded:
            return [_any([*larger, _text(whole[:i]) + _class(int(digit), 9) + _digits(len(whole) - i - 1)]) + rest]
        if digit != "9":
            larger.append(_text(whole[:i]) + _class(int(digit) + 1, 9) + _digits(len(whole) - i - 1))
    found = [_any(larger) + rest] if larger else []
    if not fraction and not is_excluded:
        found.append(_text(whole) + rest)
    elif rest:
        found.append(rf"{_text(whole)}\.{_any(_fraction_from(fraction, is_excluded))}")
    return found


def _up_to(high: _Edge, rest: str, least: int = 0) -> list[str]:
    """Numbers with as many digits before the point as the bound, that are not above it. least: the first digit."""
    whole, fraction, is_excluded = high
    smaller = []
    for i, digit in enumerate(whole):
        if int(digit) > (lowest := 0 if i else least):
            smaller.append(_text(whole[:i]) + _class(lowest, int(digit) - 1) + _digits(len(whole) - i - 1))
    found = [_any(smaller) + rest] if smaller else []
    if fraction:
        found.append(rf"{_text(whole)}(?:\.{_any(_fraction_up_to(fraction, is_excluded))})?")
    elif not is_excluded:
        found.append(_text(whole) + (r"(?:\.0+)?" if rest else ""))
    return found


def _between(low: _Edge, high: _Edge, rest: str) -> list[str]:
    """Numbers between two bounds with the same number of digits before the point."""
    i = _first_difference(low.whole, high.whole)
    if i == len(low.whole):
        start = _text(low.whole)
        return [start + fraction for fraction in _fraction_between(low, high)] if rest else [start]
    start, n_left = _text(low.whole[:i]), len(low.whole) - i - 1
    first, last = int(low.whole[i]), int(high.whole[i])
    if not n_left and not rest:
        return [start + _class(first, last)]
    return [
        *(f"{start}{first}{more}" for more in _from(low._replace(whole=low.whole[i + 1 :]), rest)),
        *([start + _class(first + 1, last - 1) + _digits(n_left) + rest] if last - first > 1 else []),
        *(f"{start}{last}{more}" for more in _up_to(high._replace(whole=high.whole[i + 1 :]), rest)),
    ]


def _fraction_between(low: _Edge, high: _Edge) -> list[str]:
    """Fractions with their point, or none, between two bounds that are equal before the point."""
    if low.fraction == high.fraction:
        return [rf"\.{_text(low.fraction)}0*" if low.fraction else r"(?:\.0+)?"]
    n_digits = max(len(low.fraction), len(high.fraction))
    a, b = low.fraction.ljust(n_digits, "0"), high.fraction.ljust(n_digits, "0")
    i = _first_difference(a, b)
    start, first, last = _text(a[:i]), int(a[i]), int(b[i])
    found = [f"{start}{first}{more}" for more in _fraction_from(low.fraction[i + 1 :], low.is_excluded)]
    if last - first > 1:
        found.append(f"{start}{_class(first + 1, last - 1)}[0-9]*")
    if high.fraction[i + 1 :]:
        found.append(f"{start}{last}(?:{'|'.join(_fraction_up_to(high.fraction[i + 1 :], high.is_excluded))})?")
    elif not high.is_excluded:
        found.append(f"{start}{last}0*")
    n_zeros = i - len(low.fraction)
    if low.is_excluded or n_zeros < 0:
        return [rf"\.{_any(found)}"]
    if low.fraction:
        return [rf"\.{_any([*found, _text(low.fraction) + _repeated(0, 0, n_zeros)])}"]
    return [rf"\.{_any([*found, _repeated(0, 1, n_zeros)] if n_zeros else found)}", ""]


def _fraction_from(fraction: str, is_excluded: bool) -> list[str]:
    """Digits behind the point that are not below these."""
    found = []
    for start, digit, n_times in _runs(fraction):
        if digit < 9:
            found.append(f"{start}{_repeated(digit, 0, n_times - 1)}{_class(digit + 1, 9)}[0-9]*")
    return [*found, _text(fraction) + ("0*[1-9][0-9]*" if is_excluded else "[0-9]*")]


def _fraction_up_to(fraction: str, is_excluded: bool) -> list[str]:
    """Digits behind the point that are not above these, at least one."""
    found = []
    for start, digit, n_times in _runs(fraction):
        if digit > 0:
            found.append(f"{start}{_repeated(digit, 0, n_times - 1)}{_class(0, digit - 1)}[0-9]*")
        found.append(start + _repeated(digit, 1, n_times))
    if is_excluded:
        start, digit, n_times = list(_runs(fraction))[-1]
        found[-1:] = [start + _repeated(digit, 1, n_times - 1)] if n_times > 1 else []
        return found
    return [*found, _text(fraction) + "0*"]


def _runs(digits: str) -> Iterator[tuple[str, int, int]]:
    """Equal digits in a row: what comes before them, the digit, and how often it comes."""
    before = ""
    for digit, same in groupby(digits):
        n_times = len(list(same))
        yield _text(before), int(digit), n_times
        before += digit * n_times


def _first_difference(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _text(digits: str) -> str:
    """These digits, short where one is repeated."""
    runs = ((digit, len(list(same))) for digit, same in groupby(digits))
    return "".join(f"{digit}{{{n}}}" if n > 4 else digit * n for digit, n in runs)


def _repeated(digit: int, least: int, most: int) -> str:
    """A digit least to most times."""
    return "" if most == 0 else str(digit) if least == most == 1 else f"{digit}{{{least},{most}}}"


def _digits(least: int, most: int | None = None) -> str:
    """Any digits, so many."""
    if most is not None and most > least:
        return f"[0-9]{{{least},{most}}}"
    return "" if least == 0 else "[0-9]" if least == 1 else f"[0-9]{{{least}}}"


def _class(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _any(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
