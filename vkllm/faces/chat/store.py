"""Chats on disk, in one SQLite file. It knows rows and trees of messages; it knows neither models nor widgets.

A chat is a tree: an edited question and an answer made again are siblings of what they replace, so nothing is
overwritten. `Chat.head_id` names the last message of the path that is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vkllm.errors import VkllmError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE chats (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, system TEXT NOT NULL, sampling TEXT NOT NULL, head_id INTEGER,
    changed_s REAL NOT NULL
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, chat_id INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    parent_id INTEGER, role TEXT NOT NULL, content TEXT NOT NULL, state TEXT NOT NULL, note TEXT NOT NULL
);
CREATE INDEX messages_of_chat ON messages(chat_id);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_BUSY_S = 3.0
_TITLE_LENGTH = 60

Role = Literal["user", "assistant"]
State = Literal["done", "cut", "stopped", "failed"]


@dataclass(frozen=True)
class Chat:
    """One chat without its messages. sampling: fields of SamplingParams by name. changed_s: seconds since 1970."""

    id: int
    title: str
    system: str
    sampling: dict[str, Any]
    head_id: int | None
    changed_s: float


@dataclass(frozen=True)
class ChatMessage:
    """A question or an answer. state: whole, cut at a limit, stopped by the user, or ended by an error.

    note: what is shown beside the name, such as the speed. An answer that is still being written is "stopped" on
    disk, because that is what it is should the program end now.
    """

    id: int
    chat_id: int
    parent_id: int | None
    role: Role
    content: str
    state: State
    note: str


def chats_path() -> Path:
    """Where chats are kept: chats.db in $VKLLM_DATA, else in the user's folder for application data."""
    if chosen := os.environ.get("VKLLM_DATA"):
        return Path(chosen).expanduser() / "chats.db"
    from platformdirs import user_data_path

    return user_data_path("vkllm", appauthor=False) / "chats.db"


def title_of(question: str) -> str:
    """A name for a chat: the first line of its first question, shortened."""
    line = " ".join(next((line for line in question.splitlines() if line.strip()), "New chat").split())
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"


class ChatStore:
    """All chats and settings. To be used by one thread; several programs may have the file open.

    Every method raises VkllmError when the file cannot be read or written; what it did not write is not there.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens the file, or makes it. clock: seconds since 1970."""
        self.path = path
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VkllmError(
                f"{path.parent}: the folder for chats cannot be made ({error.strerror}); set VKLLM_DATA to another one"
            ) from None
        with self._errors("opened"):
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._db.create_function("fold", 1, lambda text: str(text).casefold(), deterministic=True)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._make_schema()
            # Answers are written while they grow, and no key may wait for a slow disk: with a log, what is written is
            # safe from crashes at once, and from a power failure a little later. Some file systems cannot have one.
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    # --- Chats -------------------------------------------------------------------------------------------------------

    def chats(self, search: str = "") -> list[Chat]:
        """Chats whose title or messages hold the text, whatever its case; the last changed one first."""
        query = "SELECT id, title, system, sampling, head_id, changed_s FROM chats"
        values: tuple[str, ...] = ()
        if search.strip():
            query += (
                " WHERE instr(fold(title), ?1) OR id IN (SELECT chat_id FROM messages WHERE instr(fold(content), ?1))"
            )
            values = (search.strip().casefold(),)
        with self._errors("read"):
            rows = self._db.execute(query + " ORDER BY changed_s DESC, id DESC", values).fetchall()
            return [_chat(row) for row in rows]

    def chat(self, chat_id: int) -> Chat | None:
        """A chat, or None if it has been deleted."""
        with self._errors("read"):
            row = self._db.execute(
                "SELECT id, title, system, sampling, head_id, changed_s FROM chats WHERE id = ?", (chat_id,)
            ).fetchone()
            return None if row is None else _chat(row)

    def new_chat(self, title: str, system: str, sampling: dict[str, Any]) -> Chat:
        """Makes a chat without messages."""
        with self._writing():
            chat_id = self._insert(
                "INSERT INTO chats (title, system, sampling, changed_s) VALUES (?, ?, ?, ?)",
                (title, system, json.dumps(sampling), self._clock()),
            )
        return Chat(chat_id, title, system, sampling, None, self._clock())

    def rename_chat(self, chat_id: int, title: str) -> None:
        """Gives a chat another name."""
        with self._writing():
            self._db.execute("UPDATE chats SET title = ? WHERE id = ?", (title, chat_id))

    def set_parameters(self, chat_id: int, system: str, sampling: dict[str, Any]) -> None:
        """Keeps a chat's system prompt and sampling parameters."""
        with self._writing():
            self._db.execute(
                "UPDATE chats SET system = ?, sampling = ? WHERE id = ?", (system, json.dumps(sampling), chat_id)
            )

    def delete_chat(self, chat_id: int) -> None:
        """Deletes a chat with all its messages."""
        with self._writing():
            self._db.execute("DELETE FROM chats WHERE id = ?", (chat_id,))

    # --- Messages ----------------------------------------------------------------------------------------------------

    def messages(self, chat_id: int) -> list[ChatMessage]:
        """The path that is shown, first message first."""
        with self._errors("read"):
            rows = self._db.execute(
                """
                WITH RECURSIVE path(id, depth) AS (
                    SELECT head_id, 0 FROM chats WHERE id = ?
                    UNION ALL
                    SELECT parent_id, depth + 1 FROM messages JOIN path USING (id)
                )
                SELECT id, chat_id, parent_id, role, content, state, note FROM messages JOIN path USING (id)
                ORDER BY depth DESC
                """,
                (chat_id,),
            ).fetchall()
        return [ChatMessage(*row) for row in rows]

    def add_message(
        self, chat_id: int, parent_id: int | None, role: Role, content: str, state: State = "done"
    ) -> ChatMessage:
        """Adds a message below another one (None: as the first) and shows the path that ends with it."""
        with self._writing():
            message_id = self._insert(
                "INSERT INTO messages (chat_id, parent_id, role, content, state, note) VALUES (?, ?, ?, ?, ?, '')",
                (chat_id, parent_id, role, content, state),
            )
            self._set_head(chat_id, message_id)
        return ChatMessage(message_id, chat_id, parent_id, role, content, state, "")

    def write_message(self, message: ChatMessage) -> None:
        """Replaces the content, state and note of a message."""
        with self._writing():
            self._db.execute(
                "UPDATE messages SET content = ?, state = ?, note = ? WHERE id = ?",
                (message.content, message.state, message.note, message.id),
            )

    def variants(self, message: ChatMessage) -> list[int]:
        """Ids of all messages in the same place, this one's included, oldest first."""
        with self._errors("read"):
            rows = self._db.execute(
                "SELECT id FROM messages WHERE chat_id = ? AND parent_id IS ? ORDER BY id",
                (message.chat_id, message.parent_id),
            ).fetchall()
        return [row[0] for row in rows]

    def show_variant(self, chat_id: int, message_id: int) -> None:
        """Shows the path through a message, and below it the newest one."""
        with self._writing():
            self._set_head(chat_id, self._newest_below(chat_id, message_id))

    def delete_branch(self, message: ChatMessage, keep_below: int | None = None) -> None:
        """Deletes a message and all below it; what hangs on the message `keep_below` moves up into its place.

        If the path that is shown ended there, it then ends with the newest message that is left.
        """
        with self._writing():
            self._db.execute("UPDATE messages SET parent_id = ? WHERE parent_id = ?", (message.parent_id, keep_below))
            self._db.execute(
                """
                WITH RECURSIVE branch(id) AS (
                    VALUES (?) UNION ALL SELECT messages.id FROM messages JOIN branch ON parent_id = branch.id
                )
                DELETE FROM messages WHERE id IN branch
                """,
                (message.id,),
            )
            is_shown = self._db.execute(
                "SELECT 1 FROM chats JOIN messages ON messages.id = head_id WHERE chats.id = ?", (message.chat_id,)
            ).fetchone()
            if not is_shown:
                self._set_head(message.chat_id, self._newest_below(message.chat_id, message.parent_id))

    # --- Settings ----------------------------------------------------------------------------------------------------

    def setting(self, name: str, default: Any) -> Any:
        """What was last stored under a name, or the default."""
        with self._errors("read"):
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            return default if row is None else json.loads(row[0])

    def set_setting(self, name: str, value: Any) -> None:
        """Keeps a value that JSON can hold."""
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    # --- Below -------------------------------------------------------------------------------------------------------

    def _make_schema(self) -> None:
        with self._writing():  # two programs may start at once: the second one finds the first one's tables
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise VkllmError(
                f"{self.path}: these chats were written by a newer vkllm; install that one, or set VKLLM_DATA to "
                "another folder"
            )

    def _insert(self, statement: str, values: tuple[Any, ...]) -> int:
        row_id = self._db.execute(statement, values).lastrowid
        assert row_id is not None
        return row_id

    def _newest_below(self, chat_id: int, message_id: int | None) -> int | None:
        """The end of the newest path from a message (None: from the start of the chat) downwards."""
        query = "SELECT max(id) FROM messages WHERE chat_id = ? AND parent_id IS ?"
        while (below := self._db.execute(query, (chat_id, message_id)).fetchone()[0]) is not None:
            message_id = below
        return message_id

    def _set_head(self, chat_id: int, message_id: int | None) -> None:
        self._db.execute(
            "UPDATE chats SET head_id = ?, changed_s = ? WHERE id = ?", (message_id, self._clock(), chat_id)
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all of it is on disk afterwards, or nothing."""
        with self._errors("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            is_locked = "locked" in str(error)
            advice = "end the other program that writes it" if is_locked else "make the file sound and writable"
            raise VkllmError(
                f"{self.path}: the chats cannot be {done} ({error}); {advice}, or set VKLLM_DATA to another folder"
            ) from error


def _chat(row: tuple[Any, ...]) -> Chat:
    chat_id, title, system, sampling, head_id, changed_s = row
    return Chat(chat_id, title, system, json.loads(sampling), head_id, changed_s)
