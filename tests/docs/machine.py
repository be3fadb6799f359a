"""A machine as the pages take it: models, files, a git repository, a hub, and the command `vkllm` on the path.

There are two commands of that name: the real one, and one whose engine is tests/fake_engine.py and whose models are
tiny, for commands where it does not matter what is answered.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_gguf import write_tiny_gguf

from vkllm.resources import cache_dir
from vkllm.store.catalog import HubSource, WheelSource, catalog
from vkllm.store.downloads.checks import mark_checked
from vkllm.store.downloads.wheel import wheel_model_path

ROOT = Path(__file__).parents[2]
FAKE = (
    "import functools, vkllm.api.llm, vkllm.engine.process.handle as process\n"
    "vkllm.api.loading.EngineProcess = functools.partial(process.EngineProcess, factory='fake_engine:FakeEngine')\n"
    "from vkllm.faces.cli.app import main; main()"
)
REAL = "from vkllm.faces.cli.app import main; main()"
TIME_LIMIT_S = 120.0
LOOK_S = 2.0
"""How long a chat on the whole screen is looked at before it is left."""
FULL_SCREEN = "\x1b[?1049h"
CTRL_D, CTRL_Q = "\x04", "\x11"
NOTES = "The sky is blue because air scatters blue light more than red. " * 12


class Machine:
    """folder: where all of it lies. hub: serves tiny models under the names of the catalogue."""

    def __init__(self, folder: Path, hub: HubServer, default_model: Path) -> None:
        self.folder = folder
        self.work = folder / "home" / "work"  # where commands run
        self.work.mkdir(parents=True)
        tiny = write_tiny_gguf(folder / "tiny.gguf", n_ctx=16384)
        self._serve(hub, tiny.read_bytes())
        self._fill_work_folder(tiny)
        self._make_cache(folder / "real", default_model)
        self._make_cache(folder / "fake", tiny)
        for kind, code in (("real", REAL), ("fake", FAKE)):
            script = folder / kind / "bin" / "vkllm"
            script.parent.mkdir()
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
            script.chmod(0o755)
        self._variables = {
            "HOME": str(folder / "home"),
            "HF_HOME": str(folder / "hub"),
            "HF_ENDPOINT": hub.url,
            "VKLLM_DATA": str(folder / "data"),
            "VKLLM_TUNING": "off",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "TERM": "xterm-256color",
            "SHELL": "/bin/bash",
        }

    def environment(self, kind: str) -> dict[str, str]:
        """Variables of a process. kind: "real" or "fake"."""
        path = os.pathsep.join([str(self.folder / kind / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        return os.environ | self._variables | {"PATH": path, "VKLLM_CACHE": str(self.folder / kind)}

    def output_of(self, command: str) -> tuple[int, str]:
        """Runs a real command in a pipe: its exit code and standard output."""
        done = subprocess.run(
            ["bash", "-c", command],
            env=self.environment("real"),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIME_LIMIT_S,
        )
        return done.returncode, done.stdout

    def in_terminal(self, command: str, lines: list[str] | None = None) -> tuple[int, str]:
        """Runs a command with the fake engine in a terminal: its exit code and all that was to be seen.

        What asks gets an answer: a question Y, a chat line by line the lines and then Ctrl-D, one on the screen Ctrl+Q.
        """
        pid, handle = pty.fork()
        if pid == 0:
            os.chdir(self.work)
            # `exit` keeps bash from becoming the command itself: in a terminal, a shell is the parent of what it runs.
            os.execvpe("bash", ["bash", "-c", f"{command}\nexit $?"], self.environment("fake"))
        fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        try:
            text = _watched(handle, list(lines or []))
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            os.close(handle)

    def _serve(self, hub: HubServer, model: bytes) -> None:
        for entry in catalog():
            if isinstance(entry.source, HubSource):
                hub.hub.setdefault(entry.source.repo, {})[entry.source.file] = model

    def _fill_work_folder(self, tiny: Path) -> None:
        for name in ("a.gguf", "b.gguf", "model.gguf"):
            (self.work / name).symlink_to(tiny)
        models = self.work.parent / "models"
        models.mkdir()
        for name in ("some.gguf", "large.gguf"):
            (models / name).symlink_to(tiny)
        for name in ("notes.txt", "text.txt"):
            (self.work / name).write_text(NOTES)
        (self.work / ".venv").symlink_to(ROOT / ".venv")
        commit = "git -c user.name=me -c user.email=me@example.org commit -q"
        subprocess.run(
            f"git init -q && git add notes.txt && {commit} -m 'Notes on the sky' && echo more >> notes.txt",
            shell=True,
            check=True,
            cwd=self.work,
        )

    def _make_cache(self, folder: Path, default_model: Path) -> None:
        """A cache with this file as the default model, and with the pipelines that are compiled already."""
        folder.mkdir()
        if (pipelines := cache_dir() / "pipelines").is_dir():
            (folder / "pipelines").symlink_to(pipelines)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VKLLM_CACHE", str(folder))
            for entry in catalog():
                if isinstance(entry.source, WheelSource):
                    path = wheel_model_path(entry.source)
                    path.parent.mkdir(exist_ok=True)
                    path.symlink_to(default_model)
                    mark_checked(entry, path)


def _watched(handle: int, lines: list[str]) -> str:
    """Reads what a terminal shows until its command ends, and answers what asks."""
    text = ""
    n_answered = 0
    start = time.monotonic()
    next_key_s = start + LOOK_S
    while time.monotonic() < start + TIME_LIMIT_S:
        if select.select([handle], [], [], 0.1)[0]:
            try:
                chunk = os.read(handle, 65536)
            except OSError:  # how Linux says that the other side is closed
                return text
            text += chunk.decode(errors="replace").replace("\r\n", "\n")
        if FULL_SCREEN in text:
            if time.monotonic() > next_key_s:  # early keys may be lost
                os.write(handle, CTRL_Q.encode())
                next_key_s = time.monotonic() + LOOK_S
        elif re.search(r"\[[yY]/[nN]\] $", text[n_answered:]):
            os.write(handle, b"y\n")
            n_answered = len(text)
        elif re.search(r"(>>>|\.\.\.) $", text[n_answered:]):
            os.write(handle, (lines.pop(0) + "\n" if lines else CTRL_D).encode())
            n_answered = len(text)
    raise AssertionError(f"it did not end within {TIME_LIMIT_S:g} s: {text[-2000:]!r}")
