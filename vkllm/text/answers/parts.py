"""The parts of an answer: reasoning, text, calls of tools.

It knows their shapes; who finds them in what a model writes are the readers beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that a model asks for.

    id: names this call in the message with its result. name: the tool's. arguments: what it is called with; where the
    model's form has texts only, they have the types of the tool's schema.

    >>> call = ToolCall("call_1", "weather", {"city": "Paris"})
    >>> call.as_message_part()["function"]
    {'name': 'weather', 'arguments': '{"city": "Paris"}'}
    """

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON text."""
        return json.dumps(self.arguments, ensure_ascii=False)

    def as_message_part(self) -> dict[str, Any]:
        """The call as an entry of a message's `tool_calls`, as in OpenAI's API."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments_json},
        }


@dataclass(frozen=True)
class CutCall(ToolCall):
    """A call that the end of an answer cut. written: its arguments as far as they came, which are no whole JSON.
    arguments: what they say."""

    written: str = ""

    @property
    def arguments_json(self) -> str:
        """What was written of them."""
        return self.written


class FoundCall(NamedTuple):
    """A call as it was read. id: only where the model has written one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


class Parts(NamedTuple):
    """What came of an answer: some of its reasoning, some of its text, calls that are complete. cut_call: what the text
    is, where it is the beginning of a call that had to come."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    cut_call: CutCall | None = None

    def followed_by(self, later: Parts) -> Parts:
        """These parts and later ones of the same answer."""
        calls = self.tool_calls + later.tool_calls
        return Parts(self.reasoning + later.reasoning, self.text + later.text, calls, self.cut_call or later.cut_call)


class Collected:
    """Takes parts from a reader. White space between parts belongs to none of them, unless text follows text.

    gap: white space that was read, which is text if more text follows. has_text, has_reasoning: whether any came yet.
    """

    def __init__(self) -> None:
        self.gap = ""
        self.has_text = False
        self.has_reasoning = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[FoundCall] = []

    def say(self, text: str) -> None:
        """Some text of the answer."""
        if text:
            self._text.append(self.gap + text)
            self.gap, self.has_text = "", True

    def think(self, text: str) -> None:
        """Some reasoning."""
        if text:
            self._reasoning.append(text)
            self.has_reasoning = True

    def call(self, calls: list[FoundCall]) -> None:
        """Complete calls."""
        self._calls += calls

    def take(self) -> tuple[str, str, list[FoundCall]]:
        """Reasoning, text and calls since the last time."""
        taken = "".join(self._reasoning), "".join(self._text), self._calls
        self._reasoning, self._text, self._calls = [], [], []
        return taken
