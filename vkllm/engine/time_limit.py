"""Calls that may take too long: each runs in a thread of its own, which is waited for only a limited time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from vkllm.errors import InvalidParameter

T = TypeVar("T")


class TimeLimit:
    """Limits how long one is held up by calls that release the GIL while they compute, as llguidance's do.

    A call that takes longer goes on in its thread until it ends. No other call begins meanwhile, so there is never more
    than one such thread.
    """

    def __init__(self, seconds: float, what: str) -> None:
        """what: what the calls prepare, as errors name it."""
        self._seconds = seconds
        self._what = what
        self._late: Thread | None = None

    def result(self, call: Callable[[], T]) -> T:
        """What a call returns; what it raises is raised.

        Raises InvalidParameter if it takes too long, or if an earlier call that took too long still runs.
        """
        if self._late is not None and self._late.is_alive():
            raise InvalidParameter(
                f"{self._what} cannot be prepared while an earlier one takes too long; ask again later"
            )
        self._late = None
        returned: list[T] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                returned.append(call())
            except BaseException as error:  # llguidance's panics are no Exceptions
                raised.append(error)

        thread = Thread(target=work, name="vkllm time limit", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if raised:
            raise raised[0]
        if not returned:
            self._late = thread
            raise InvalidParameter(
                f"{self._what} takes longer than {self._seconds:g} s to prepare; make it smaller, with fewer choices "
                "or repetitions"
            )
        return returned[0]
