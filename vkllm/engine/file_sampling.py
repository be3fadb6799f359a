"""How the makers of a model recommend to draw its tokens: `general.sampling.*` in its file.

These are the defaults of requests that ask for nothing else. The keys, and how their values are read, are those of
llama.cpp 0.5.0; what it accepts and vkllm does not draw by (mirostat, XTC, an order of samplers) changes nothing here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vkllm.errors import ModelFileError

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata

_PREFIX = "general.sampling."
_INTEGER = re.compile(r"\s*([+-]?\d{1,20})")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class FileSampling:
    """values: fields of SamplingParams by name. unused: the other keys (without their prefix) and their values."""

    values: dict[str, Any]
    unused: dict[str, str]


def file_sampling(metadata: Metadata) -> FileSampling:
    """What a file recommends. Numbers may be written as text; what is no number is not used, as in llama.cpp.

    A number out of range is the nearest that the parameter takes, which means the same: a temperature below 0 is
    greedy, a top-k below 0 keeps all.
    """
    values: dict[str, Any] = {}
    unused: dict[str, str] = {}
    for key in metadata:
        if not key.startswith(_PREFIX):
            continue
        name, text = key.removeprefix(_PREFIX), _text(metadata, key)
        field, low, high, pattern = _FIELDS.get(name, ("", 0, 0, _NUMBER))
        found = pattern.match(text)
        if not field or found is None:
            unused[name] = text
        elif pattern is _INTEGER:
            values[field] = min(max(int(found[1]), int(low)), int(high))
        else:
            values[field] = min(max(float(found[1]), low), high)
    return FileSampling(values, unused)


_FIELDS: dict[str, tuple[str, float, float, re.Pattern[str]]] = {
    "temp": ("temperature", 0, 100, _NUMBER),
    "top_k": ("top_k", 0, 2**31, _INTEGER),
    "top_p": ("top_p", 0, 1, _NUMBER),
    "min_p": ("min_p", 0, 1, _NUMBER),
    "penalty_repeat": ("repetition_penalty", 0.01, 100, _NUMBER),
    "penalty_last_n": ("penalty_window", -1, 2**31, _INTEGER),
}
"""Name of the key -> field of SamplingParams, its lowest and highest value, and how its text is read."""


def _text(metadata: Metadata, key: str) -> str:
    """A value as llama.cpp writes it before it reads it again; "" for an array and for text that is not UTF-8."""
    try:
        value = "" if metadata.is_array(key) else metadata.plain(key)
    except ModelFileError:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else str(value)
