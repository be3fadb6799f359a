"""What is got ready for longer prompts: when nobody waits, or when such a prompt comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm.engine.chunks import CHUNK_WIDTHS
from vkllm.engine.engine import LONG_PROMPT, Engine
from vkllm.engine.events import Event, Finished
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.messages import Stop
from vkllm.engine.process.worker import _serve
from vkllm.engine.requests import Request
from vkllm.errors import NoDevice
from vkllm.gpu.program.program import Program


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    path = write_random_model(tmp_path / "model.gguf", TINY_SPEC, {})
    try:
        made = Engine(engine_config(path, TINY_SPEC, 512))
    except NoDevice as error:
        pytest.skip(str(error))
    yield made
    made.close()


def answered(engine: Engine, n_prompt: int) -> Finished:
    engine.submit(Request(n_prompt, (7,) * n_prompt, SamplingParams(max_tokens=1, temperature=0), frozenset()))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.gpu
def test_a_long_prompt_finds_all_widths_ready_and_a_short_one_waits_for_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(engine.load_times.seconds) == ["device", "weights", "first steps"]
    monkeypatch.setattr(engine._lengths, "n_submits", lambda n_rows: 1)  # as if the device were quick
    assert list(engine._lengths.took_s) == [CHUNK_WIDTHS[0]] and not engine.is_prepared
    assert answered(engine, 5).stats.n_generated == 1
    assert answered(engine, LONG_PROMPT).stats.n_generated == 1
    assert not engine.is_prepared
    monkeypatch.setattr(engine, "is_cpu_device", False)  # whose steps would take longer than to get them ready
    timed: list[int] = []
    measured = engine._lengths.measured
    monkeypatch.setattr(engine._lengths, "measured", lambda n, s: (timed.append(n), measured(n, min(s, 1e-4 * n))))
    engine.submit(Request(1, (7,) * (LONG_PROMPT + 1), SamplingParams(max_tokens=1), frozenset()))
    assert engine._has_wider_steps and 256 in timed, "before the first step of the prompt"
    while engine.has_work:
        engine.step()
    program = engine._program
    assert isinstance(program, Program) and not engine.is_prepared, "it does not wait for steps of several sequences"
    while not engine.is_prepared:
        engine.prepare()
    recorded = {key[0] for key in program._recordings._made if isinstance(key, tuple) and isinstance(key[0], int)}
    assert recorded >= {1, 2, 4, 8, 16, 32, 64, 256}
    n_recordings = program._recordings.n_made
    engine.prepare()
    for i in range(5):
        engine.submit(Request(9 + i, (9 + i, 7), SamplingParams(max_tokens=3, temperature=i % 2), frozenset()))
    while engine.has_work:
        engine.step()
    assert program._recordings.n_made - n_recordings < 8, "only steps whose results differ in kind"


@pytest.mark.gpu
def test_what_is_cached_stays_where_a_longer_chunk_would_need_its_place(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._lengths, "n_submits", lambda n_rows: 1)  # as if the device were quick
    prompt = tuple(range(2, 202)) * 2
    held = engine._cache.begin("", prompt, 0)
    engine._run_chunk(held, list(prompt[:LONG_PROMPT]), 0)
    engine._cache.grow(held, LONG_PROMPT, len(prompt))
    engine._cache.end(held, prompt, is_kept=True)
    before = engine._cache.pool.n_empty
    while not engine.is_prepared:
        engine.prepare()
    assert engine._cache.pool.n_empty == before
    assert engine._cache.begin("", prompt).n_cached == len(prompt) - 1


class Parent:
    """What comes through the pipe, in order; None: nothing for as long as anybody has patience."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)

    def has_message(self, patience_s: float = 0.0) -> bool:
        if self.script[0] is None and patience_s:
            self.script.pop(0)
            return False
        return self.script[0] is not None

    def receive(self) -> object:
        while self.script[0] is None:
            self.script.pop(0)
        return self.script.pop(0)

    def send(self, message: object) -> None:
        pass


class Slow:
    """An engine that has three things to get ready, the last of them narrow steps, and answers in one step."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.has_work = False

    @property
    def is_prepared(self) -> bool:
        return self.log.count("prepare") == 3

    @property
    def has_narrow_steps(self) -> bool:
        return self.is_prepared or "narrow" in self.log

    def prepare(self, *, is_narrow: bool = False) -> None:
        self.log.append("narrow" if is_narrow else "prepare")

    def submit(self, request: object) -> None:
        self.has_work = True
        self.log.append("submit")

    def step(self) -> list[Event]:
        self.has_work = False
        return []


REQUEST = Request(1, (1,), SamplingParams(), frozenset())


@pytest.mark.parametrize(
    ("script", "log"),
    [
        ([None, None, None, None, REQUEST, Stop()], ["prepare"] * 3 + ["submit"]),
        ([None, REQUEST, None, None, Stop()], ["prepare", "submit", "narrow"]),
        ([REQUEST, None, None, REQUEST, Stop()], ["submit", "narrow", "submit"]),
        ([None, None, None, REQUEST, None, Stop()], ["prepare"] * 3 + ["submit"]),
        ([None, Stop()], ["prepare"]),
    ],
    ids=["idle for long", "a request meanwhile", "a request at once", "all before", "an end meanwhile"],
)
def test_an_idle_engine_gets_ready_and_later_takes_no_place_of_what_is_cached(
    script: list[Any], log: list[str]
) -> None:
    engine: Any = Slow()
    parent: Any = Parent(*script)
    _serve(parent, engine)
    assert engine.log == log
