"""`vkllm chat --server`: the chat on the whole terminal, its answers from a server whose engine echoes."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving, single
from textual.pilot import Pilot
from textual.widgets import Input, OptionList
from tiny_gguf import write_tiny_gguf

from vkllm import ContextOverflow, InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.chat.store import ChatStore
from vkllm.faces.cli.app import main
from vkllm.faces.remote import RemoteAnswer, Server
from vkllm.faces.remote_model import open_remote
from vkllm.faces.server.models import Models
from vkllm.faces.server.names import KnownModels
from vkllm.faces.server.settings import ServerSettings
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.chat_screen import ChatScreen

ECHO = "{# <think></think> #}{{ '<|im_start|>' + messages[-1].content + '<|im_end|>' }}"
KEY = "a-key"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    for name in ("echo", "other"):
        write_tiny_gguf(made / f"{name}.gguf", template=ECHO, n_ctx=2048)
    return made


@pytest.fixture(scope="module")
def echo(folder: Path, fake_engines: None) -> Iterator[Served]:
    """A server of a model that answers what the last message says."""
    with serving(single(folder / "echo.gguf"), ServerSettings(port=0, api_keys=(KEY,)), waits=False) as server:
        yield server


@pytest.fixture(scope="module")
def endless(folder: Path, fake_engines: None) -> Iterator[Served]:
    """A server of two models whose answers do not end by themselves."""
    with serving(Models(KnownModels(folder), options={"device": "no end"})) as server:
        yield server


def listens(server: Served) -> bool:
    try:
        socket.create_connection((server.host, server.port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Chat:
    """A running chat: keys go in, text comes out."""

    def __init__(self, app: ChatApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def screen(self) -> ChatScreen:
        return next(screen for screen in self.app.screen_stack if isinstance(screen, ChatScreen))

    @property
    def shown(self) -> str:
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    @property
    def words(self) -> str:
        return " ".join(self.shown.split())

    @property
    def said(self) -> str:
        """The answer that is being written, as far as it is shown."""
        return self.screen.conversation.views[-1].text if self.screen.is_answering else ""

    @property
    def n_listed(self) -> int:
        """Models in the list, if that is shown."""
        return sum(each.option_count for each in self.app.screen.query(OptionList))

    async def until(self, holds: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline, self.shown
            await self.pilot.pause(0.01)

    async def ask(self, text: str, *, waits: bool = True) -> None:
        self.screen.prompt.set_text(text)
        self.screen.prompt.focus()
        n_messages = len(self.screen.messages)
        await self.pilot.press("enter")
        await self.until(lambda: len(self.screen.messages) > n_messages)
        await self.until(lambda: not waits or not (self.screen.is_answering or len(self.screen.messages) % 2))


@asynccontextmanager
async def chat_on(server: Served, path: Path, key: str | None = None, **options: Any) -> AsyncIterator[Chat]:
    store = ChatStore(path / "chats.db")
    app = ChatApp(ChatOptions(server=Server(server.url, key), **options), store)
    app.animation_level = "none"
    try:
        async with app.run_test(size=(100, 30)) as pilot:
            yield Chat(app, pilot)
    finally:
        app.session.close()
        store.close()


@pytest.mark.asyncio
async def test_a_chat_uses_the_servers_model_and_is_kept(echo: Served, tmp_path: Path) -> None:
    async with chat_on(echo, tmp_path, KEY, sampling={"max_tokens": 9}) as chat:
        await chat.until(lambda: chat.screen.session.llm is not None)
        await chat.ask("<think>Hm</think>Four and no more")
        assert chat.screen.messages[-1].content == "<think>\nHm"  # nine tokens of it
        assert chat.screen.messages[-1].state == "cut"
        chat.screen.parameters.sampling.clear()
        await chat.ask("<think>Hm</think>Four")
        answer = chat.screen.messages[-1]
        assert answer.content == "<think>\nHm\n</think>\n\nFour" and answer.state == "done"
        assert answer.note.startswith("echo · ")
        name = f"127.0.0.1:{echo.port}"
        await chat.until(lambda: "Thoughts (1 word)" in chat.shown)
        assert f"{len('<think>Hm</think>Four') * 2 + 3}/2048" in chat.shown and name in chat.shown
        await chat.pilot.press("f4")
        assert chat.app.screen.query_one("#n_ctx", Input).disabled
        await chat.pilot.press("escape", "f3")
        await chat.until(lambda: chat.n_listed == 1)
        assert "loaded" in chat.shown and f"on {name}" in chat.shown
        assert chat.app.session.fits is None and "● echo" in chat.shown
    store = ChatStore(tmp_path / "chats.db")
    assert [message.role for message in store.messages(store.chats()[0].id)] == ["user", "assistant"] * 2
    assert store.setting("recent_models", []) == []  # the models of this machine
    store.close()


@pytest.mark.asyncio
async def test_stopping_an_answer_stops_its_sequence(endless: Served, tmp_path: Path) -> None:
    async with chat_on(endless, tmp_path) as chat:
        await chat.until(lambda: chat.n_listed >= 2)
        await chat.pilot.press("escape")
        await chat.until(lambda: "has several models; choose one; there are echo, other" in chat.words)
    async with chat_on(endless, tmp_path, model="echo") as chat:
        await chat.until(lambda: chat.screen.session.llm is not None)  # the server has loaded it
        model = next(each for each in endless.models.served if each.name == "echo")
        for key in ("escape", "ctrl+c"):
            await chat.ask("word", waits=False)
            await chat.until(lambda: "word" in chat.said)
            assert model.n_users == 1
            await chat.pilot.press(key)
            await chat.until(lambda: not chat.screen.is_answering)
            await chat.until(lambda: model.n_users == 0)
            assert chat.screen.messages[-1].state == "stopped"


@pytest.mark.asyncio
async def test_a_server_that_goes_away_is_told(folder: Path, fake_engines: None, tmp_path: Path) -> None:
    with serving(single(folder / "echo.gguf", options={"device": "no end"})) as server:
        async with chat_on(server, tmp_path) as chat:
            await chat.until(lambda: chat.screen.session.llm is not None)
            await chat.ask("word", waits=False)
            await chat.until(lambda: "word" in chat.said)
            server.stop()
            await chat.until(lambda: "the server was told to end" in chat.words)
            assert chat.screen.messages[-1].state == "failed"
            await chat.until(lambda: not listens(server))
            await chat.ask("again", waits=False)
            await chat.until(lambda: "does not answer (Connection refused)" in chat.words)
            await chat.pilot.press("f3")
            await chat.until(
                lambda: any("does not answer" in str(each.render()) for each in chat.app.screen.query("#about"))
            )


def test_parameters_are_written_as_other_servers_read_them(echo: Served) -> None:
    asked = {"messages": [], "repetition_penalty": 3, "json_schema": '{"type": "null"}'}
    sent = RemoteAnswer(Server(echo.url, KEY), asked)._body
    assert sent["repeat_penalty"] == 3 and sent["json_schema"] == {"type": "null"} and "repetition_penalty" not in sent
    model = open_remote(Server(echo.url, KEY), "", lambda *_: None)
    with pytest.raises(InvalidParameter, match="repetition_penalty must be"):
        model.chat(HI, repetition_penalty=-1).begin()


def test_errors_have_their_types(echo: Served) -> None:
    server = Server(echo.url, KEY)
    model = open_remote(server, "any name", lambda *_: None)
    assert (model.name, model.n_ctx, model.default_params.top_k) == ("echo", 2048, 40)
    messages = [{"role": "user", "content": "x" * 3000}]
    assert model.count_tokens(messages) == 3002
    with pytest.raises(ContextOverflow, match=r"127.0.0.1:\d+: .*3002"):
        next(model.chat(messages))
    with pytest.raises(InvalidParameter, match="top_p must be"):
        next(model.chat([], top_p=2))
    with pytest.raises(VkllmError, match="wants another API key; give it with --api-key"):
        open_remote(Server(echo.url, "wrong"), "", lambda *_: None)
    with pytest.raises(ModelNotFound, match="no GET /nothing"):
        server.ask("/nothing")
    for address in ("ftp://x", "http://", "http://x:y", "http://a@x", "http://x/?q", ""):
        with pytest.raises(InvalidParameter, match="--server takes an address"):
            Server(address)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"", "does not answer"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"delta": {"content": "Hi"}}]}\n\n', "connection was closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:", "the answer broke off"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [1]\n\n", "is no part of an answer"),
        (b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\n\r\n", "307 Elsewhere"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", "502 Bad Gateway"),
    ],
)
def test_answers_that_break_off_or_are_none(sent: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # closed with something unread, it would be reset
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(VkllmError, match=problem):
            list(RemoteAnswer(Server(f"127.0.0.1:{listener.getsockname()[1]}"), {"messages": []}))
        thread.join()


def test_an_answer_can_be_closed_before_the_server_says_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = RemoteAnswer(Server(f"127.0.0.1:{listener.getsockname()[1]}"), {"messages": []})
        pieces: list[str] = []
        thread = threading.Thread(target=lambda: pieces.extend(answer))
        thread.start()
        connection, _ = listener.accept()
        with connection:
            assert b"/v1/chat/completions" in connection.recv(65536)
            answer.close()
            thread.join(120)
            assert not thread.is_alive() and pieces == [] and answer.result().finish_reason == "cancelled"
            connection.settimeout(120)
            assert connection.recv(10) == b""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["chat", "--server", "x:1", "-c", "64"], "leave the options of loading out"),
        (["chat", "--api-key", "a"], "--api-key is for a server"),
        (["chat", "--server", "127.0.0.1:1", "--api-key", "ä"], "characters that no header can have"),
    ],
)
def test_options_that_contradict(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vkllm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and problem in capsys.readouterr().err
