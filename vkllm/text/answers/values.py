"""Values as models write them in calls of tools: JSON, Python, and Gemma 4's own notation.

Readers take one value off a `Source`. What they return can be written as JSON. Nothing is evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vkllm.text.answers.source import Broken, Reading, Source

_MAX_DEPTH = 50

_JSON_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"[-+.\w]")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_BARE_KEY = re.compile(r"[^\s:{}\[\],<>]")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|\n|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", "\\": "\\", "'": "'", '"': '"', "/": "/"}


@dataclass(frozen=True)
class Notation:
    """How values are written. quotes: what begins and ends a text. words: values that have names.

    escapes: what a backslash does in a text, "json", "python", or "none" between marks that are no quotes.
    has_bare_keys: keys of objects have no quotes.
    """

    quotes: tuple[str, ...]
    words: Mapping[str, Any]
    escapes: str
    has_bare_keys: bool = False


JSON = Notation(('"',), _JSON_WORDS, "json")
PYTHON = Notation(
    ('"', "'", '"""', "'''"), {**_JSON_WORDS, "True": True, "False": False, "None": None}, escapes="python"
)
FUNCTION_GEMMA = Notation(("<escape>",), _JSON_WORDS, escapes="none", has_bare_keys=True)
GEMMA = Notation(('<|"|>', '"'), _JSON_WORDS, escapes="none", has_bare_keys=True)


def read_value(source: Source, notation: Notation, depth: int = 0) -> Reading[Any]:
    """One value after white space. Raises Broken for anything else, for numbers that JSON cannot hold and for more
    than 50 levels."""
    if depth > _MAX_DEPTH:
        raise Broken
    yield from source.space()
    first = yield from source.peek()
    if first == "{":
        return (yield from _read_object(source, notation, depth))
    if first == "[" or (first == "(" and notation is PYTHON):
        return (yield from _read_list(source, notation, depth))
    if quote := (yield from source.accept(*notation.quotes)):
        return (yield from _read_text(source, notation, quote))
    word = yield from source.run(_WORD)
    if word in notation.words:
        return notation.words[word]
    return number(word)


def number(word: str) -> int | float:
    """A number as JSON writes it. Raises Broken."""
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise Broken
    try:
        value = int(word) if found[2] is None and found[3] is None else float(word)
    except ValueError:  # thousands of digits
        raise Broken from None
    if not math.isfinite(value):
        raise Broken
    return value


def _read_object(source: Source, notation: Notation, depth: int) -> Reading[dict[str, Any]]:
    yield from source.need("{")
    made: dict[str, Any] = {}
    yield from source.space()
    if (yield from source.accept("}")):
        return made
    while True:
        yield from source.space()
        yield from source.peek()
        if quote := (yield from source.accept(*notation.quotes)):
            key = yield from _read_text(source, notation, quote)
        elif notation.has_bare_keys:
            key = yield from source.run(_BARE_KEY)
        else:
            raise Broken
        yield from source.space()
        yield from source.need(":")
        made[key] = yield from read_value(source, notation, depth + 1)
        yield from source.space()
        if (yield from source.need(",", "}")) == "}":
            return made


def _read_list(source: Source, notation: Notation, depth: int) -> Reading[list[Any]]:
    end = "]" if (yield from source.need("[", "(")) == "[" else ")"
    made: list[Any] = []
    yield from source.space()
    if (yield from source.accept(end)):
        return made
    while True:
        made.append((yield from read_value(source, notation, depth + 1)))
        yield from source.space()
        if (yield from source.need(",", end)) == end:
            return made


def _read_text(source: Source, notation: Notation, quote: str) -> Reading[str]:
    """A text whose first quote was read."""
    if notation.escapes == "none" and quote != '"':
        text, _ = yield from source.until(quote)
    else:
        start = source.position
        while (yield from source.until(quote, "\\"))[1] != quote:
            yield from source.peek()
            source.position += 1
        raw = source.since(start)[: -len(quote)]
        text = _unescaped_python(raw) if notation.escapes == "python" else _unescaped_json(raw)
    if any("\ud800" <= character <= "\udfff" for character in text):  # half a pair, which is no text
        raise Broken
    return text


def _unescaped_json(raw: str) -> str:
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError:
        raise Broken from None


def _unescaped_python(raw: str) -> str:
    def character(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "xuU" and len(code) > 1:
            n = int(code[1:], 16)
            if n > 0x10FFFF:
                raise Broken
            return chr(n)
        return _ESCAPED.get(code, found[0])

    return _ESCAPE.sub(character, raw)
