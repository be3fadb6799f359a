"""Steps of many requests, and what `engine/batching.py` asks of those that run them and report about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vkllm.engine.events import Event
from vkllm.engine.rows import Rows
from vkllm.engine.sampler import Floats
from vkllm.engine.sequence import TokenSequence
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.step import Part


class Steps(Protocol):
    """What runs the steps; `vkllm.gpu.program.program.Program` is the real one."""

    def submit(
        self, parts: Sequence[Part], *, is_prompt: bool = False, n_submits: int = 1, is_read: bool = False
    ) -> Submitted:
        """Submits a step and returns at once."""

    def predict(self, part: Part, *, goes_on: bool = False) -> Submitted:
        """Submits a guess of the head for further tokens."""

    def tokens(self, submitted: Submitted) -> list[int]:
        """Waits for a step; the tokens of all its results, -1 for those that want logits."""

    def logits(self, submitted: Submitted, i: int) -> Floats:
        """The logits (V,) of result i of a step."""


class ReportsRows(Protocol):
    """Reports about the rows of the last step; `vkllm.engine.prompt_rows.PromptRows` is the real one."""

    def begin(self, n_rows: int) -> None:
        """Before `events` of a step that has just run, of n_rows of several texts; 0: of one."""

    def events(self, run: TokenSequence, start: int, end: int, first_row: int = 0) -> list[Event]:
        """What there is to report after the rows start to end - 1 of a prompt have run, from first_row of a step on."""


@dataclass(frozen=True)
class Step:
    """A step in flight. doing: for the error if the device is lost in it."""

    rows: list[Rows]
    submitted: Submitted
    doing: str

    @property
    def n_rows(self) -> int:
        return sum(part.n_rows + part.n_padding for part in self.rows)

    @property
    def is_chunk(self) -> bool:
        """Whether it is of one prompt only."""
        return len(self.rows) == 1 and self.rows[0].is_prompt
