"""Answers as their pieces come, for a thread that waits for them.

It knows engines and cancelling; how pieces are put together is `api/answer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NoReturn, Self

from vkllm.api.answer import AnswerText, Generation, OnToken, Piece
from vkllm.engine.process.handle import EngineProcess, not_copied


class Stream(Iterator[Piece]):
    """The pieces of one answer, as they come; `result()` is the whole of it.

    Closing a stream before its end, leaving its `with` block, dropping the last reference to it, or Ctrl-C
    while it waits cancels the request. Made by `LLM.stream`; to be used by one thread at a time.

    >>> with llm.stream("The capital of France is", max_tokens=2, temperature=0) as stream:
    ...     for piece in stream:
    ...         print(piece, end="")
     Paris.
    >>> stream.result().finish_reason
    'length'
    """

    def __init__(self, engine: EngineProcess, answer: AnswerText) -> None:
        """Sends the answer's request to the engine."""
        self._engine = engine
        self._answer = answer
        self._events = engine.submit(answer.request)

    def __repr__(self) -> str:
        return f"<Stream, {self._answer.state}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied("a Stream")

    def __next__(self) -> Piece:
        """The next piece. Raises DeviceLost and other errors of the engine."""
        while not self._answer.is_over:
            if (piece := self._advance()) is not None:
                return piece
        raise StopIteration

    def result(self) -> Generation:
        """The whole answer, once it has ended. After `close()` it is what had come until then."""
        while self._answer.generation is None:
            if self._answer.error is not None:
                raise self._answer.error
            self._advance()
        return self._answer.generation

    def consume(self, on_token: OnToken | None = None) -> Generation:
        """The whole answer; on_token is called with each piece. An error in it, or Ctrl-C, cancels the request."""
        with self:
            if on_token is not None:
                for piece in self:
                    on_token(piece)
            return self.result()

    def close(self) -> None:
        """Cancels the request unless it has ended. No pieces come after this."""
        if not self._answer.is_over:
            self._answer.is_over = True
            self._engine.cancel(self._answer.request.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _advance(self) -> Piece | None:
        """Waits for one event and returns the piece that it completes, if any."""
        try:
            event = self._engine.wait(self._events)
        except KeyboardInterrupt:
            self.close()
            raise
        piece = self._answer.push(event)
        if self._answer.is_stopped:
            self.close()
        return piece


def all_answers(engine: EngineProcess, answers: Sequence[AnswerText]) -> list[Generation]:
    """Sends all requests at once and waits for all answers; an error or Ctrl-C cancels all requests."""
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(engine, answer)) for answer in answers]
        return [stream.result() for stream in streams]
