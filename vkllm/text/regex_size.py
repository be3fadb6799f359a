"""How large the regular expressions of a grammar are, in two ways that cost time and that llguidance does not bound.

It knows enough of the syntax to count, for expressions and for Lark; what is wrong with them, llguidance says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from vkllm.errors import InvalidParameter

# The time that llguidance 1.9.1 takes to compile an expression grows with the square of the parts that may be left out:
# in CPU time on a vocabulary of 152,000 tokens 0.1 s for 2,000 parts such as a?, 1.2 s for 8,000, and 16 s for 5,000
# parts with Unicode's classes such as \w*, which count 4 times.
MAX_OPTIONAL_PARTS = 2000
# A mask first follows the text that is given, so a{1000} costs as much as 1,000 bytes: 0.13 to 0.17 s for 100,000 of
# them, and 0.6 s for a million, as (a{1000}){1000}. Repetitions of what leaves a choice cost less.
MAX_GIVEN_BYTES = 100_000
_WIDE = 4
_MAX_BYTES = 4  # of a character in UTF-8

_WIDE_CLASS = re.compile(r"^\[\^|\\[pPwWdDsS]|\\x\{[0-9a-fA-F]{3,}|[^\x00-\x7f]")
_IN_REGEX = re.compile(
    r"""(?P<flags>\(\?[a-zA-Z-]+\))
      | (?P<open>\((?:\?(?:P?<\w+>|[a-zA-Z-]*:))?)
      | (?P<times>(?:[*+?]|\{\d*,?\d*\})\??)
      | (?P<sign>[)|])
      | (?P<edge>[$^])
      | (?P<wide>\\[pP](?:\{[^}]{0,80}\}|.)|\\[wWdDsS]|\.)
      | (?P<class>\[\^?\]?(?:\\.|[^\]\\])*\]?)
      | (?P<one>\\[xuU](?:\{[^}]{0,80}\})?|\\.|.)""",
    re.VERBOSE | re.DOTALL,
)
_IN_LARK = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
      | (?P<defines>^[ \t]*[?!_]*[A-Za-z][\w-]*[^:\n"/(]*:)
      | (?P<text>"(?:[^"\\]|\\.)*"i?)
      | (?P<regex>/(?:[^/\\\n]|\\.)+/)
      | (?P<times>[*+?]|\{\d*,?\d*\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
      | (?P<name>[A-Za-z_][\w-]*)
      | (?P<open>[(\[])
      | (?P<sign>[)\]|])""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


class Size(NamedTuple):
    """given: bytes that texts have at least, of all choices together. optional: parts that may be left out, each as
    often as it is written; those with Unicode's classes count several times."""

    given: int
    optional: int


class _Part(NamedTuple):
    size: Size
    is_wide: bool = False


class _Times(NamedTuple):
    least: int


def check_regex(regex: str, option: str) -> None:
    """Raises InvalidParameter if an expression is too large."""
    check_size(size_of_regex(regex), option)


def check_lark(grammar: str, option: str) -> None:
    """Raises InvalidParameter if the terminals of a grammar are too large, all together."""
    check_size(_size_of_lark(grammar), option)


def check_size(size: Size, option: str) -> None:
    """Raises InvalidParameter if the expressions of a grammar are too large, all together."""
    if size.optional > MAX_OPTIONAL_PARTS:
        raise InvalidParameter(
            f"{option} is too complex: its regular expressions have more than {MAX_OPTIONAL_PARTS} parts that may be "
            f"left out, such as a? and a* (\\w* counts {_WIDE} times)"
        )
    if size.given > MAX_GIVEN_BYTES:
        raise InvalidParameter(
            f"{option} is too complex: its regular expressions ask for texts of more than {MAX_GIVEN_BYTES} bytes, as "
            f"a{{{MAX_GIVEN_BYTES + 1}}} does"
        )


def size_of_regex(regex: str) -> Size:
    """The size of one expression; of what is none, any."""
    return _sum(_regex_parts(regex)).size


def _size_of_lark(grammar: str) -> Size:
    """The size of all terminals that rules name, each once, and of the expressions in rules."""
    bodies: dict[str, list[_Part | _Times | str]] = {}
    body = bodies.setdefault("", [])
    has_schemas = "%json" in grammar
    for found in _IN_LARK.finditer(grammar):
        text = found.group()
        match found.lastgroup:
            case "defines":
                name = re.findall(r"[A-Za-z][\w-]*", text)[0]
                body = bodies.setdefault(name if name[0].isupper() else "", [])
            case "text" if not has_schemas:
                body.append(_Part(Size(len(text[1:].rstrip('i"').encode(errors="replace")), 0), not text.isascii()))
            case "text":  # a schema's, perhaps a pattern
                body.append(_sum(_regex_parts(text[1:-1].replace("\\\\", "\\"))))
            case "regex":
                body.append(_sum(_regex_parts(text[1:-1])))
            case "name":
                body.append(text)
            case "times":
                body.append(_times(text))
            case "open":
                body.append("(")
            case "sign":
                body += [")", _Times(0)] if text == "]" else [text]
    names = {name: {part for part in body if isinstance(part, str) and part in bodies} for name, body in bodies.items()}
    rules = [part for part in bodies.pop("") if isinstance(part, _Part)]
    used = names.pop("")
    sizes: dict[str, _Part] = {}
    try:
        for name in TopologicalSorter(names).static_order():
            sizes[name] = _sum(sizes.get(part, part) if isinstance(part, str) else part for part in bodies[name])
    except CycleError:
        return Size(0, 0)  # which llguidance refuses
    every = [part.size for part in (*rules, *(sizes[name] for name in used))]
    return Size(sum(size.given for size in every), sum(size.optional for size in every))


def _regex_parts(regex: str) -> Iterator[_Part | _Times | str]:
    for found in _IN_REGEX.finditer(regex):
        text = found.group()
        match found.lastgroup:
            case "open":
                yield "("
            case "sign":
                yield text
            case "times":
                yield _times(text)
            case "wide":
                yield _Part(Size(1, 0), is_wide=True)
            case "class":
                yield _Part(Size(1, 0), bool(_WIDE_CLASS.search(text)))
            case "one":
                is_wide = bool(_WIDE_CLASS.search(text))
                yield _Part(Size(_MAX_BYTES if is_wide else 1, 0), is_wide)


def _times(text: str) -> _Times:
    digits = re.findall(r"\d+", text)
    if digits and not text.startswith("{,"):
        return _Times(int(digits[0][:12]))
    return _Times(int(text.startswith("+")))


def _sum(parts: Iterable[_Part | _Times | str]) -> _Part:
    """The whole of the parts of an expression in a row, with ( and ) around some and | between some; names of what is
    not known count nothing."""
    given, optional, is_wide = 0, 0, False
    last = _Part(Size(0, 0))
    outside: list[tuple[int, int, bool]] = []
    before = "("
    for part in parts:
        if part == "(":
            outside.append((given, optional, is_wide))
            given, optional, is_wide = 0, 0, False
        elif (part == "|" or part == ")") and before in ("(", "|"):  # an empty choice
            optional += _WIDE
        if part == ")" and outside:
            last = _Part(Size(given, optional), is_wide)
            given, optional, is_wide = outside.pop()
            part = last
            before = ")"
        else:
            before = part if isinstance(part, str) else ""
        if isinstance(part, _Part):
            last = part
            given, optional = given + part.size.given, optional + part.size.optional
            is_wide |= part.is_wide
        elif isinstance(part, _Times):
            given += last.size.given * max(part.least - 1, 0)
            optional += (_WIDE if last.is_wide else 1) if part.least == 0 else 0
            last = _Part(Size(last.size.given * max(part.least, 1), last.size.optional), last.is_wide)
    while outside:  # of what is no expression
        more_given, more_optional, more_wide = outside.pop()
        given, optional, is_wide = given + more_given, optional + more_optional, is_wide or more_wide
    return _Part(Size(given, optional), is_wide)
