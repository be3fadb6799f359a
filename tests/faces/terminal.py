"""Runs the command line: with pipes, or in a terminal of its own where keys can be pressed."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.cli import app as cli

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120.0
"""How long a command may take: on a busy machine a real one takes half a minute to compile its shaders."""

REAL = [sys.executable, "-m", "vkllm"]
# The same command with tests/fake_engine.py in the place of the engine.
FAKE = [
    sys.executable,
    "-c",
    "import functools, vkllm.api.llm, vkllm.engine.process.handle as process\n"
    "vkllm.api.loading.EngineProcess = functools.partial(process.EngineProcess, factory='fake_engine:FakeEngine')\n"
    "from vkllm.faces.cli.app import main; main()",
]


class Command:
    """One run of the command, in an environment that marks its processes and its temporary files."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.mark = f"VKLLM_TEST_RUN={uuid.uuid4()}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        name, value = self.mark.split("=")
        self.environment = os.environ | {name: value, "TMPDIR": str(self.temporary), "COLUMNS": "100"} | variables
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

    def start(self, command: list[str], **options: object) -> subprocess.Popen[str]:
        """Starts it with pipes."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(command, env=self.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it to its end with `text` piped into it."""
        process = self.start(command, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE)
        stdout, stderr = process.communicate(text, timeout=PATIENCE_S)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def engine_pids(self) -> list[int]:
        """Its engines that run now."""
        return [pid for pid, name in self._processes().items() if "vkllm.engine.process.worker" in name]

    def leftovers(self, patience_s: float = 30) -> list[str]:
        """Processes and temporary files that are still there."""
        deadline = time.monotonic() + patience_s
        while (processes := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [*processes.values(), *map(str, self.temporary.rglob("*"))]

    def _processes(self) -> dict[int, str]:
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found


def in_this_process(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """Runs the command line with the fake engine and nothing piped into it, for what is told in one line."""
    monkeypatch.setattr("vkllm.api.loading.EngineProcess", partial(EngineProcess, factory="fake_engine:FakeEngine"))
    monkeypatch.setattr(sys, "argv", ["vkllm", *arguments])
    with open(os.devnull) as nothing, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdin", nothing)
        cli.main()
    assert isinstance(ended.value.code, int)
    stdout, stderr = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, ended.value.code, stdout, stderr)


class Terminal:
    """What a person sees and types."""

    def __init__(self, pid: int, handle: int) -> None:
        self._pid = pid
        self._handle = handle
        self._text = ""
        self.exit_code: int | None = None

    def type(self, keys: str) -> None:
        os.write(self._handle, keys.encode())

    def expect(self, pattern: str, timeout_s: float = PATIENCE_S) -> str:
        """Waits for text and returns all up to its end; fails with what there was instead."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self._text)):
            ready, _, _ = select.select([self._handle], [], [], max(0.0, deadline - time.monotonic()))
            assert ready and self._read(), f"no {pattern!r} in {self._text!r}"
        seen, self._text = self._text[: match.end()], self._text[match.end() :]
        return seen

    def expect_exit(self, timeout_s: float = PATIENCE_S) -> str:
        """Waits until the command ends, sets `exit_code` and returns the rest of what it printed."""
        deadline = time.monotonic() + timeout_s
        while select.select([self._handle], [], [], max(0.0, deadline - time.monotonic()))[0] and self._read():
            pass
        assert time.monotonic() < deadline, f"still running after {self._text!r}"
        _, status = os.waitpid(self._pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)
        return self._text

    def _read(self) -> bool:
        try:
            chunk = os.read(self._handle, 4096)
        except OSError:  # how Linux says that the other side is closed
            return False
        self._text += chunk.decode(errors="replace").replace("\r\n", "\n")
        return bool(chunk)

    def end(self) -> None:
        if self.exit_code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._handle)


@contextmanager
def terminal(command: Command, arguments: list[str], term: str = "dumb") -> Iterator[Terminal]:
    """Runs the command with a terminal for all three of its streams. term: its kind, as in $TERM."""
    pid, handle = pty.fork()
    if pid == 0:
        os.execve(arguments[0], arguments, command.environment | {"TERM": term})
    screen = Terminal(pid, handle)
    try:
        yield screen
    finally:
        screen.end()
