"""`vkllm chat --plain --server`, and `vkllm run --server` without a prompt: the plain chat with a server's model."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Served, serving, single

from vkllm.faces.cli.app import main

Typed = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Somebody who types lines into a chat at a terminal and leaves; what was shown, and the errors."""

    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    def type_lines(command: list[str], *lines: str | Callable[[], str]) -> tuple[list[str], list[str]]:
        left = iter([*lines, "/bye"])

        def next_line(prompt: str) -> str:
            line = next(left)
            return line if isinstance(line, str) else line()

        monkeypatch.setenv("VKLLM_DATA", str(tmp_path / "data"))
        monkeypatch.setattr("builtins.input", next_line)
        monkeypatch.setattr(sys, "stdin", Keyboard())
        monkeypatch.setattr(sys, "argv", ["vkllm", *command])
        with contextlib.suppress(SystemExit):
            main()
        shown = capsys.readouterr()
        return shown.out.splitlines(), shown.err.splitlines()

    return type_lines


def test_a_conversation_is_answered_kept_and_loaded_again(served: Served, typed: Typed) -> None:
    chat = ["chat", "--plain", "--server", served.url, "--temp", "0.5"]
    said, errors = typed(chat, "Hi", "/set verbose", "/set parameter num_predict 3", "Yes", "/save talk")
    assert errors[1:] and errors[0].split() == ["server", served.url], errors
    assert said[0] == f"tiny on {served.host}:{served.port}. /help lists the commands."
    assert said[1:3] == ["user", "Hi"] and said[-2] == "use" and "kept as talk" in said[-1]
    again = ["/load talk", "/set verbose", "/set parameter num_predict -1", "More", "/show parameters"]
    said, errors = typed(["run", "--server", served.url], *again)
    assert said[1:3] == ["talk: 4 messages, the last one:", "use"]
    texts = ["Hi", "user\nHi", "Yes", "use", "More"]
    told = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    n_prompt = served.request("POST", "/v1/chat/completions/input_tokens", {"messages": told})[2]["input_tokens"]
    assert f"prompt  {n_prompt} tokens" in errors[2], "the whole conversation"
    shown = dict(line.split(maxsplit=1) for line in said if line.split()[:1] and line[0] in "tmn")
    assert shown["temperature"] == "0.5" and shown["max_tokens"].startswith("as many") and shown["num_ctx"] == "256"


def test_what_a_server_tells_is_shown_and_what_it_decides_is_refused(served: Served, typed: Typed) -> None:
    commands = ["/show info", "/show template", "/show license", "/set parameter num_ctx 100", "/load other"]
    said, errors = typed(["chat", "any", "--plain", "--server", served.url], *commands)
    assert "model         tiny" in said and f"server        {served.url}" in said and "context       256 tokens" in said
    assert any("<|im_start|>" in line for line in said)
    assert len(errors) == 2 and "does not tell this" in errors[0]
    assert "num_ctx is set where the model is loaded" in errors[1]
    assert said[-1] == f"tiny on {served.host}:{served.port}, context of 256 tokens."  # it has one, whatever the name


def test_errors_leave_the_conversation_as_it_was(tiny_gguf: Path, fake_engines: None, typed: Typed) -> None:
    with serving(single(tiny_gguf)) as server:

        def stop() -> str:
            server.stop()
            while True:
                try:
                    server.request("GET", "/health")
                except OSError:
                    return "Are you there?"

        said, errors = typed(["chat", "--plain", "--server", server.url], "x" * 400, "Hi", stop)
        assert said[-2:] == ["user", "Hi"], "nothing of the message that failed"
        assert len(errors) == 2 and "the prompt has" in errors[0] and "does not answer" in errors[1]
        _, errors = typed(["chat", "--plain", "--server", server.url])
        assert len(errors) == 1 and "does not answer" in errors[0]
