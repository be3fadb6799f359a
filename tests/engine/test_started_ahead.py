"""A process that is started before anyone knows what it is to load."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import is_running

from vkllm.engine.events import Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.process import child
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, Request

FAKE = "fake_engine:FakeEngine"
SPEC: Any = None
ROOT = Path(__file__).parents[2]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[child.Started]:
    monkeypatch.setattr(child, "ENGINE", FAKE)
    child.start_ahead()
    (started,) = child._ahead
    yield started
    child._end_ahead()


def test_the_first_engine_takes_over_what_was_started_ahead_and_the_next_one_does_not(ahead: child.Started) -> None:
    config = EngineConfig(Path("tiny.gguf"), {}, SPEC, 64)
    with EngineProcess(config, factory=FAKE) as first, EngineProcess(config, factory=FAKE) as second:
        assert first.pid == ahead.process.pid != second.pid
        event = first.submit(Request(1, (100, 11), SamplingParams(max_tokens=1), frozenset())).get(timeout=120)
        assert isinstance(event, Token) and event.token_id == 11
        assert list(first.ready.load_s) == ["process", "device"]
    assert ahead.process.poll() == 0


def test_engines_of_another_kind_leave_it_alone(ahead: child.Started) -> None:
    started = child.started("no_such_module:Engine")
    assert started.process.pid != ahead.process.pid and child._ahead == [ahead]
    started.connection.close()
    started.process.communicate(timeout=120)


def test_one_that_has_died_is_replaced(ahead: child.Started) -> None:
    ahead.process.kill()
    ahead.process.wait()
    config = EngineConfig(Path("tiny.gguf"), {}, SPEC, 64)
    with EngineProcess(config, factory=FAKE) as engine:
        assert engine.pid != ahead.process.pid and engine.ready.device_name == "fake device"


def output_of(script: str) -> str:
    """What a script prints in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_one_that_nobody_takes_over_ends_with_the_process_that_started_it() -> None:
    script = "from vkllm.engine.process import child; child.start_ahead(); print(child._ahead[0].process.pid)"
    pid = int(output_of(script))
    assert not is_running(pid)


def test_the_command_starts_one_for_what_loads_a_model() -> None:
    script = (
        "import sys, vkllm.__main__, vkllm.faces.cli.app as app; from vkllm.engine.process import child\n"
        "started = []; child.start_ahead = lambda: started.append(1); app.main = lambda: print(len(started))\n"
        "for line in ('run missing', 'run --help', 'list', 'run --server x Hi', 'run --server=x Hi', 'run x Hi'):\n"
        "    sys.argv[1:] = line.split(); vkllm.__main__.main()"
    )
    assert output_of(script).split() == ["1", "1", "1", "1", "1", "2"]
