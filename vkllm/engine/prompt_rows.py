"""What is reported about a prompt without an answer: scores of its tokens, or its embedding.

Knows which rows of a prompt these are made of and how. Which chunks run when is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vkllm.engine.events import Embedded, Event, Scores
from vkllm.engine.sequence import TokenSequence
from vkllm.gpu.program.hidden_states import Floats, HiddenStates
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.scoring import Scorer
from vkllm.gpu.program.whole_texts import WholeTexts
from vkllm.model.pooling import Projection


class PromptRows:
    """Reads the rows of the last step. heads: of the programs of a model, those that compute logits. projection: what
    makes embeddings of pooled rows."""

    def __init__(self, heads: Sequence[Program], projection: Projection) -> None:
        self._heads = heads
        self._projection = projection
        self._scorer: Scorer | None = None
        self._hidden_states: HiddenStates | None = None

    def begin(self, n_rows: int) -> None:
        """Before `events` of a step that has just run. n_rows: of the step, if it is of several texts; else 0.

        Raises DeviceError.
        """
        if n_rows or self._hidden_states is not None:
            self._hidden_states = self._hidden_states or HiddenStates(self._heads[0])
            self._hidden_states.read(n_rows)

    def events(self, run: TokenSequence, start: int, end: int, first_row: int = 0) -> list[Event]:
        """What there is to report after the rows start to end - 1 of its prompt have run, from first_row of the step
        on. Raises DeviceError.
        """
        request, wanted = run.request, run.wanted_rows()
        first, last = max(start, run.n_reported), min(end, wanted.stop)
        if first >= last:
            return []
        run.n_reported = last
        if request.score_from is not None:
            self._scorer = self._scorer or Scorer(self._heads)
            targets = request.prompt_token_ids[first + 1 : end + 1]
            return [Scores(request.id, tuple(self._scorer.score(first - start, targets)))]
        self._hidden_states = self._hidden_states or HiddenStates(self._heads[0])
        for rows in self._hidden_rows(self._hidden_states, range(start - first_row, end), range(first, last)):
            run.hidden_sum = run.hidden_sum + rows.sum(0, np.float64)
        if last < wanted.stop:
            return []
        # the mean has the direction of the sum
        return [Embedded(request.id, tuple(self._projection(run.hidden_sum).tolist()))]

    def _hidden_rows(self, hidden_states: HiddenStates, of_step: range, wanted: range) -> Iterator[Floats]:
        """Some of the rows of the last step; of a text of several steps, those of one after the other."""
        if len(of_step) <= MAX_ROWS:
            yield hidden_states.rows(wanted.start - of_step.start, wanted.stop - of_step.start)
            return
        program = self._heads[0]
        assert isinstance(program, WholeTexts)
        for start in range(wanted.start // MAX_ROWS * MAX_ROWS, wanted.stop, MAX_ROWS):
            program.recall(start)
            yield hidden_states.rows(max(wanted.start - start, 0), min(wanted.stop - start, MAX_ROWS))
