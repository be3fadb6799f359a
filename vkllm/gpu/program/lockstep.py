"""Steps of a model of which every device has a part of each matrix: all devices compute every step together.

They exchange sums within their dispatches (`exchange.py`), and wait there for some seconds only. So a step is
recorded on all of them before it is submitted on any. The first failure ends the group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from vkllm.errors import DeviceError, DeviceLost
from vkllm.gpu.program.exchange import Exchange
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Ready, Submitted
from vkllm.gpu.program.results import Floats
from vkllm.gpu.program.step import Part

T = TypeVar("T")

CAUSE_S: Final = 1.0
"""How long a device that another has missed may take to say that it was lost."""


@dataclass(frozen=True)
class StepOfRanks:
    """A step that all ranks compute. submitted: by rank."""

    lockstep: Lockstep
    submitted: tuple[Submitted, ...]

    def wait(self) -> None:
        """Waits for the step on all devices. Raises DeviceError, with the name of the device that failed."""
        self.lockstep.wait(self.submitted)

    def chosen(self) -> list[int]:
        """Waits for the step and returns what its results have chosen, -1 for those that want logits."""
        return self.lockstep.tokens(self.submitted)

    def logits_of(self, i: int) -> Floats:
        """Waits for the step and returns the logits (V,) of its result i, which wanted them."""
        self.wait()
        heads = zip(self.lockstep.ranks, self.submitted, strict=True)
        found = [rank.logits(submitted, i) for rank, submitted in heads if rank in self.lockstep.heads]
        return found[0] if len(found) == 1 else np.concatenate(found)


class Lockstep:
    """Runs steps. ranks: the programs, by rank. heads: those that compute logits which others do not. names: of the
    devices, for errors."""

    n_in_turn = 1

    def __init__(
        self, ranks: Sequence[Program], heads: Sequence[Program], names: Sequence[str], exchange: Exchange
    ) -> None:
        self.ranks = tuple(ranks)
        self.heads = tuple(heads)
        self._names = names
        self._exchange = exchange
        self._error: BaseException | None = None

    def submit(self, parts: Sequence[Part], *, is_prompt: bool, n_submits: int) -> tuple[StepOfRanks, float, bool]:
        """Submits a step on all devices and returns at once: it, when that was, and whether something was recorded for
        it. Raises DeviceError."""

        def recorded(rank: Program) -> Ready:
            return rank.ready(parts, is_prompt=is_prompt, n_submits=n_submits, is_read=False, received=None)

        steps = self._of_all(recorded)
        tickets = [0] * len(steps)
        submitted_s = time.perf_counter()
        # piece by piece: the layer waits where a device has too much in flight
        for pieces in zip(*(step.recordings for step in steps), strict=True):
            for number, (rank, step, piece) in enumerate(zip(self.ranks, steps, pieces, strict=True)):
                with self._ending(number):
                    tickets[number] = rank.send_piece(step, piece)
        submitted = (
            Submitted(ticket, step.place, submitted_s, step.n_rows) for ticket, step in zip(tickets, steps, strict=True)
        )
        return StepOfRanks(self, tuple(submitted)), submitted_s, any(step.is_new for step in steps)

    def wait(self, submitted: Sequence[Submitted]) -> None:
        """Waits for a step on all devices. Raises DeviceError."""
        steps = iter(submitted)
        self._of_all(lambda rank: rank.wait(next(steps)))

    def tokens(self, submitted: Sequence[Submitted]) -> list[int]:
        """Waits for a step and returns its tokens. Raises DeviceError, also if devices have chosen others."""
        steps = iter(submitted)
        chosen = self._of_all(lambda rank: rank.tokens(next(steps)))
        for number, found in enumerate(chosen):
            if found != chosen[0]:
                with self._ending(number):
                    raise DeviceError(
                        f"it chose other tokens than {self._names[0]}; split the model by layers (`-sm layer`)"
                    )
        return chosen[0]

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""
        self._of_all(lambda rank: rank.settle())

    def close(self) -> None:
        """Nothing runs besides the devices, which wait for what is in flight when they are closed."""

    def _of_all(self, of: Callable[[Program], T]) -> list[T]:
        """What it makes of each rank, one after the other, whose exchanges until then have not failed."""
        found: list[T] = []
        for number, rank in enumerate(self.ranks):
            with self._ending(number):
                found.append(of(rank))
            assert rank.share is not None
            try:
                rank.share.exchange.check()
            except DeviceError as error:
                raise self._ended(number, self._cause(number) or error) from error
        return found

    def _cause(self, number: int) -> DeviceLost | None:
        """Why a rank missed another, if that device was lost."""
        for other, rank in enumerate(self.ranks):
            if other == number:
                continue
            rank.device.timeout_s = min(rank.device.timeout_s, CAUSE_S)  # nothing else will run on it
            try:
                rank.settle()
            except DeviceLost as error:
                return DeviceLost(f"{self._names[other]}: {error}")
            except DeviceError:
                continue
        return None

    @contextmanager
    def _ending(self, number: int) -> Iterator[None]:
        """A failure of this rank ends the group: nothing is known of what lies on its device."""
        if self._error is not None:
            raise self._error
        try:
            yield
        except DeviceError as error:
            told = type(error)(f"{self._names[number]}: {error}")
            raise self._ended(number, told) from error
        except BaseException as error:
            raise self._ended(number, error) from error

    def _ended(self, number: int, error: BaseException) -> BaseException:
        """The first failure, which ends the waits of all devices."""
        if self._error is not None:
            return self._error
        self._exchange.abort(number)
        self._error = error
        return error
