"""What is reported about a prompt without an answer: scores of its tokens, or its embedding.

Knows which rows of a prompt these are made of and how. Which chunks run when is the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vkllm.engine.events import Embedded, Event, Scores
from vkllm.engine.sequence import TokenSequence
from vkllm.gpu.program.hidden_states import HiddenStates
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.scoring import Scorer


class PromptRows:
    """Reads the rows of the last step. heads: of the programs of a model, those that compute logits."""

    def __init__(self, heads: Sequence[Program]) -> None:
        self._heads = heads
        self._scorer: Scorer | None = None
        self._hidden_states: HiddenStates | None = None

    def events(self, run: TokenSequence, start: int, end: int) -> list[Event]:
        """What there is to report after the rows start to end - 1 of its prompt have run. Raises DeviceError."""
        request, wanted = run.request, run.wanted_rows()
        first = max(start, run.n_reported)
        if first >= end:
            return []
        run.n_reported = end
        if request.score_from is not None:
            self._scorer = self._scorer or Scorer(self._heads)
            targets = request.prompt_token_ids[first + 1 : end + 1]
            return [Scores(request.id, tuple(self._scorer.score(first - start, targets)))]
        self._hidden_states = self._hidden_states or HiddenStates(self._heads[0])
        run.hidden_sum = run.hidden_sum + self._hidden_states.rows(first - start, end - start).sum(0, np.float64)
        if end < wanted.stop:
            return []
        # the mean has the direction of the sum, and the embedding has length 1
        length = np.linalg.norm(run.hidden_sum)
        return [Embedded(request.id, tuple((run.hidden_sum / (length or 1.0)).tolist()))]
