"""The limits of a template: steps, which bound its time, and characters, which bound its memory."""

from __future__ import annotations

MAX_SOURCE = 100_000
"""Most characters of a template; the longest template of a model that we know has 17,000."""

MAX_STEPS = 500_000
"""Most expressions, loop rounds and values of lists: about half a second. Models' templates take about 50 a message."""

STEPS_A_MESSAGE = 1_000

MAX_CHARACTERS = 50_000_000
TIMES_WRITTEN = 50
TIMES_WRITTEN_A_MESSAGE = 3
"""How many times a template may write its whole input: some append each message to a copy of all before it."""

MAX_DEPTH = 100
"""Deepest calls of macros within each other, and lists within lists."""

MAX_BITS = 256
"""Most bits of a computed integer."""

MAX_WIDTH = 10_000
"""Largest width that text is padded to, and most decimal places."""

MAX_RANGE = 100_000

_CHARACTERS_A_STEP = 100


class TemplateLimit(Exception):
    """A template exceeds its limits; the text says which."""


class Budget:
    """What is left of a run's limits. n_messages, n_characters: size of the template's input."""

    def __init__(self, n_messages: int = 0, n_characters: int = 0) -> None:
        n_times = TIMES_WRITTEN + TIMES_WRITTEN_A_MESSAGE * n_messages
        self._n_steps = MAX_STEPS + STEPS_A_MESSAGE * n_messages + n_times * n_characters // _CHARACTERS_A_STEP
        self._n_characters = MAX_CHARACTERS + n_times * n_characters
        self._depth = 0

    def step(self, n: int = 1) -> None:
        """Counts n steps; raises TemplateLimit when none are left."""
        self._n_steps -= max(n, 0)
        if self._n_steps < 0:
            raise TemplateLimit("it takes too many steps")

    def write(self, n: int) -> None:
        """Counts n characters before they are written or read; raises TemplateLimit when none are left."""
        self._n_characters -= max(n, 0)
        if self._n_characters < 0:
            raise TemplateLimit("it writes too much text")
        self.step(1 + max(n, 0) // _CHARACTERS_A_STEP)

    def enter(self) -> None:
        """Counts a call within another; `leave` ends it."""
        self.step(10)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateLimit("its macros call each other too deep")

    def leave(self) -> None:
        self._depth -= 1


def checked_width(width: int, what: str = "a field") -> int:
    """A width that a template gives; raises TemplateLimit if it is absurd."""
    if abs(width) > MAX_WIDTH:
        raise TemplateLimit(f"it asks for {what} of {width} characters")
    return width
