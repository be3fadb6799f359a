"""Answers that chats keep as one text each, taken apart into reasoning and text; and a chat as a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from vkllm.faces.chat.store import ChatMessage
from vkllm.faces.thoughts import CLOSE, OPEN
from vkllm.text.answers.choice import AnswerForm
from vkllm.text.answers.parser import parse_answer
from vkllm.text.answers.tagged import Tags

_TAGS = Tags(OPEN, CLOSE)
_FORM = AnswerForm(_TAGS)
_JSON_BEGINS = re.compile(r'\s*\{\s*"[^"\n]*"\s*:')
_NOT_IN_A_FILE_NAME = re.compile(r"[^\w-]+")


class Answer(NamedTuple):
    """An answer in its parts. is_thinking: the reasoning has not ended yet."""

    reasoning: str
    text: str
    is_thinking: bool


def split_reasoning(content: str) -> Answer:
    """Takes an answer, or what there is of it so far, apart. The beginning of a first tag counts as reasoning."""
    start = content.lstrip()
    if not start.startswith(_TAGS.open):
        is_beginning = bool(start) and _TAGS.open.startswith(start)
        return Answer("", "" if is_beginning else content, is_beginning)
    parts = parse_answer(content, _FORM)
    return Answer(parts.reasoning.rstrip(), parts.text, _TAGS.close not in start)


def prompt_messages(system: str, messages: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """A conversation as the model gets it: earlier reasoning is no part of it, as models are trained.

    system: the system message, "" for none. messages: roles and contents.
    """
    first = [("system", system)] if system else []
    return [
        {"role": role, "content": split_reasoning(content).text if role == "assistant" else content}
        for role, content in [*first, *messages]
    ]


def as_drawn(text: str) -> str:
    """The Markdown to draw: an answer that is a JSON object, as a schema asks for, is a block of code."""
    return f"```json\n{text.strip()}\n```" if _JSON_BEGINS.match(text) else text


def as_markdown(title: str, system: str, messages: Iterable[ChatMessage]) -> str:
    """A chat as a document: its title, its system prompt and its messages; reasoning is folded as HTML can."""
    parts = [f"# {title}"]
    if system:
        parts += ["## System", system]
    for message in messages:
        parts.append("## You" if message.role == "user" else "## Answer" + (f" ({message.note})" * bool(message.note)))
        answer = split_reasoning(message.content) if message.role == "assistant" else Answer("", message.content, False)
        if answer.reasoning:
            parts.append(f"<details><summary>Reasoning</summary>\n\n{answer.reasoning}\n\n</details>")
        parts.append(answer.text)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def file_name(title: str) -> str:
    """A name for a chat's Markdown file that every file system takes."""
    return (_NOT_IN_A_FILE_NAME.sub("-", title.casefold()).strip("-")[:50] or "chat") + ".md"
