"""`import vkllm`: its names, what it costs and what it leaves alone."""

from __future__ import annotations

import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vkllm
from vkllm import errors

ROOT = Path(__file__).parent.parent


def test_all_is_sorted_and_every_name_can_be_imported() -> None:
    # Constants, classes, then the rest: as ruff sorts.
    assert [name for name in vkllm.__all__ if not name.startswith("_")] == sorted(
        (name for name in vkllm.__all__ if not name.startswith("_")), key=lambda name: (not name.isupper(), name)
    )
    for name in vkllm.__all__:
        assert getattr(vkllm, name) is not None
    assert set(dir(vkllm)) == set(vkllm.__all__)


def test_every_error_is_public() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names <= set(vkllm.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        vkllm.no_such_name  # noqa: B018


def test_the_version_is_the_projects() -> None:
    assert vkllm.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_import_is_quick_and_touches_no_device() -> None:
    script = "import sys, vkllm; print([m for m in ('kp', 'vulkan', 'numpy', 'tokenizers') if m in sys.modules])"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    run = [sys.executable, "-c", script]
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.stdout.strip() == "[]"
    assert min(times) < 0.3, "seconds of the processor's, however busy it is"
