"""What was cached for one origin is never used for another: neither a request's tokens nor a file's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from state_steps import PROMPT, request, run

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Failed, Finished, StateAnswer, Token
from vkllm.engine.requests import Request, StateQuery
from vkllm.errors import InvalidParameter
from vkllm.formats import state_file

pytestmark = pytest.mark.gpu


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def n_cached(events: list[Event]) -> int:
    assert isinstance(events[-1], Finished)
    return events[-1].stats.n_cached


def of(origin: str, **fields: object) -> Request:
    return replace(request(PROMPT), origin=origin, **fields)  # type: ignore[arg-type]


def test_a_request_reuses_only_what_is_of_its_origin(engine: Engine) -> None:
    engine._forget()
    first = run(engine, of("a"))
    for origin, n in (("a", 69), ("b", 0), ("b", 69), ("a", 69), ("", 0), ("", 69)):
        events = run(engine, of(origin))
        assert n_cached(events) == n, origin
        assert tokens_of(events) == tokens_of(first)


def test_scores_and_embeddings_reuse_only_what_is_of_their_origin(engine: Engine) -> None:
    for kind in ({"score_from": 60}, {"pooling": "last"}):
        engine._forget()
        run(engine, of("a"))
        assert n_cached(run(engine, of("b", **kind))) == 0
        assert n_cached(run(engine, of("b", **kind))) > 0


def test_a_state_serves_the_origin_that_loaded_it_and_no_other(engine: Engine, saved: Path, tmp_path: Path) -> None:
    right = tokens_of(run(engine, of("")))
    with np.load(saved) as arrays:
        header = arrays["header.json"]
        changed = {name: np.zeros_like(arrays[name]) if "keys" in name else arrays[name] for name in arrays.files}
        names = [name for name in arrays.files if name != state_file.HEADER]
    with state_file.writing(tmp_path / "poisoned") as file:
        file.header(json.loads(header))
        for name in names:
            file.array(name, changed[name])
    (event,) = run(engine, StateQuery(2, "load", tmp_path / "poisoned", "m"))
    assert isinstance(event, StateAnswer) and event.token_ids[:70] == PROMPT
    events = run(engine, of("m"))
    assert n_cached(events) == 69 and tokens_of(events) != right, "the file's keys were not used at all"
    run(engine, StateQuery(2, "load", tmp_path / "poisoned", "m"))
    engine._forget()
    events = run(engine, of(""))
    assert n_cached(events) == 0 and tokens_of(events) == right


def test_nobody_saves_what_is_of_another_origin(engine: Engine, tmp_path: Path) -> None:
    run(engine, of("a"))
    (event,) = run(engine, StateQuery(2, "save", tmp_path / "mine", "b"))
    assert isinstance(event, Failed) and isinstance(event.error, InvalidParameter)
    assert "nothing is cached that could be saved" in str(event.error) and not (tmp_path / "mine").exists()
    (event,) = run(engine, StateQuery(2, "save", tmp_path / "mine", "a"))
    assert isinstance(event, StateAnswer) and event.token_ids[:70] == PROMPT
