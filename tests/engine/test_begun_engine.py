"""An engine's process that loads while its owner does other things, and what it is told meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from processes import is_running

from vkllm.engine.events import Failed, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, Request, TokenTexts
from vkllm.errors import DeviceLost, NoDevice

SPEC: Any = None


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    device = getattr(request, "param", None)
    made = EngineProcess(EngineConfig(Path("tiny.gguf"), {}, SPEC, 64, device), factory="fake_engine:FakeEngine")
    yield made
    made.close()


def first_token(engine: EngineProcess, request_id: int, *prompt: int) -> int | None:
    """Of the answer to a prompt; None if the request fails."""
    queue = engine.submit(Request(request_id, prompt, SamplingParams(max_tokens=1), frozenset()))
    event = queue.get(timeout=120)
    assert isinstance(event, Token | Failed)
    return event.token_id if isinstance(event, Token) else None


def test_a_begun_engine_loads_before_anyone_waits_for_it(engine: EngineProcess) -> None:
    engine.begin()
    pid = engine.pid
    assert pid is not None and is_running(pid)
    engine.begin()
    engine.start()
    assert engine.pid == pid and engine.ready.device_name == "fake device"


@pytest.mark.parametrize("engine", ["none"], indirect=True)
def test_what_went_wrong_in_a_begun_engine_is_told_to_the_one_who_waits_for_it(engine: EngineProcess) -> None:
    engine.begin()
    assert engine.pid is not None
    os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)  # it has said so and ended
    with pytest.raises(NoDevice, match="no Vulkan device was found"):
        engine.start()


@pytest.mark.parametrize("engine", ["slow start"], indirect=True)
def test_a_begun_engine_that_nobody_waits_for_ends_with_close(engine: EngineProcess) -> None:
    engine.begin()
    engine.close()
    assert engine.pid is not None and not is_running(engine.pid)
    with pytest.raises(DeviceLost, match="was closed"):
        engine.start()


def test_an_engine_knows_token_texts_before_its_first_request_and_so_does_the_next_one(engine: EngineProcess) -> None:
    engine.begin()
    engine.learn(TokenTexts((b"a", b"b", b"c"), frozenset({2})))
    assert first_token(engine, 1, fake.TEXTS) == 3
    queue = engine.submit(Request(2, (fake.DIE, 11), SamplingParams(), frozenset()))
    while not isinstance(queue.get(timeout=120), Failed):
        pass
    assert first_token(engine, 3, fake.TEXTS) == 3
