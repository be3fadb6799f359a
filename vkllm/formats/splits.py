"""Models that are split over several files: `NAME-00001-of-00003.gguf` and so on, as llama-gguf-split names them.

Knows the names only; what the parts have to hold is checked by formats/gguf.py.
"""

from __future__ import annotations

import re

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_names(name: str) -> list[str]:
    """The names of all files of the model that the file `name` belongs to, in order; `[name]` if it is not a part.

    name: a file's name, a path or an address; only its end is looked at.
    """
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def n_parts(name: str) -> int:
    """How many files a model has, by the name of one of them."""
    match = _PART.fullmatch(name)
    return int(match["count"]) if match else 1


def stem(name: str) -> str:
    """The name of a model's file without `.gguf` and without the number of its part."""
    match = _PART.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".gguf")
