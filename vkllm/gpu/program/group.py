"""A model on several devices, for the engine like a program on one.

Knows which device has what; how steps pass through their layers is `pipeline.py`'s, how all work on every step at once
`lockstep.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.kompute import Buffer
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.results import Floats, Place
from vkllm.gpu.program.step import Part
from vkllm.model.memory.memory_plan import MemoryPlan
from vkllm.model.memory.sequences import longest_window
from vkllm.model.spec import ModelSpec


class GroupStep(Protocol):
    """A step that several devices compute. All of it raises what went wrong."""

    def wait(self) -> None:
        """Waits for the step."""

    def chosen(self) -> list[int]:
        """Waits for the step and returns what its results have chosen, -1 for those that want logits."""

    def logits_of(self, i: int) -> Floats:
        """Waits for the step and returns the logits (V,) of its result i, which wanted them."""


class Runner(Protocol):
    """How devices share the work: `pipeline.Pipeline` or `lockstep.Lockstep`. n_in_turn: steps that run at the same
    time, each on another device."""

    n_in_turn: int

    def submit(self, parts: Sequence[Part], *, is_prompt: bool, n_submits: int) -> tuple[GroupStep, float, bool]:
        """Sends a step on its way, and returns it with the time, and whether something was recorded for it."""

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""

    def close(self) -> None:
        """Ends what it has started; the devices stay open. Safe to call twice."""


@dataclass(frozen=True)
class SubmittedToGroup(Submitted):
    """A step on its way through a group. step: the same, for the group's runner."""

    step: GroupStep | None = None


class ProgramGroup:
    """A loaded model that lies on several devices. ranks: a program for each of them, in order.

    spec, plan: of the whole model. longest_text: as of Program. heads: the ranks that compute logits, each of a part of
    the vocabulary in its order. It is used as a Program is, from one thread.
    """

    def __init__(
        self,
        ranks: Sequence[Program],
        spec: ModelSpec,
        tensors: Mapping[str, TensorInfo],
        plan: MemoryPlan,
        runner: Runner,
        heads: Sequence[Program],
    ) -> None:
        self.ranks = list(ranks)
        self.heads = list(heads)
        self.spec = spec
        self.tensors = tensors
        self.plan = plan
        self.n_blocks = plan.n_blocks
        self.moved_bytes = sum(rank.moved_bytes for rank in ranks)
        self.longest_text = None if spec.is_causal else MAX_ROWS
        self.rows_apart = 0  # steps of several devices that are wide are of one sequence
        self._runner = runner

    def submit(
        self, parts: Sequence[Part], *, is_prompt: bool = False, n_submits: int = 1, is_read: bool = False
    ) -> SubmittedToGroup:
        """Submits a step and returns at once, see `Program.submit`. What goes wrong in it may be raised by what waits
        for it only. is_read has no effect: there is no head for further tokens."""
        step, submitted_s, is_new = self._runner.submit(parts, is_prompt=is_prompt, n_submits=n_submits)
        return SubmittedToGroup(0, Place(), submitted_s, sum(len(part.tokens) for part in parts), is_new, step)

    def predict(self, part: Part, *, goes_on: bool = False) -> Submitted:
        """There is no head for further tokens on several devices, so nobody asks for a guess."""
        raise AssertionError("a group has no head for further tokens")

    def wait(self, submitted: Submitted) -> None:
        """Waits for a step. Raises DeviceError, with the name of the device that failed."""
        _step(submitted).wait()

    def tokens(self, submitted: Submitted) -> list[int]:
        """Waits for a step and returns what its results have chosen, -1 for those that want logits."""
        return _step(submitted).chosen()

    def logits(self, submitted: Submitted, i: int = 0) -> Floats:
        """Waits for a step and returns the logits (V,) of its result i, which wanted them."""
        return _step(submitted).logits_of(i)

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""
        self._runner.settle()

    def prepare(self, width: int, n_results: int = 1) -> None:
        """Records steps of a width, as `Program.prepare` does."""
        for rank in self.ranks:
            rank.prepare(width, n_results)

    def close(self) -> None:
        """Ends what runs the steps; the devices stay open."""
        self._runner.close()

    @property
    def n_in_turn(self) -> int:
        """Steps that run at the same time, each on another device."""
        return self._runner.n_in_turn

    @property
    def n_sequences(self) -> int:
        """How many sequences steps may be of."""
        return self.plan.n_sequences

    @property
    def window(self) -> int:
        """The longest window of its layers; 0 if they see the whole context."""
        return longest_window(self.spec)

    @property
    def states(self) -> dict[int, Buffer]:
        """The states of each layer that has one, on whichever device."""
        return {number: buffer for rank in self.ranks for number, buffer in rank.states.items()}

    @property
    def cache_types(self) -> tuple[str, str]:
        """How keys and values are cached: "f16" or "q8_0" each."""
        return self.ranks[0].cache_types


def _step(submitted: Submitted) -> GroupStep:
    assert isinstance(submitted, SubmittedToGroup) and submitted.step is not None
    return submitted.step
