"""The text of an answer while it comes, read by generators that wait where it cannot be decided yet what is there.

A reader is a generator: it yields when it needs more text, and goes on when `Source.push` has brought some. What it
reads depends only on the characters, never on how they were cut into pieces. It knows no form of answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Reads a T; each yield is a wait for more text."""


class Broken(Exception):
    """What is read is not what it began as."""


class Unfinished(Broken):
    """The answer ended within what is read."""


class Source:
    """Text up to where it has come. position: how far it was read. is_whole: no more comes."""

    def __init__(self, text: str = "", *, is_whole: bool = False) -> None:
        self.position = 0
        self.is_whole = is_whole
        self._text = text

    def push(self, text: str) -> None:
        """Adds text."""
        self._text += text

    @property
    def rest(self) -> str:
        """What has come and was not read."""
        return self._text[self.position :]

    def since(self, start: int) -> str:
        """What was read from a position on."""
        return self._text[start : self.position]

    def forget(self) -> None:
        """Lets go of what was read; positions count from here."""
        self._text, self.position = self._text[self.position :], 0

    def more(self) -> Reading[bool]:
        """Waits for more text; False if none comes."""
        n_seen = len(self._text)
        while len(self._text) == n_seen and not self.is_whole:
            yield
        return len(self._text) > n_seen

    def peek(self) -> Reading[str]:
        """The next character. Raises Unfinished."""
        while self.position >= len(self._text):
            if not (yield from self.more()):
                raise Unfinished
        return self._text[self.position]

    def is_at_end(self) -> Reading[bool]:
        """Whether the answer ends here."""
        while self.position >= len(self._text):
            if not (yield from self.more()):
                return True
        return False

    def run(self, characters: re.Pattern[str]) -> Reading[str]:
        """The characters from here on that each match; the first that does not, or the end, ends them."""
        start = self.position
        while True:
            while self.position < len(self._text) and characters.match(self._text, self.position):
                self.position += 1
            if self.position < len(self._text) or not (yield from self.more()):
                return self.since(start)

    def space(self) -> Reading[str]:
        """White space, perhaps none."""
        return (yield from self.run(_SPACE))

    def accept(self, *literals: str) -> Reading[str]:
        """Takes the literal that comes here, the longest of several; "" if none does."""
        while True:
            found = max([text for text in literals if self._text.startswith(text, self.position)], key=len, default="")
            n_left = len(self._text) - self.position
            may_become_longer = any(n_left < len(text) and text.startswith(self.rest) for text in literals)
            if not may_become_longer or not (yield from self.more()):
                self.position += len(found)
                return found

    def need(self, *literals: str) -> Reading[str]:
        """As `accept`; raises Broken where none of the literals comes, Unfinished where the answer ends instead."""
        if found := (yield from self.accept(*literals)):
            return found
        raise Unfinished if any(literal.startswith(self.rest) for literal in literals) else Broken

    def until(self, *literals: str) -> Reading[tuple[str, str]]:
        """The text before the first of the literals, and that literal; both are read. Raises Unfinished."""
        markers = markers_of(literals)
        start = seen = self.position
        while True:
            if found := markers.find(self._text, seen):
                self.position = found.end()
                return self._text[start : found.start()], found[0]
            seen = max(start, len(self._text) - markers.longest + 1)
            if not (yield from self.more()):
                raise Unfinished

    def comes(self, *literals: str) -> Reading[bool]:
        """Whether one of the literals comes after white space, or the answer ends there; nothing is read."""
        start = self.position
        yield from self.space()
        is_there = (yield from self.is_at_end()) or bool((yield from self.accept(*literals)))
        self.position = start
        return is_there


class Markers:
    """Literals to find in a text. longest: characters of the longest one."""

    def __init__(self, literals: Sequence[str]) -> None:
        by_length = sorted(literals, key=len, reverse=True)
        self.longest = len(by_length[0]) if by_length else 0
        self._beginnings = {literal[:n] for literal in literals for n in range(1, len(literal))}
        self._pattern = re.compile("|".join(map(re.escape, by_length)) if by_length else "(?!)")

    def find(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first one; of several that begin there, the longest."""
        return self._pattern.search(text, start)

    def n_held(self, text: str) -> int:
        """The characters at the text's end that may become a marker, with the white space before them."""
        longest = range(min(len(text), self.longest - 1), 0, -1)
        n = next((n for n in longest if text[-n:] in self._beginnings), 0)
        kept = text[: len(text) - n]
        return n + len(kept) - len(kept.rstrip()) if self.longest else 0


@lru_cache(maxsize=256)
def markers_of(literals: tuple[str, ...]) -> Markers:
    """The markers of these literals, which are often the same."""
    return Markers(literals)


def whole(text: str, read: Callable[[Source], Reading[T]]) -> T:
    """What a reader reads in a whole text, of which nothing may be left. Raises Broken."""
    source = Source(text, is_whole=True)
    reading = read(source)
    try:
        next(reading)
    except Unfinished:
        raise Broken from None  # the text is whole, the answer that it is from need not be
    except StopIteration as done:
        if source.rest.strip():
            raise Broken from None
        value: T = done.value
        return value
    raise AssertionError("a reader waits for more of a whole text")


_SPACE = re.compile(r"\s")
