"""Sizes of files and memories for people, in one unit everywhere: binary, as llama.cpp's tools and drivers count."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(n_bytes: float) -> str:
    """Bytes in the largest unit that they fill, to three digits or so.

    >>> size(98_362_432), size(4_920_000_000), size(512 * 2**20), size(0)
    ('93.8 MiB', '4.6 GiB', '512 MiB', '0 B')
    """
    amount, unit = float(n_bytes), 0
    while _rounded(amount, unit) >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{_rounded(amount, unit):.{_n_digits(amount, unit)}f} {_UNITS[unit]}"


def _rounded(amount: float, unit: int) -> float:
    return round(amount, _n_digits(amount, unit))


def _n_digits(amount: float, unit: int) -> int:
    """Digits behind the point: of less than a hundred one, except of bytes."""
    return 1 if unit and round(amount, 1) < 100 else 0
