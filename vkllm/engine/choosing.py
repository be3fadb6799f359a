"""How the tokens of sequences are chosen: by the GPU within a step, or by the CPU in threads of its own.

The GPU draws what it can. The CPU follows grammars, whose masks a step needs before it is submitted, and samples where
there are penalties, biases or log-probabilities. A sequence that waits for the CPU misses steps; the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from vkllm.engine.constraint import Constraint, Vocabulary
from vkllm.engine.events import Token
from vkllm.engine.sampler import Floats, logprobs
from vkllm.engine.sequence import TokenSequence
from vkllm.errors import InvalidParameter
from vkllm.gpu.program.step import Result

N_THREADS = min(8, os.cpu_count() or 1)

Chosen = list[Token | InvalidParameter] | Constraint
Job = Callable[[], Chosen]


class Choosing:
    """The CPU's work on the next tokens of sequences, several at once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._threads: ThreadPoolExecutor | None = None
        self._open: dict[Future[Chosen], TokenSequence] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything is not taken yet."""
        return bool(self._open)

    def prepare(self, sequence: TokenSequence, *, at_once: bool) -> None:
        """Makes the constraint of a sequence's answer. at_once: now, instead of in a thread."""
        grammar = sequence.request.grammar
        assert grammar is not None
        self._run(sequence, lambda: self._vocabulary.constraint(grammar), at_once)

    def result(self, sequence: TokenSequence, n: int, n_ahead: int = 0) -> Result:
        """What a step is to make of the row behind which the n-th token of an answer comes. n_ahead: drafts before that
        token, over which its constraint has looked ahead."""
        if sequence.needs_logits:
            return Result(wants_logits=True)
        draw = None if sequence.request.params.temperature == 0 else sequence.sampler.draw(n)
        return Result(draw, None if sequence.constraint is None else sequence.constraint.mask(n_ahead))

    def choose(self, sequence: TokenSequence, rows: Iterable[Floats], drafts: Sequence[int], *, at_once: bool) -> None:
        """Chooses the next tokens from logits (V,): of the row of the last known token, and of those of drafts behind
        it as far as the tokens before them are the drafts."""

        def job() -> list[Token | InvalidParameter]:
            constraint, params = sequence.constraint, sequence.request.params
            chosen: list[Token | InvalidParameter] = []
            for i, logits in enumerate(waiting):
                token_id = sequence.sampler.choose(logits, None if constraint is None else constraint.mask())
                if constraint is not None:
                    try:
                        constraint.accept(token_id)
                    except InvalidParameter as error:  # the tokens before it stay
                        return [*chosen, error]
                likely = () if params.logprobs is None else logprobs(logits, token_id, params.logprobs)
                chosen.append(Token(sequence.request.id, token_id, *likely))
                if [token_id] != [*drafts[i : i + 1]] or (constraint is not None and constraint.is_complete):
                    break
            return chosen

        waiting = rows if at_once else [*rows]  # later steps overwrite them
        self._run(sequence, job, at_once)

    def follow(self, sequence: TokenSequence, token_ids: Sequence[int], *, at_once: bool) -> None:
        """Lets the grammar of a sequence follow tokens that the GPU has chosen, as far as it goes."""

        def job() -> list[Token | InvalidParameter]:
            constraint = sequence.constraint
            taken: list[Token | InvalidParameter] = []
            assert constraint is not None
            for token_id in token_ids:
                try:
                    constraint.accept(token_id)
                except InvalidParameter as error:  # the tokens before it stay
                    return [*taken, error]
                taken.append(Token(sequence.request.id, token_id))
                if constraint.is_complete:
                    break
            return taken

        self._run(sequence, job, at_once)

    def taken(
        self, *, settle_s: float = 0.0, patience_s: float = 0.0
    ) -> list[tuple[TokenSequence, Chosen | InvalidParameter]]:
        """What is done since the last call. settle_s: how long to wait for all; patience_s: how long then for any."""
        if settle_s:
            wait(self._open, settle_s)
        done = [future for future in self._open if future.done()]
        if not done and patience_s:
            done = [*wait(self._open, patience_s, FIRST_COMPLETED).done]
        results: list[tuple[TokenSequence, Chosen | InvalidParameter]] = []
        for future in done:
            sequence = self._open.pop(future)
            sequence.choosing = None
            error = future.exception()
            if error is not None and not isinstance(error, InvalidParameter):
                raise error
            results.append((sequence, future.result() if error is None else error))
        return results

    def close(self) -> None:
        """Ends the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, sequence: TokenSequence, job: Job, at_once: bool) -> None:
        future: Future[Chosen]
        if at_once:
            future = Future()
            try:
                future.set_result(job())
            except InvalidParameter as error:
                future.set_exception(error)
        else:
            self._threads = self._threads or ThreadPoolExecutor(N_THREADS, "vkllm choosing")
            future = self._threads.submit(job)
        sequence.choosing = future
        self._open[future] = sequence
