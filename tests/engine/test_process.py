"""The engine's process, with an engine that needs no device: events, deaths, closing, and sleep."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import fake_engine as fake
import pytest
from processes import is_running

from vkllm.engine.events import Event, Failed, Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, Request
from vkllm.errors import ContextOverflow, DeviceLost, NoDevice

FACTORY = "fake_engine:FakeEngine"
MakeEngine = Callable[..., EngineProcess]


def config(device: str | None = None) -> EngineConfig:
    spec: Any = None
    return EngineConfig(Path("tiny.gguf"), {}, spec, 64, device)


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    engines: list[EngineProcess] = []

    def make(device: str | None = None, **options: Any) -> EngineProcess:
        engines.append(EngineProcess(config(device), factory=FACTORY, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(request_id: int, *prompt: int, max_tokens: int | None = None, stop: int | None = None) -> Request:
    stops = frozenset() if stop is None else frozenset({stop})
    return Request(request_id, prompt, SamplingParams(max_tokens=max_tokens), stops)


def events_until_last(queue: SimpleQueue[Event], timeout_s: float = 60) -> list[Event]:
    events = [queue.get(timeout=timeout_s)]
    while not isinstance(events[-1], Finished | Failed):
        events.append(queue.get(timeout=timeout_s))
    return events


def token_ids(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def test_a_request_gets_its_tokens_and_then_finished(make_engine: MakeEngine) -> None:
    engine = make_engine()
    events = events_until_last(engine.submit(request(7, 100, 11, 12, max_tokens=5)))
    assert token_ids(events) == [11, 12, 11, 12, 11]
    assert isinstance(events[-1], Finished)
    assert (events[-1].request_id, events[-1].reason, events[-1].stats.n_generated) == (7, "length", 5)


def test_events_may_go_to_a_function_instead_of_a_queue(make_engine: MakeEngine) -> None:
    engine, events = make_engine(), SimpleQueue[Event]()
    engine.send(request(7, 100, 11, 12, max_tokens=3), events.put)
    assert token_ids(events_until_last(events)) == [11, 12, 11]


def test_a_stop_token_is_an_event_before_finished(make_engine: MakeEngine) -> None:
    events = events_until_last(make_engine().submit(request(1, 100, 11, 12, 13, stop=12)))
    assert token_ids(events) == [11, 12]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "stop"


def test_loading_reports_progress_and_the_device(make_engine: MakeEngine) -> None:
    seen: list[tuple[int, int, int]] = []
    engine = make_engine("cpu", on_progress=lambda done, total: seen.append((done, total, threading.get_ident())))
    engine.start()
    assert seen == [(done, 100, threading.get_ident()) for done in (0, 50, 100)]
    assert (engine.ready.device_name, engine.ready.is_cpu_device) == ("fake device", True)


def test_a_typed_error_in_loading_reaches_the_caller_and_ends_the_process(make_engine: MakeEngine) -> None:
    engine = make_engine("none")
    with pytest.raises(NoDevice, match="no Vulkan device was found"):
        engine.start()
    assert engine.pid is not None
    assert not is_running(engine.pid)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("crash", r"ended \(exit code 1\) while loading tiny.gguf; .*RuntimeError: a mistake in loading"),
        ("die", r"was killed by SIGSEGV while loading tiny.gguf; it last printed: driver noise"),
    ],
)
def test_a_process_that_dies_in_loading_is_a_lost_device(make_engine: MakeEngine, device: str, words: str) -> None:
    with pytest.raises(DeviceLost, match=words) as caught:
        make_engine(device).start()
    assert "\n" not in str(caught.value)


def test_a_factory_that_cannot_be_imported_is_a_typed_error() -> None:
    with (
        pytest.raises(DeviceLost, match="No module named 'no_such_module'"),
        EngineProcess(config(), factory="no_such_module:Engine"),
    ):
        pass


def test_an_error_in_the_progress_callback_leaves_no_process(make_engine: MakeEngine) -> None:
    def fail(done: int, total: int) -> None:
        raise BrokenPipeError

    engine = make_engine(on_progress=fail)
    with pytest.raises(BrokenPipeError):
        engine.start()
    assert engine.pid is not None
    assert not is_running(engine.pid)


def test_a_refused_request_fails_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    refused = events_until_last(engine.submit(request(1, fake.REFUSE)))
    assert isinstance(refused[-1], Failed)
    assert isinstance(refused[-1].error, ContextOverflow)
    assert token_ids(events_until_last(engine.submit(request(2, 100, 5, max_tokens=2)))) == [5, 5]


def test_cancel_ends_a_request_that_nothing_else_ends(make_engine: MakeEngine) -> None:
    engine = make_engine()
    queue = engine.submit(request(1, fake.ENDLESS, 11))
    queue.get(timeout=120)
    engine.cancel(99)  # unknown: ignored
    engine.cancel(1)
    last = events_until_last(queue)[-1]
    assert isinstance(last, Finished)
    assert last.reason == "cancelled"


def test_threads_get_their_own_events(make_engine: MakeEngine) -> None:
    engine = make_engine()
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        for i in range(5):
            events = events_until_last(engine.submit(request(number * 10 + i, 100, number, max_tokens=3)))
            answers.setdefault(number, []).extend(token_ids(events))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == {number: [number] * 15 for number in range(4)}


def test_a_killed_process_fails_open_requests_at_once_and_the_next_starts_one(make_engine: MakeEngine) -> None:
    engine = make_engine()
    begun = time.monotonic()
    engine.start()
    start_s = time.monotonic() - begun  # of a process: longer than to notice its end, however busy the machine is
    queues = [engine.submit(request(1, 100, 11, 12)), engine.submit(request(2, 100, 13))]
    queues[0].get(timeout=120)
    first_pid = engine.pid
    assert first_pid is not None
    os.kill(first_pid, signal.SIGKILL)
    killed = time.monotonic()
    for queue in queues:
        last = events_until_last(queue)[-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, DeviceLost)
        assert "killed by SIGKILL while answering 2 requests (prompt tokens: 3, 2) on fake device" in str(last.error)
        assert "driver noise" in str(last.error)
    assert time.monotonic() - killed < max(start_s, 1)
    assert token_ids(events_until_last(engine.submit(request(3, 100, 5, max_tokens=2)))) == [5, 5]
    assert engine.pid != first_pid
    assert not is_running(first_pid)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (fake.DIE, "killed by SIGKILL"),
        (fake.FAIL, "the fake device was lost"),
        (fake.CRASH, "RuntimeError: a mistake in the engine"),
    ],
)
def test_an_engine_that_fails_is_replaced(make_engine: MakeEngine, kind: int, words: str) -> None:
    engine = make_engine()
    events = events_until_last(engine.submit(request(1, kind, 11)))
    assert token_ids(events) == [11, 11, 11]
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, DeviceLost)
    assert words in str(events[-1].error)
    first_pid = engine.pid
    assert token_ids(events_until_last(engine.submit(request(2, 100, 5, max_tokens=1)))) == [5]
    assert engine.pid != first_pid


def test_a_new_engine_starts_after_the_old_one_has_given_its_device_back(make_engine: MakeEngine) -> None:
    old_pids: list[int] = []
    overlaps: list[bool] = []
    engine = make_engine("slow close", on_progress=lambda *_: overlaps.extend(map(is_running, old_pids)))
    events_until_last(engine.submit(request(1, fake.FAIL, 11)))
    assert engine.pid is not None
    old_pids.append(engine.pid)
    events_until_last(engine.submit(request(2, 100, 5, max_tokens=1)))
    assert overlaps == [False] * 3


def test_one_new_process_is_started_for_many_threads(make_engine: MakeEngine) -> None:
    starts: list[int] = []
    engine = make_engine(on_progress=lambda done, total: starts.append(done) if done == 0 else None)
    events_until_last(engine.submit(request(0, fake.DIE, 11)))
    threads = [
        threading.Thread(target=lambda n=n: events_until_last(engine.submit(request(n, 100, 5, max_tokens=1))))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(starts) == 2


def test_close_ends_the_process_and_fails_open_requests(make_engine: MakeEngine) -> None:
    engine = make_engine()
    queue = engine.submit(request(1, 100, 11))
    queue.get(timeout=120)
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    assert not is_running(pid)
    last = events_until_last(queue)[-1]
    assert isinstance(last, Failed)
    assert "was closed" in str(last.error)
    with pytest.raises(DeviceLost, match="was closed"):
        engine.submit(request(2, 100, 11))


def test_close_ends_an_engine_that_hangs(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkllm.engine.process.handle._STOP_S", 0.3)
    monkeypatch.setattr("vkllm.engine.process.handle._KILL_S", 0.3)
    engine = make_engine()
    queue = engine.submit(request(1, fake.HANG, 11))
    time.sleep(0.3)
    engine.close()
    assert engine.pid is not None
    assert not is_running(engine.pid)
    assert isinstance(events_until_last(queue)[-1], Failed)


def test_close_in_the_middle_of_loading_ends_it(make_engine: MakeEngine) -> None:
    engine = make_engine("slow start")
    errors: list[BaseException] = []

    def start() -> None:
        try:
            engine.start()
        except DeviceLost as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    while engine.pid is None:
        time.sleep(0.01)
    engine.close()
    thread.join()
    assert [str(error) for error in errors] == ["the engine was closed; open the model again"]
    assert engine.pid is not None
    assert not is_running(engine.pid)


def test_a_forgotten_engine_ends_when_it_is_collected() -> None:
    engine = EngineProcess(config(), factory=FACTORY)
    engine.start()
    pid = engine.pid
    assert pid is not None
    del engine
    gc.collect()
    assert not is_running(pid)


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    """Runs a user's script: no close(), no main guard."""
    head = """
import os, signal, sys, time
from pathlib import Path
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, Request
engine = EngineProcess(EngineConfig(Path("tiny.gguf"), {}, None, 64), factory="fake_engine:FakeEngine")
events = engine.submit(Request(1, (100, 11), SamplingParams(), frozenset()))
events.get()
print(engine.pid, time.monotonic(), flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", head + body], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def wait_until_gone(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise KeyError"])
def test_a_script_that_forgets_close_exits_promptly_and_leaves_no_process(ending: str) -> None:
    done = run_script(ending)
    pid, ended_s = done.stdout.split()
    assert time.monotonic() - float(ended_s) < 5
    assert not is_running(int(pid))
    assert done.returncode == {"": 0, "sys.exit(3)": 3, "raise KeyError": 1}[ending]
    assert done.stderr.count("Traceback") == (1 if "raise" in ending else 0)


def test_a_killed_parent_takes_the_process_with_it() -> None:
    done = run_script("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    assert wait_until_gone(int(done.stdout.split()[0]), 60)


def test_the_process_ignores_ctrl_c(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGINT)
    assert token_ids(events_until_last(engine.submit(request(1, 100, 5, max_tokens=2)))) == [5, 5]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_idle_engine_uses_no_cpu(make_engine: MakeEngine) -> None:
    engine = make_engine()
    events_until_last(engine.submit(request(1, 100, 11, max_tokens=3)))
    assert engine.pid is not None
    stat = Path(f"/proc/{engine.pid}/stat")
    switches = Path(f"/proc/{engine.pid}/status")

    def usage() -> tuple[int, str]:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        voluntary = next(line for line in switches.read_text().splitlines() if line.startswith("voluntary"))
        return int(fields[11]) + int(fields[12]), voluntary

    before = None
    for _ in range(100):  # until it rests from what it has just done
        if (now := usage()) == before:
            break
        before = now
        time.sleep(0.2)
    time.sleep(1.2)
    # Not one tick of CPU time, and not one wake-up: it sleeps, it does not poll.
    assert usage() == before


def test_modules_in_the_current_folder_do_not_shadow_pythons(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signal.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    make_engine().start()
