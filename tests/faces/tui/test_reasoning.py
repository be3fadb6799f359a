"""Answers taken apart, and chats as Markdown."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkllm import Piece
from vkllm.faces.chat.reasoning import as_drawn, as_markdown, file_name, split_reasoning
from vkllm.faces.chat.store import ChatMessage
from vkllm.faces.thoughts import KeptText


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plain", ("", "plain", False)),
        ("<think>a b</think>\n\nc", ("a b", "c", False)),
        ("\n<think>\na", ("a", "", True)),
        ("<th", ("", "", True)),
        ("<think>\nreasons\n</think>\nanswer \n", ("reasons", "answer \n", False)),
        ("The tag `</think>` ends it.", ("", "The tag `</think>` ends it.", False)),
        ("Not first: <think>x</think>", ("", "Not first: <think>x</think>", False)),
        ("<thinking> is a word", ("", "<thinking> is a word", False)),
        ("", ("", "", False)),
    ],
)
def test_reasoning_is_taken_out(content: str, expected: tuple[str, str, bool]) -> None:
    assert split_reasoning(content) == expected


@given(st.text("ab \n"), st.text("ab \n"))
def test_an_answer_that_grows_only_ever_adds_to_its_text(reasoning: str, text: str) -> None:
    content = f"<think>{reasoning}</think>{text}"
    shown = [split_reasoning(content[:n]).text for n in range(len(content) + 1)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ([Piece("Four."), Piece(" So")], "Four. So"),
        ([Piece("", reasoning="Hm"), Piece("", reasoning=" so"), Piece("Four.")], "<think>\nHm so\n</think>\n\nFour."),
        ([Piece("Four.", reasoning="Hm"), Piece("")], "<think>\nHm\n</think>\n\nFour."),
        ([Piece("", reasoning="Hm")], "<think>\nHm"),
    ],
)
def test_an_answer_is_kept_with_its_reasoning_in_tags(pieces: list[Piece], kept: str) -> None:
    text = KeptText()
    assert "".join(text.add(piece.reasoning, piece) for piece in pieces) == kept
    reasoning, said = "".join(piece.reasoning for piece in pieces), "".join(pieces)
    assert split_reasoning(kept) == (reasoning, said, bool(reasoning and not said))


@pytest.mark.parametrize(
    ("text", "is_code"),
    [('{"a": 1}', True), ('\n{\n  "a_b": "*x*', True), ("{}", False), ("{name} is", False), ('See {"a": 1}', False)],
)
def test_an_answer_that_is_json_is_drawn_as_code(text: str, is_code: bool) -> None:
    assert as_drawn(text) == (f"```json\n{text.strip()}\n```" if is_code else text)


def test_a_chat_as_markdown() -> None:
    messages = [
        ChatMessage(1, 1, None, "user", "Two and two?", "done", ""),
        ChatMessage(2, 1, 1, "assistant", "<think>Hm</think>Four.", "done", "8.0 tok/s"),
    ]
    assert as_markdown("Sums", "Be short", messages) == (
        "# Sums\n\n## System\n\nBe short\n\n## You\n\nTwo and two?\n\n## Answer (8.0 tok/s)\n\n"
        "<details><summary>Reasoning</summary>\n\nHm\n\n</details>\n\nFour.\n"
    )


@pytest.mark.parametrize(
    ("title", "name"), [("What/is: it?", "what-is-it.md"), ("../..", "chat.md"), ("Straße", "strasse.md")]
)
def test_file_names(title: str, name: str) -> None:
    assert file_name(title) == name
