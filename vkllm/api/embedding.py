"""Embeddings: what is asked of the engine for a text, and what comes back, for threads and event loops alike.

It knows requests and events; texts become requests in prompts.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vkllm.engine.events import Embedded, Event, Failed, Finished
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request
from vkllm.errors import RequestError


@dataclass(frozen=True)
class Embedding:
    """The embedding of one text: d_model numbers, whose squares add up to 1. n_tokens: of the text."""

    vector: list[float]
    n_tokens: int


def embeddings(engine: EngineProcess, requests: Sequence[Request]) -> list[Embedding]:
    """Sends all requests at once and waits for all of them; an error or Ctrl-C cancels them all."""
    try:
        futures = [sent(engine, request) for request in requests]
        return [future.result() for future in futures]
    except BaseException:
        cancel(engine, requests)
        raise


async def async_embeddings(engine: EngineProcess, requests: Sequence[Request]) -> list[Embedding]:
    """As `embeddings`, for an event loop; cancelling the task that waits cancels the requests."""
    import asyncio  # who uses it has imported it; others need not wait for it

    is_cancelled = threading.Event()

    def send() -> list[Future[Embedding]]:
        futures = [sent(engine, request) for request in requests]
        if is_cancelled.is_set():  # meanwhile, when there was nothing to cancel
            cancel(engine, requests)
        return futures

    try:
        futures = await asyncio.to_thread(send)  # it may have to start a new engine
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    except BaseException:
        is_cancelled.set()
        cancel(engine, requests)
        raise


def sent(engine: EngineProcess, request: Request) -> Future[Embedding]:
    """Sends a request; the future gets its embedding, or the error that ended it."""
    future: Future[Embedding] = Future()
    future.set_running_or_notify_cancel()  # from now on only the engine can end it
    vector: list[float] = []

    def on_event(event: Event) -> None:
        match event:
            case Embedded():
                vector.extend(event.vector)
            case Finished(reason="cancelled"):
                future.set_exception(RequestError("the request was cancelled"))
            case Finished():
                future.set_result(Embedding(vector, len(request.prompt_token_ids)))
            case Failed(error=error):
                future.set_exception(error)

    engine.send(request, on_event)
    return future


def cancel(engine: EngineProcess, requests: Sequence[Request]) -> None:
    """Cancels requests unless they have ended."""
    for request in requests:
        engine.cancel(request.id)
