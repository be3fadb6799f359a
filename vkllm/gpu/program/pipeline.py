"""Steps of a model whose layers lie on several devices: each step passes through all of them, several at a time.

A device has two threads: one submits the steps in their order, one waits for them and passes on what they leave, so a
device that has other steps to run never waits for the host. The last device chooses tokens; a step of the same sequence
that takes one waits for it in front of the first device. Knows nothing of how layers are spread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from vkllm.errors import DeviceError
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.results import Floats
from vkllm.gpu.program.step import N_SLOTS, Part

JOIN_S = 3.0
"""How long a pipeline that is closed waits for its threads: one that waits for a device that hangs is left behind."""


@dataclass(eq=False)
class Passage:
    """A step on its way through the devices. after: by the number of a part, the step that chooses its first token, and
    which of that step's results does. tokens, logits: of its results, once it is done."""

    parts: Sequence[Part]
    is_prompt: bool
    n_submits: int
    after: dict[int, tuple[Passage, int]]
    tokens: list[int] = field(default_factory=list)
    logits: dict[int, Floats] = field(default_factory=dict)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Waits for the step. Raises what went wrong in it."""
        self.done.wait()
        if self.error is not None:
            raise self.error

    def chosen(self) -> list[int]:
        """Waits for the step and returns what its results have chosen, -1 for those that want logits."""
        self.wait()
        return self.tokens

    def logits_of(self, i: int) -> Floats:
        """Waits for the step and returns the logits (V,) of its result i, which wanted them."""
        self.wait()
        return self.logits[i]

    def take_tokens(self) -> None:
        """Waits for the tokens that other steps choose for this one. Raises what went wrong there."""
        parts = list(self.parts)
        for number, (earlier, result) in self.after.items():
            earlier.wait()
            parts[number] = replace(parts[number], tokens=[earlier.tokens[result], *parts[number].tokens[1:]])
        self.parts = parts
        self.after = {}  # which would keep all steps before them


class Pipeline:
    """Runs steps. ranks: a program for each part of the model, in order. names: of their devices, for errors.
    n_in_turn: steps that run at the same time, each on another device."""

    def __init__(self, ranks: Sequence[Program], names: Sequence[str]) -> None:
        self.n_in_turn = len(ranks)
        self._stages = [_Stage(rank, name) for rank, name in zip(ranks, names, strict=True)]
        for stage, following in zip(self._stages, [*self._stages[1:], None], strict=True):
            stage.start(following)
        self._chosen: dict[int, tuple[Passage, int]] = {}
        self._last: Passage | None = None

    def submit(self, parts: Sequence[Part], *, is_prompt: bool, n_submits: int) -> tuple[Passage, float, bool]:
        """Sends a step on its way, and returns it with the time; what is recorded for it, its stages do by and by."""
        after = {number: self._chosen[part.sequence] for number, part in enumerate(parts) if part.tokens[0] is None}
        passage = Passage(parts, is_prompt, n_submits, after)
        n_results = 0
        for part in parts:
            n_results += len(part.results)
            if part.results:
                self._chosen[part.sequence] = passage, n_results - 1
        self._last = passage
        submitted_s = time.perf_counter()
        self._stages[0].inbox.put((passage, None))
        return passage, submitted_s, False

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""
        if self._last is not None:
            self._last.wait()

    def close(self) -> None:
        """Ends the threads. Safe to call twice."""
        self._stages[0].inbox.put(None)
        for stage in self._stages:
            stage.join(JOIN_S)


class _Stage:
    """A device of a pipeline."""

    def __init__(self, program: Program, name: str) -> None:
        self.inbox: SimpleQueue[tuple[Passage, Floats | None] | None] = SimpleQueue()
        self._program = program
        self._name = name
        self._following: _Stage | None = None
        self._running: SimpleQueue[tuple[Passage, Submitted | None] | None] = SimpleQueue()
        self._free_slots = threading.Semaphore(N_SLOTS)
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=target, name=f"vkllm-{target.__name__.strip('_')}", daemon=True)
            for target in (self._submit_steps, self._pass_on)
        ]

    def start(self, following: _Stage | None) -> None:
        """Begins. following: where rows go; None: this is the last device."""
        self._following = following
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        for thread in self._threads:
            thread.join(timeout_s)

    def _submit_steps(self) -> None:
        while (item := self.inbox.get()) is not None:
            passage, received = item
            submitted = None
            try:
                if self._error is not None:  # nothing is known of what lies on a device that has failed
                    raise self._error
                passage.take_tokens()
                self._free_slots.acquire()
                submitted = self._submit(passage, received)
            except BaseException as error:
                passage.error = self._error = error
            self._running.put((passage, submitted))
        self._running.put(None)

    def _submit(self, passage: Passage, received: Floats | None) -> Submitted:
        parts = passage.parts
        if self._following is not None:
            parts = [replace(part, results=()) for part in parts]
        try:
            return self._program.submit(
                parts, is_prompt=passage.is_prompt, n_submits=passage.n_submits, received=received
            )
        except DeviceError as error:
            raise self._told(error) from error

    def _pass_on(self) -> None:
        while (item := self._running.get()) is not None:
            passage, submitted = item
            rows: Floats | None = None
            if submitted is not None:
                try:
                    rows = self._taken(passage, submitted)
                except BaseException as error:
                    passage.error = self._error = error
                self._free_slots.release()
            if passage.error is not None or self._following is None:
                passage.done.set()
            else:
                self._following.inbox.put((passage, rows))
        if self._following is not None:
            self._following.inbox.put(None)

    def _taken(self, passage: Passage, submitted: Submitted) -> Floats | None:
        """Waits for a step and takes what it leaves: rows for the next device, or its results."""
        program = self._program
        try:
            if self._following is not None:
                return program.sent(submitted)
            passage.tokens = program.tokens(submitted)
        except DeviceError as error:
            raise self._told(error) from error
        results = [result for part in passage.parts for result in part.results]
        passage.logits = {i: program.logits(submitted, i) for i, result in enumerate(results) if result.wants_logits}
        return None

    def _told(self, error: DeviceError) -> DeviceError:
        return type(error)(f"{self._name}: {error}")
