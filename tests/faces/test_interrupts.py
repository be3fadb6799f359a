"""Ctrl-C at any time, imports included, ends the command with 130 and without a word."""

from __future__ import annotations

import signal
import time
import tomllib
from pathlib import Path

import pytest
from terminal import REAL, ROOT, Command

# Sends Ctrl-C to itself when a module is first imported, as a hand might at that moment.
AT_IMPORT = """
import os, signal, sys, vkllm.__main__
def hook(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
sys.argv = ["vkllm", "run", "no-such-model", "Hi"]
vkllm.__main__.main()
"""


@pytest.mark.parametrize(
    "module", ["vkllm.faces.cli.app", "typer", "vkllm.faces.terminal", "vkllm.faces.cli.run", "numpy", "vkllm.store"]
)
def test_ctrl_c_during_an_import_is_130(tmp_path: Path, module: str) -> None:
    done = Command(tmp_path).run([REAL[0], "-c", AT_IMPORT.format(module=module)])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("after_s", [0.06, 0.1, 0.15, 0.25, 0.4])
def test_ctrl_c_in_the_first_moments_finds_vkllm_ready(tmp_path: Path, after_s: float) -> None:
    process = Command(tmp_path).start([*REAL, "bench", "no-such-model"])
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    # Python's own start, before the first line of vkllm, has a traceback of its own, without files of vkllm.
    assert stdout == "" and "vkllm/" not in stderr.replace("vkllm --", "")
    if "Traceback" not in stderr:
        assert process.returncode in (130, -signal.SIGINT, 2)  # 2: the command was quicker


def test_a_shell_that_ignores_ctrl_c_for_it_is_obeyed(tmp_path: Path) -> None:
    done = Command(tmp_path).run(
        ["/bin/sh", "-c", f'trap "" INT; exec {REAL[0]} -c "$0"', AT_IMPORT.format(module="typer")]
    )
    assert done.returncode == 2 and "no-such-model" in done.stderr


def test_the_installed_command_begins_where_ctrl_c_is_seen_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vkllm": "vkllm.__main__:main"}
