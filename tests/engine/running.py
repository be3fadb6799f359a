"""Runs requests on an engine in this process, and picks from what comes of them."""

from __future__ import annotations

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Token
from vkllm.engine.requests import Request, StateQuery


def run(engine: Engine, *requests: Request | StateQuery) -> list[Event]:
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens(events: list[Event], request_id: int) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token) and event.request_id == request_id]
