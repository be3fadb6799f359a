"""Calls that may take too long: they run in a thread beside the caller, who waits only for a limited time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from vkllm.errors import InvalidParameter

T = TypeVar("T")
_MOST_WAIT = 20  # limits of wall time, on a machine that is busy with other things


class TimeLimit:
    """Limits how long calls hold up their caller: so many seconds of a thread's own time, where the system tells it.

    A machine that is busy with other things takes longer for the same; after 20 times as long no call is awaited.
    A call that takes longer goes on in its thread until it ends, so it should release the GIL or be short in the end.
    No other call begins meanwhile, so calls that are too long cannot pile up. A call in time costs about 30 µs more.
    Several threads may use the same limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._idle: deque[_Worker] = deque()
        self._late: list[_Worker] = []

    def result(self, call: Callable[[], T], what: str, task: str) -> T:
        """What a call returns; what it raises is raised.

        what, task: for errors, such as "the grammar" and "to prepare".
        Raises InvalidParameter if the call takes too long, or if an earlier one that took too long still runs.
        """
        self._late = [worker for worker in self._late if worker.is_alive()]
        if self._late:
            raise InvalidParameter(f"{what} cannot be used while an earlier one still takes too long; ask again later")
        worker = self._worker()
        begin_s = worker.used_s()
        worker.calls.put(call)
        try:
            outcome = self._outcome(worker, begin_s)
        except Empty:
            self._late.append(worker)
            worker.calls.put(None)
            raise InvalidParameter(
                f"{what} takes longer than {self._seconds:g} s {task}; make it smaller, with fewer choices or "
                "repetitions"
            ) from None
        except BaseException:  # Ctrl-C
            worker.calls.put(None)
            raise
        self._idle.append(worker)
        if isinstance(outcome, _Raised):
            raise outcome.error
        returned: T = outcome
        return returned

    def _outcome(self, worker: _Worker, begin_s: float) -> Any:
        """What a call gave. begin_s: what its thread had used before. Raises Empty if it takes too long."""
        end_s = time.monotonic() + _MOST_WAIT * self._seconds
        left_s = self._seconds
        while True:
            try:
                return worker.outcomes.get(timeout=left_s)
            except Empty:
                left_s = self._seconds - (worker.used_s() - begin_s)
                if left_s < 0.001 or time.monotonic() > end_s:
                    raise

    def _worker(self) -> _Worker:
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if worker.is_alive():  # none is after a fork
                return worker
        worker = _Worker()
        worker.start()
        return worker

    def __del__(self) -> None:
        for worker in self._idle:
            worker.calls.put(None)


class _Worker(Thread):
    """Runs one call after the other, until it is given None."""

    def __init__(self) -> None:
        super().__init__(name="vkllm time limit", daemon=True)
        self.calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.outcomes: SimpleQueue[Any] = SimpleQueue()

    def used_s(self) -> float:
        """Seconds of a processor that the thread has used; of wall time where the system does not tell."""
        if not hasattr(time, "pthread_getcpuclockid") or not self.is_alive():
            return time.monotonic()
        assert self.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.ident))

    def run(self) -> None:
        while (call := self.calls.get()) is not None:
            try:
                outcome: object = call()
            except BaseException as error:  # llguidance's panics are no Exceptions
                outcome = _Raised(error)
            self.outcomes.put(outcome)
            del call, outcome


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
