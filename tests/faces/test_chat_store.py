"""Chats on disk: the tree of messages, search, and what happens when the file is not what it should be."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm import VkllmError
from vkllm.faces.chat.store import SCHEMA_VERSION, ChatStore, chats_path, title_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "chats.db"


@pytest.fixture
def store(path: Path) -> ChatStore:
    times = iter(range(1, 1000))
    return ChatStore(path, clock=lambda: float(next(times)))


def contents(store: ChatStore, chat_id: int) -> list[str]:
    return [message.content for message in store.messages(chat_id)]


def test_what_was_written_is_there_when_the_file_is_opened_again(store: ChatStore, path: Path) -> None:
    chat = store.new_chat("Title", "Be short", {"temperature": 0.5})
    question = store.add_message(chat.id, None, "user", "Hé?")
    answer = store.add_message(chat.id, question.id, "assistant", "", "stopped")
    store.write_message(replace(answer, content="Ho", state="done", note="9 tok/s"))
    store.set_setting("theme", "nord")
    again = ChatStore(path)  # while the first one is open, as a second program would
    [found] = again.chats()
    assert (found.title, found.system, found.sampling) == ("Title", "Be short", {"temperature": 0.5})
    assert [(m.role, m.content, m.state, m.note) for m in again.messages(found.id)] == [
        ("user", "Hé?", "done", ""),
        ("assistant", "Ho", "done", "9 tok/s"),
    ]
    assert again.setting("theme", None) == "nord"
    assert again.setting("other", 7) == 7


def test_siblings_are_variants_and_the_newest_path_below_is_shown(store: ChatStore) -> None:
    chat = store.new_chat("", "", {})
    one = store.add_message(chat.id, None, "user", "one")
    first = store.add_message(chat.id, one.id, "assistant", "first")
    store.add_message(chat.id, first.id, "user", "two")
    second = store.add_message(chat.id, one.id, "assistant", "second")
    assert contents(store, chat.id) == ["one", "second"]
    assert store.variants(first) == store.variants(second) == [first.id, second.id]
    store.show_variant(chat.id, first.id)
    assert contents(store, chat.id) == ["one", "first", "two"]


def test_deleting_the_last_answer_shows_the_one_before_it(store: ChatStore) -> None:
    chat = store.new_chat("", "", {})
    question = store.add_message(chat.id, None, "user", "one")
    store.add_message(chat.id, question.id, "assistant", "first")
    second = store.add_message(chat.id, question.id, "assistant", "second")
    store.delete_branch(second)
    assert contents(store, chat.id) == ["one", "first"]
    store.delete_branch(question)
    assert contents(store, chat.id) == []
    assert store.variants(question) == []


def test_what_hangs_below_a_deleted_answer_moves_up(store: ChatStore) -> None:
    chat = store.new_chat("", "", {})
    parent = None
    messages = []
    for content in "abcdef":
        messages.append(store.add_message(chat.id, parent, "user", content))
        parent = messages[-1].id
    store.add_message(chat.id, messages[2].id, "assistant", "another d")  # goes with its question
    store.show_variant(chat.id, messages[3].id)
    store.delete_branch(messages[2], keep_below=messages[3].id)
    assert contents(store, chat.id) == ["a", "b", "e", "f"]


def test_search_looks_into_titles_and_messages_whatever_the_case(store: ChatStore) -> None:
    for title, content in (("Ärger 100%", "x"), ("Other", "Über die Straße"), ("Third", "nothing")):
        chat = store.new_chat(title, "", {})
        store.add_message(chat.id, None, "user", content)
    for search, titles in (
        ("äRGER", ["Ärger 100%"]),
        ("STRASSE", ["Other"]),
        ("%", ["Ärger 100%"]),
        ("_", []),
        ("", ["Third", "Other", "Ärger 100%"]),
    ):
        assert [chat.title for chat in store.chats(search)] == titles


def test_the_chat_that_changed_last_comes_first(store: ChatStore) -> None:
    old, new = store.new_chat("old", "", {}), store.new_chat("new", "", {})
    store.add_message(old.id, None, "user", "x")
    assert [chat.id for chat in store.chats()] == [old.id, new.id]
    store.rename_chat(old.id, "renamed")
    store.delete_chat(new.id)
    assert [chat.title for chat in store.chats()] == ["renamed"]
    assert store.chat(new.id) is None


def test_a_deleted_chat_leaves_no_messages(store: ChatStore, path: Path) -> None:
    chat = store.new_chat("", "", {})
    store.add_message(chat.id, None, "user", "secret")
    store.delete_chat(chat.id)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM messages").fetchone() == (0,)


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("\n  What   is it?\nMore", "What is it?"),
        ("x" * 100, "x" * 59 + "…"),
        (" \n ", "New chat"),
    ],
)
def test_a_chat_is_named_by_its_first_question(question: str, title: str) -> None:
    assert title_of(question) == title


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path))
    assert chats_path() == tmp_path / "chats.db"
    monkeypatch.delenv("VKLLM_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    if os.name == "posix":
        assert chats_path() == tmp_path / "share" / "vkllm" / "chats.db"


def test_a_file_that_holds_no_chats_is_one_sentence(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("This is a letter, not a database. " * 100)
    with pytest.raises(VkllmError, match=r"chats\.db: the chats cannot be .*VKLLM_DATA"):
        ChatStore(path)


def test_chats_of_a_newer_version_are_left_alone(path: Path) -> None:
    ChatStore(path).close()
    sqlite3.connect(path).execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(VkllmError, match="newer vkllm"):
        ChatStore(path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VkllmError, match="cannot be made"):
        ChatStore(tmp_path / "file" / "chats.db")
