"""Commands that load a model: they offer to fetch what is not here, look its name up once and read its header once."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hub_server import HubServer
from terminal import FAKE, Command, terminal
from tiny_hub import ENTRY, REPO, Answers, at_a_terminal, serve_tiny  # noqa: F401  (the last two are fixtures)

from vkllm import LLM, store
from vkllm.engine.process.handle import EngineProcess
from vkllm.errors import ModelNotFound
from vkllm.faces.cli import app as cli
from vkllm.faces.cli import models
from vkllm.formats.gguf import ModelFile


def test_a_model_that_is_not_here_is_fetched_on_yes(person: Answers) -> None:
    questions = person("")
    models.ensure_here("tiny")
    assert questions == ["tiny (146 KiB) is not on this machine. Fetch it? [Y/n] "]
    assert store.local_model("tiny") is not None
    models.ensure_here("tiny")
    assert len(questions) == 1


def test_without_a_yes_or_a_terminal_the_error_says_the_command(
    person: Answers, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    person("n")
    with pytest.raises(ModelNotFound, match=r"tiny is not on this machine; `vkllm pull tiny` fetches it \(146 KiB\)"):
        models.ensure_here("tiny")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(ModelNotFound, match=r"`vkllm pull hf\.co/a/b` fetches it"):
        models.ensure_here("hf.co/a/b")
    assert hub.lines() == []


@pytest.mark.parametrize(
    "arguments", [["chat"], ["bench"], ["bench", "smollm2"], ["tune"], ["perplexity", "-f", __file__]]
)
def test_every_command_asks_before_it_fetches(hub: HubServer, tmp_path: Path, arguments: list[str]) -> None:
    command = Command(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path / "c"))
    name = f"hf.co/{REPO}"
    done = command.run([*FAKE, *arguments, "-m", name], text="Hi" if arguments == ["chat"] else None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vkllm: error: {name} is not on this machine; `vkllm pull {name}` fetches it.\n"
    assert hub.lines() == []


def test_run_offers_in_a_terminal_and_answers_after_it(hub: HubServer, tmp_path: Path) -> None:
    command = Command(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path / "c"))
    name = f"hf.co/{REPO}"
    done = command.run([*FAKE, "run", name, "Hi"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vkllm: error: {name} is not on this machine; `vkllm pull {name}` fetches it.\n"
    with terminal(command, [*FAKE, "run", name, "Hi"]) as screen:
        screen.expect(r"Fetch it\? \[Y/n\] ")
        screen.type("y\n")
        screen.expect("user\nHi\n")
        screen.expect_exit()
        assert screen.exit_code == 0
    assert command.leftovers() == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["run", "tiny", "Hi"], "user\nHi\n"),
        (["run", "tiny"], ">>> "),
        (["chat", "tiny", "--plain"], ">>> "),
        (["bench", "tiny", "-p", "4", "-n", "0", "-r", "1"], "pp4"),
    ],
)
def test_a_command_looks_a_name_up_once_reads_a_header_once_and_marks_the_model_as_used(
    person: Answers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    answer: str,
) -> None:
    store.pull("tiny")
    assert store.installed()[0].last_used_s is None
    looked_up: list[str] = []
    read: list[str] = []
    opened: list[LLM] = []
    headers: list[Path] = []
    source_of, make, open_file = store.source_of, LLM.__init__, ModelFile.open
    monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: read.append("catalogue") or [ENTRY])
    monkeypatch.setattr("vkllm.store.models.source_of", lambda name: looked_up.append(name) or source_of(name))
    monkeypatch.setattr(ModelFile, "open", lambda path: headers.append(path) or open_file(path))
    monkeypatch.setattr(LLM, "__init__", lambda self, *model, **more: opened.append(self) or make(self, *model, **more))
    monkeypatch.setattr("vkllm.api.loading.EngineProcess", partial(EngineProcess, factory="fake_engine:FakeEngine"))
    questions = person("/bye")
    cli.app(arguments, prog_name="vkllm", standalone_mode=False)
    assert (looked_up, read) == (["tiny"], ["catalogue"])
    assert len(headers) == 1 and [llm.name for llm in opened] == ["tiny"]
    assert answer in capsys.readouterr().out + "".join(questions)
    assert time.time() - (store.installed()[0].last_used_s or 0) < 60
