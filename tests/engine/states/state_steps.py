"""What tests of saved states do with an engine of a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from model_specs import TINY_SPEC

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Failed, Finished, StateAnswer, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, StateQuery
from vkllm.errors import VkllmError

PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, TINY_SPEC.n_vocab, 70))
FORMATS = dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
TYPES = [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16")]

MakeEngine = Callable[..., Engine]


def run(engine: Engine, *requests: Request | StateQuery) -> list[Event]:
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def request(prompt: tuple[int, ...], max_tokens: int = 8, request_id: int = 1) -> Request:
    return Request(request_id, prompt, SamplingParams(temperature=0, max_tokens=max_tokens), frozenset())


def answer(engine: Engine, prompt: tuple[int, ...], max_tokens: int = 8) -> tuple[list[int], int]:
    """Greedy tokens, and how much of the prompt was cached."""
    events = run(engine, request(prompt, max_tokens))
    assert isinstance(events[-1], Finished)
    return [event.token_id for event in events if isinstance(event, Token)], events[-1].stats.n_cached


def save(engine: Engine, path: Path) -> tuple[int, ...]:
    (event,) = run(engine, StateQuery(2, "save", path))
    assert isinstance(event, StateAnswer), event
    return event.token_ids


def load(engine: Engine, path: Path) -> tuple[int, ...]:
    (event,) = run(engine, StateQuery(3, "load", path))
    assert isinstance(event, StateAnswer), event
    return event.token_ids


def error_of(engine: Engine, action: Any, path: Path) -> VkllmError:
    (event,) = run(engine, StateQuery(4, action, path))
    assert isinstance(event, Failed) and event.request_id == 4, event
    assert "\n" not in str(event.error)
    return event.error
