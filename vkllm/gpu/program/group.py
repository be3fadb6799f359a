"""A model on several devices, for the engine like a program on one.

Knows which device has what; how steps pass through them is `pipeline.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.kompute import Buffer
from vkllm.gpu.program.pipeline import Passage, Pipeline
from vkllm.gpu.program.program import Program, Submitted
from vkllm.gpu.program.results import Floats, Place
from vkllm.gpu.program.step import Part
from vkllm.model.memory.memory_plan import MemoryPlan
from vkllm.model.memory.sequences import longest_window
from vkllm.model.spec import ModelSpec


@dataclass(frozen=True)
class SubmittedToGroup(Submitted):
    """A step on its way through a group. passage: the step."""

    passage: Passage | None = None


class ProgramGroup:
    """A loaded model whose layers lie on several devices. ranks: a program for each of them, in order.

    spec, plan: of the whole model. It is used as a Program is, from one thread.
    """

    def __init__(
        self, ranks: Sequence[Program], spec: ModelSpec, tensors: Mapping[str, TensorInfo], plan: MemoryPlan
    ) -> None:
        self.ranks = list(ranks)
        self.spec = spec
        self.tensors = tensors
        self.plan = plan
        self.n_blocks = plan.n_blocks
        self.moved_bytes = sum(rank.moved_bytes for rank in ranks)
        names = [f"{rank.device.info.name} (device {i} of {len(ranks)})" for i, rank in enumerate(ranks, 1)]
        self._pipeline = Pipeline(self.ranks, names)

    def submit(
        self, parts: Sequence[Part], *, is_prompt: bool = False, n_submits: int = 1, is_read: bool = False
    ) -> SubmittedToGroup:
        """Submits a step and returns at once, see `Program.submit`; any number of steps may be in flight. What goes
        wrong in it is raised by what waits for it. is_read has no effect: there is no head for further tokens."""
        passage, submitted_s = self._pipeline.submit(parts, is_prompt=is_prompt, n_submits=n_submits)
        return SubmittedToGroup(0, Place(), submitted_s, sum(len(part.tokens) for part in parts), passage)

    def predict(self, part: Part, *, goes_on: bool = False) -> Submitted:
        """There is no head for further tokens on several devices, so nobody asks for a guess."""
        raise AssertionError("a group has no head for further tokens")

    def wait(self, submitted: Submitted) -> None:
        """Waits for a step. Raises DeviceError, with the name of the device that failed."""
        _passage(submitted).wait()

    def tokens(self, submitted: Submitted) -> list[int]:
        """Waits for a step and returns what its results have chosen, -1 for those that want logits."""
        self.wait(submitted)
        return _passage(submitted).tokens

    def logits(self, submitted: Submitted, i: int = 0) -> Floats:
        """Waits for a step and returns the logits (V,) of its result i, which wanted them."""
        self.wait(submitted)
        return _passage(submitted).logits[i]

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""
        self._pipeline.settle()

    def prepare(self) -> None:
        """Records what the first answers need."""
        for rank in self.ranks:
            rank.prepare()

    def close(self) -> None:
        """Ends the threads; the devices stay open."""
        self._pipeline.close()

    @property
    def n_in_turn(self) -> int:
        """Steps that run at the same time, each on another device."""
        return len(self.ranks)

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


def _passage(submitted: Submitted) -> Passage:
    assert isinstance(submitted, SubmittedToGroup) and submitted.passage is not None
    return submitted.passage
