"""The engine's process: `python -m vkllm.engine.process.worker FACTORY HANDLE`, started by `child.py`.

It loads one engine, sleeps while there is nothing to do, and passes requests in and events out. It knows the
pipe and the engine's calls, nothing about models, devices or text.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from vkllm.engine.events import DeviceAnswer, DeviceReport, Event, Failed, KernelAnswer, TuningAnswer, TuningTrial
from vkllm.engine.load_times import LoadTimes
from vkllm.engine.process.messages import Cancel, EngineFailed, Load, LoadProgress, Ready, Stop, open_connection
from vkllm.engine.requests import DeviceQuery, EngineConfig, KernelQuery, Request, StateQuery, TokenTexts, TuningQuery
from vkllm.errors import DeviceLost, DeviceTimeout, VkllmError
from vkllm.model.memory.plan import MemoryPlan

if TYPE_CHECKING:
    from vkllm.gpu.measure.step_times import StepTimes
    from vkllm.gpu.tuning.search import Trial
    from vkllm.gpu.tuning.tuner import TuningReport


class Engine(Protocol):
    """What the worker needs of an engine; `vkllm.engine.engine.Engine` is the real one."""

    device_name: str
    is_cpu_device: bool
    plan: MemoryPlan
    moved_bytes: int
    slow_paths: tuple[str, ...]
    load_times: LoadTimes
    is_prepared: bool
    has_narrow_steps: bool

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""

    def prepare(self, *, is_narrow: bool = False) -> None:
        """Gets one more thing ready that some requests need; `is_prepared` when there is nothing left. is_narrow: of
        what leaves all that is cached where it is; `has_narrow_steps` when there is nothing left of it."""

    def learn(self, texts: TokenTexts) -> None:
        """Takes the texts of the model's tokens, for answers with a grammar."""

    def submit(self, request: Request | StateQuery) -> None:
        """Takes a request in, or raises why it cannot."""

    def cancel(self, request_id: int) -> None:
        """Ends a request early; its `Finished` comes from `step`."""

    def step(self) -> list[Event]:
        """Works for a moment and returns what happened."""

    def measure_device(self) -> DeviceReport:
        """Looks at the device and times it."""

    def tune(
        self, budget_s: float, on_trial: Callable[[Trial], None], is_interrupted: Callable[[], bool]
    ) -> TuningReport:
        """Finds the best choices for the device, and keeps them."""

    def measure_kernels(self, n_rows: int, n_depth: int) -> StepTimes:
        """Times the kernels of a step."""

    def close(self) -> None:
        """Gives everything back to the device."""


_IDLE_S = 0.2
"""How long a new engine is idle before it gets ready for longer prompts: a short first one would wait for that."""

# After these the device is in no known state; a new process is the only clean start.
_LOST = (DeviceLost, DeviceTimeout)

EngineFactory = Callable[[EngineConfig, Callable[[int, int], None]], Engine]


class _ParentGone(Exception):
    """The other end of the pipe is closed: there is nobody left to work for."""


class _Parent:
    """The pipe, with one error for every way in which it can be closed."""

    def __init__(self, handle: int) -> None:
        self._connection = open_connection(handle)

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise _ParentGone from error

    def receive(self) -> Any:
        """The next message; sleeps until there is one."""
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise _ParentGone from error

    def has_message(self, patience_s: float = 0.0) -> bool:
        """Whether `receive` would return (or raise) at once, now or within patience_s."""
        try:
            return self._connection.poll(patience_s)
        except OSError as error:
            raise _ParentGone from error


def main(arguments: list[str]) -> None:
    """Serves the parent at the pipe HANDLE with the engine that FACTORY ("module:callable") makes."""
    # Ctrl-C in a terminal is meant for the face: it cancels a request and keeps the loaded model.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    factory, handle = arguments
    try:
        _load_and_serve(_Parent(int(handle)), factory)
    except _ParentGone:
        sys.exit(1)


def _load_and_serve(parent: _Parent, factory: str) -> None:
    module, _, name = factory.partition(":")
    make_engine: EngineFactory = getattr(importlib.import_module(module), name)
    load: Load = parent.receive()
    config, process_s = load.config, time.perf_counter() - load.asked_s
    try:
        engine = make_engine(config, lambda done, total: parent.send(LoadProgress(done, total)))
    except VkllmError as error:
        parent.send(EngineFailed(error))
        return
    try:
        parent.send(
            Ready(
                engine.device_name,
                engine.is_cpu_device,
                engine.plan,
                engine.moved_bytes,
                engine.slow_paths,
                {"process": process_s} | engine.load_times.seconds,
            )
        )
        _serve(parent, engine)
    except VkllmError as error:
        parent.send(EngineFailed(error))
    finally:
        engine.close()


def _serve(parent: _Parent, engine: Engine) -> None:
    """Runs until the parent says `Stop`; raises what makes it impossible to go on."""
    has_begun = False  # later, what is cached is worth more than being ready for longer prompts
    while True:
        while parent.has_message() or not engine.has_work:
            is_ready = engine.has_narrow_steps if has_begun else engine.is_prepared
            if not (is_ready or parent.has_message(_IDLE_S)):
                engine.prepare(is_narrow=has_begun)
                continue
            match parent.receive():
                case Request() | StateQuery() as request:
                    has_begun = True
                    try:
                        engine.submit(request)
                    except VkllmError as error:
                        parent.send([Failed(request.id, error)])
                case DeviceQuery() | TuningQuery() | KernelQuery() as query:
                    parent.send([_answer(parent, engine, query)])
                case TokenTexts() as texts:
                    engine.learn(texts)
                case Cancel(request_id):
                    engine.cancel(request_id)
                case Stop():
                    return
        events = engine.step()
        lost = [event.error for event in events if isinstance(event, Failed) and isinstance(event.error, _LOST)]
        if lost:
            events = [event for event in events if not isinstance(event, Failed)]
        if events:
            parent.send(events)
        if lost:  # fails all open requests at once
            raise lost[0]


def _answer(parent: _Parent, engine: Engine, query: DeviceQuery | TuningQuery | KernelQuery) -> Event:
    try:
        match query:
            case DeviceQuery(request_id):
                return DeviceAnswer(request_id, engine.measure_device())
            case TuningQuery(request_id, budget_s):
                # any message that arrives meanwhile comes first
                report = engine.tune(
                    budget_s, lambda trial: parent.send([TuningTrial(request_id, trial)]), parent.has_message
                )
                return TuningAnswer(request_id, report)
            case KernelQuery(request_id, n_rows, n_depth):
                return KernelAnswer(request_id, engine.measure_kernels(n_rows, n_depth))
    except _LOST:
        raise
    except VkllmError as error:
        return Failed(query.id, error)


if __name__ == "__main__":
    main(sys.argv[1:])
