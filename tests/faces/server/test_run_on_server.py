"""`vkllm run --server`: against a server whose engine echoes."""

from __future__ import annotations

import sys

import pytest
from served import Served

from vkllm.faces.cli.app import main
from vkllm.faces.remote import Server


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["vkllm", "run", *arguments])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_prompt_is_answered_by_the_server(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run(monkeypatch, "--server", served.url, "-p", "Hi", "--stats")
    shown = capsys.readouterr()
    assert shown.out == "user\nHi\n" and "answer  8 tokens" in shown.err and "model   tiny" in shown.err
    assert not run(monkeypatch, "--server", f"{served.url}/v1/", "any", "Xab", "--raw", "-n", "3")
    assert capsys.readouterr().out == "aba\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--server", "http://127.0.0.1:1", "-p", "Hi"], "does not answer"),
        (["--server", "ftp://x", "-p", "Hi"], "--server takes an address"),
        (["--server", "URL", "-p", "x" * 400], "the prompt has 4"),
        (["--server", "URL", "-p", "Hi", "-c", "64"], "leave the options of loading out"),
        (["--server", "URL", "-p", "\x02ab", "--raw"], "the fake device was lost"),
    ],
)
def test_what_goes_wrong_is_one_line(
    served: Served,
    arguments: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *(served.url if each == "URL" else each for each in arguments)) == 2
    told = capsys.readouterr().err
    assert problem in told and told.count("vkllm: error:") == 1


def test_addresses_of_servers() -> None:
    for server in ("localhost:8080", "http://localhost:8080", "http://localhost:8080/", "http://localhost:8080/v1/"):
        assert Server(server).url == "http://localhost:8080" and Server(server).name == "localhost:8080"
