"""Calls that may take too long: they run in a thread beside the caller, who waits only for a limited time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from vkllm.errors import InvalidParameter

T = TypeVar("T")


class TimeLimit:
    """Limits how long calls hold up their caller, in wall time.

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
        worker.calls.put(call)
        try:
            outcome = worker.outcomes.get(timeout=self._seconds)
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
