"""What is shown of a model's reasoning, and how it is kept beside the answer: in <think> tags, whatever the model's
own form is, so that a chat can go on with another model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vkllm import Generation

OPEN, CLOSE = "<think>", "</think>"

Thoughts = Literal["on a terminal", "hidden", "printed"]
"""People see them and a file gets the answer alone; nobody does; they are a part of the answer, in tags."""


class KeptText:
    """Writes the parts of an answer, as they come, as one text."""

    def __init__(self) -> None:
        self._is_thinking = False

    def add(self, reasoning: str, text: str) -> str:
        """What some reasoning, and then some text, add to the whole."""
        added = ""
        if reasoning:
            added = reasoning if self._is_thinking else f"{OPEN}\n{reasoning}"
            self._is_thinking = True
        if text and self._is_thinking:
            added += f"\n{CLOSE}\n\n"
            self._is_thinking = False
        return added + text


def kept_text(answer: Generation) -> str:
    """A whole answer as one text."""
    return KeptText().add(answer.reasoning, answer.text)
