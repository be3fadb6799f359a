"""Which rows of a sequence a step has: what the scheduler decides, and what becomes of it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vkllm.engine.prefix_cache import Held
from vkllm.engine.sequence import TokenSequence
from vkllm.errors import counted


@dataclass(frozen=True)
class Rows:
    """Neighbouring rows of a sequence in a step. start: tokens before them. drafts: guessed tokens, whose rows follow
    that of the last known one. is_prompt: rows of a prompt, or of what is computed again. is_end: the last of these,
    behind which tokens are chosen. state_slot, stored, row_before, n_padding: as in `vkllm.gpu.program.step.Part`.
    are_predicted: whether the drafts are of the model's head."""

    sequence: TokenSequence
    held: Held
    start: int
    n_rows: int
    is_prompt: bool
    is_end: bool
    state_slot: int | None
    stored: Mapping[int, int]
    drafts: tuple[int, ...] = ()
    are_predicted: bool = False
    row_before: int | None = None
    n_padding: int = 0

    @property
    def n_results(self) -> int:
        """Rows behind which a token is chosen."""
        return self.n_rows if not self.is_prompt else int(self.is_end and self.sequence.request.is_answered)


def doing_of(rows: list[Rows]) -> str:
    """What a step does, in words of an error."""
    part, n_rows = rows[0], sum(part.n_rows for part in rows)
    if len(rows) > 1:
        return f"running a step of {len(rows)} requests ({counted(n_rows, 'token')})"
    if not part.is_prompt:
        return f"running a token of an answer at position {part.start}"
    if part.is_end and part.n_results:
        return f"running the end of a prompt ({counted(n_rows, 'token')}) at position {part.start}"
    return f"running {counted(n_rows, 'token')} of a prompt from position {part.start} on"
