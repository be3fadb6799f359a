"""Whatever is started in a folder with a downloaded model runs none of the files that lie beside it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vkllm
from vkllm.resources import child_environment, child_python

ROOT = Path(vkllm.__file__).parent.parent
CONSOLE_SCRIPT = Path(sys.executable).with_name("vkllm")
NAMES = (
    *("json", "typing", "random", "re", "dataclasses", "subprocess", "threading", "platform", "string", "base64"),
    *("numpy", "gguf", "kp", "vulkan", "huggingface_hub", "tokenizers", "jinja2", "llguidance", "typer", "rich", "pip"),
)


@pytest.fixture
def folder(tmp_path: Path, tiny_gguf: Path) -> Path:
    """A folder with a model, full of files that take the place of modules and leave a mark."""
    found = tmp_path / "downloads"
    found.mkdir()
    shutil.copy(tiny_gguf, found / "tiny.gguf")
    mark = f"open({str(tmp_path / 'marks')!r}, 'a').write(__name__ + ' ')\nraise ImportError('the wrong module')\n"
    for name in NAMES:
        (found / f"{name}.py").write_text(mark)
    return found


def marks(folder: Path) -> str:
    path = folder.parent / "marks"
    return path.read_text() if path.exists() else ""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    cache = {"VKLLM_CACHE": str(folder.parent / "cache"), "HF_HUB_CACHE": str(folder.parent / "hub")}
    return os.environ | {"PYTHONPATH": str(ROOT)} | cache | variables


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder, **variables)
    return subprocess.run(
        command, cwd=folder, env=env, text=True, capture_output=True, timeout=200, stdin=subprocess.DEVNULL
    )


COMMANDS = [
    ("--version",),
    ("list", "--all"),
    ("show", "tiny.gguf"),
    ("rm", "-y", "hf.co/nobody/nothing"),
    ("pull", "hf:/"),
    ("chat", "--plain", "missing.gguf"),
]
ON_A_DEVICE = [
    ("devices",),
    ("plan", "tiny.gguf", "-c", "64"),  # measures the device's speeds in a child
    ("run", "tiny.gguf", "hi", "-n", "2", "-c", "64"),  # the engine
    ("bench", "-m", "tiny.gguf", "-p", "8", "-n", "2", "-r", "1"),
    ("perplexity", "tiny.gguf", "-f", "text", "-c", "64"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_runs_what_lies_beside_a_model(folder: Path, arguments: tuple[str, ...]) -> None:
    done = run(folder, str(CONSOLE_SCRIPT), *arguments)
    assert "Traceback" not in done.stderr and marks(folder) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", ON_A_DEVICE, ids=" ".join)
def test_no_command_on_a_device_runs_what_lies_beside_a_model(folder: Path, arguments: tuple[str, ...]) -> None:
    (folder / "text").write_text("Some text, which is long enough to be measured. " * 20)
    done = run(folder, str(CONSOLE_SCRIPT), *arguments)
    assert (done.returncode, marks(folder)) == (0, ""), done.stderr


def test_with_python_m_too_whose_own_rule_is_to_look_there_first(folder: Path) -> None:
    done = run(folder, sys.executable, "-m", "vkllm", "show", "tiny.gguf", "--json")
    assert (done.returncode, marks(folder)) == (0, ""), done.stderr


STARTS = {
    "engine": """
from vkllm.engine.process.child import spawn
from multiprocessing import Pipe
ours, theirs = Pipe()
process = spawn("vkllm.engine.engine:Engine", theirs)
theirs.close()
ours.close()  # with nothing to read, it ends
print(process.communicate(timeout=120)[0])
""",
    "fit worker": """
import time
from vkllm.faces.tui.fit import ModelToFit
from vkllm.faces.tui.fits import Fits
found = Fits({})
found.look([ModelToFit("x", None, 1, 1)], None, {})
while found.is_looking:
    time.sleep(0.05)
""",
    "speeds": """
from vkllm.gpu.measure.speeds import _measure_in_child
_measure_in_child("99")  # no such device: it imports all and ends
""",
    "pip": """
from pathlib import Path
from vkllm.store.catalog import CatalogEntry, WheelSource
from vkllm.store.downloads.wheel import _download_wheel
source = WheelSource("no-such-package==1", "x")
(Path.cwd().parent / "pip").mkdir()
try:
    _download_wheel(CatalogEntry("x", "", "", 1, 1, 1, "", source), source, Path.cwd().parent / "pip", lambda *_: None)
except Exception as error:
    assert "No matching distribution" in str(error), error
""",
}


@pytest.mark.parametrize("start", STARTS)
def test_no_child_runs_what_lies_beside_a_model(folder: Path, start: str) -> None:
    """From a Python that has the current folder first in its path, as an interactive one has."""
    script = folder.parent / "script.py"
    preloaded = ", ".join(name for name in NAMES if name not in ("kp", "pip"))
    head = f"import sys, {preloaded}, vkllm.api.llm, vkllm.faces.tui.fits\nsys.path.insert(0, '')\n"
    script.write_text(head + STARTS[start])
    done = run(folder, sys.executable, "-P", str(script), PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert (done.returncode, marks(folder)) == (0, ""), done.stderr


def test_the_files_would_run_without_this(folder: Path) -> None:
    done = run(folder, sys.executable, "-c", "import json")
    assert done.returncode != 0 and marks(folder) == "json "


def test_the_current_folder_is_in_no_childs_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/some/lib", "relative", str(ROOT)])
    environment = child_environment(EXTRA="1")
    assert environment["PYTHONPATH"].split(os.pathsep) == ["/some/lib", str(tmp_path / "relative"), str(ROOT)]
    assert environment["PYTHONSAFEPATH"] == "1" and environment["EXTRA"] == "1"
    assert child_python("m", "a") == [sys.executable, "-P", "-m", "m", "a"]
    monkeypatch.chdir(ROOT)
    assert str(ROOT) in child_environment()["PYTHONPATH"].split(os.pathsep), "a checkout keeps its own modules"


def test_every_child_is_started_so() -> None:
    for path in (ROOT / "vkllm").rglob("*.py"):
        names = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert "sys.executable" not in names or path.name == "resources.py", path
