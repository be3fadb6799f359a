"""Takes an answer apart while it comes: text in, parts out."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from vkllm.text.answers.parts import Collected, FoundCall, Parts, ToolCall
from vkllm.text.answers.source import Source
from vkllm.text.answers.tools import Tools

if TYPE_CHECKING:
    from vkllm.text.answers.choice import AnswerForm


class AnswerParser:
    """One answer's parser. What may still be the beginning of a marker or of a call is held back, nothing else.

    The parts together are the whole answer but for its markers and white space beside them, however it was cut.
    """

    def __init__(self, form: AnswerForm, tools: Tools | None = None, *, is_thinking: bool = False) -> None:
        """tools: that the model may call; without any, calls stay text. is_thinking: the prompt has opened the
        reasoning."""
        self._source = Source()
        self._out = Collected()
        self._reading = form.reader(tools or Tools()).read(self._source, self._out, is_thinking=is_thinking)
        next(self._reading)

    def push(self, text: str) -> Parts:
        """Takes in some text of the answer; returns the parts that are clear now."""
        self._source.push(text)
        return self._go_on()

    def finish(self) -> Parts:
        """Ends the answer; returns what was held back."""
        self._source.is_whole = True
        return self._go_on()

    def _go_on(self) -> Parts:
        next(self._reading, None)
        reasoning, text, calls = self._out.take()
        return Parts(reasoning, text, tuple(map(_with_id, calls)))


def parse_answer(text: str, form: AnswerForm, tools: Tools | None = None, *, is_thinking: bool = False) -> Parts:
    """The parts of a whole answer. Parameters as for `AnswerParser`."""
    parser = AnswerParser(form, tools, is_thinking=is_thinking)
    return parser.push(text).followed_by(parser.finish())


def _with_id(call: FoundCall) -> ToolCall:
    return ToolCall(call.id or f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments)
