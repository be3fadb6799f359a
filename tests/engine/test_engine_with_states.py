"""Engines of models with states: whatever is used again, the answer is that of a run from the beginning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_specs import HYBRID_SPEC
from random_model import engine_config, reference, write_random_model

from vkllm.engine.chunks import ChunkLengths
from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Finished, Scores, StateAnswer, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, StateQuery
from vkllm.engine.sequence import shifted
from vkllm.errors import NoDevice
from vkllm.gpu.device.kompute import Device
from vkllm.model.memory.options import PlanOptions

pytestmark = pytest.mark.gpu

SPEC = HYBRID_SPEC
N_CTX = 200
PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, SPEC.n_vocab, 100))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", SPEC, {"ssm_out": "Q8_0"})


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    try:
        made = Engine(engine_config(path, SPEC, N_CTX))
    except NoDevice as error:
        pytest.skip(str(error))
    yield made
    made.close()


def events_of(engine: Engine, request: Request | StateQuery) -> list[Event]:
    engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def run(
    engine: Engine, prompt: tuple[int, ...], stop: frozenset[int] = frozenset(), **options: Any
) -> tuple[list[int], int]:
    """Greedy tokens, and how much of the prompt was cached."""
    options = {"max_tokens": 12} | options
    origin = options.pop("origin", "")
    request = Request(1, prompt, SamplingParams(temperature=0, **options), stop, origin=origin)
    events = events_of(engine, request)
    assert isinstance(events[-1], Finished), events
    return [event.token_id for event in events if isinstance(event, Token)], events[-1].stats.n_cached


def fresh(engine: Engine, prompt: tuple[int, ...], **options: Any) -> list[int]:
    """The answer of an empty cache; empties it again."""
    engine._forget()
    tokens, n_cached = run(engine, prompt, **options)
    engine._forget()
    assert n_cached == 0
    return tokens


def test_greedy_tokens_are_those_of_the_reference(engine: Engine, path: Path) -> None:
    oracle = reference(engine_config(path, SPEC))
    logits, expected = oracle.run(list(PROMPT))[-1], []
    for _ in range(12):
        expected.append(int(np.argmax(logits)))
        logits = oracle.run(expected[-1:])[-1]
    assert run(engine, PROMPT)[0] == expected == run(engine, PROMPT, logprobs=0)[0]


def test_a_prompt_goes_on_from_the_last_state_that_it_shares(engine: Engine) -> None:
    first = fresh(engine, PROMPT)
    assert run(engine, PROMPT) == (first, 0)
    assert run(engine, PROMPT) == (first, 64), "shortly before its end"
    assert run(engine, PROMPT) == (first, 96), "the last whole block that the two before shared"
    longer = (*PROMPT, *first, 5, 6)
    continued = fresh(engine, longer)
    run(engine, PROMPT)
    assert run(engine, longer) == (continued, 111), "behind the last token that was run"
    whole = (*PROMPT, *PROMPT)[:130]
    other = (*whole[:98], *PROMPT[:15])
    expected = fresh(engine, other)
    run(engine, whole)
    assert run(engine, other) == (expected, 0), "shortly before its end was behind that"
    third = (*whole[:98], 7, 8, 9)
    expected = fresh(engine, third)
    run(engine, whole)
    run(engine, other)
    assert run(engine, third) == (expected, 96), "the last whole block before the two before differed"


def test_an_answer_that_stops_while_steps_are_in_flight_can_be_continued(engine: Engine) -> None:
    whole = fresh(engine, PROMPT)
    stop = next(token for i, token in enumerate(whole) if i > 2 and token not in whole[:i])
    n = whole.index(stop) + 1
    longer = (*PROMPT, *whole[:n], 3, 4)
    expected = fresh(engine, longer)
    assert run(engine, PROMPT, frozenset([stop]))[0] == whole[:n]
    assert run(engine, longer) == (expected, 100 + n)


@pytest.mark.parametrize("n_steps", [1, 3, 6])
def test_a_cancelled_request_leaves_states_that_are_right(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, n_steps: int
) -> None:
    longer = (*PROMPT, 1, 2, 3)
    expected = fresh(engine, longer)
    monkeypatch.setattr(ChunkLengths, "n_rows", lambda self, *_: 40)
    engine.submit(Request(5, PROMPT, SamplingParams(temperature=0, max_tokens=30), frozenset()))
    for _ in range(n_steps):
        engine.step()
    engine.cancel(5)
    assert isinstance(engine.step()[-1], Finished) and not engine.has_work
    tokens, n_cached = run(engine, longer)
    assert tokens == expected and n_cached == min(40 * (n_steps + 1), 100), "two chunks were in flight"


def test_prompts_in_chunks_of_any_length_give_the_same_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fresh(engine, PROMPT)
    for n_rows in (7, 64):
        monkeypatch.setattr(ChunkLengths, "n_rows", lambda self, *_, n=n_rows: n)
        assert fresh(engine, PROMPT) == expected


def test_a_full_context_goes_on_with_what_a_shift_leaves(engine: Engine) -> None:
    options = {"max_tokens": 110, "context_shift": True}
    whole, _ = run(engine, PROMPT, **options)
    sequence = [*PROMPT, *whole[: N_CTX - len(PROMPT)]]
    rest = fresh(engine, tuple(shifted(sequence, 0)), max_tokens=8)
    assert whole[N_CTX - len(PROMPT) :][:8] == rest


def test_scores_are_the_same_with_and_without_the_cache(engine: Engine) -> None:
    def scores(score_from: int) -> list[float]:
        request = Request(1, PROMPT, SamplingParams(), frozenset(), score_from=score_from)
        return [value for event in events_of(engine, request) if isinstance(event, Scores) for value in event.logprobs]

    engine._forget()
    whole = scores(1)
    assert len(whole) == 99 and np.allclose(scores(70), whole[69:], atol=1e-3)


@pytest.mark.parametrize("n_devices", [1, 2])
def test_a_saved_state_goes_on_in_another_engine(engine: Engine, path: Path, tmp_path: Path, n_devices: int) -> None:
    """Also in one that has a part of each state on each of two devices."""
    tokens, _ = run(engine, PROMPT)
    (saved,) = events_of(engine, StateQuery(2, "save", tmp_path / "state"))
    assert isinstance(saved, StateAnswer) and len(saved.token_ids) == 111
    longer = (*PROMPT, *tokens, 5, 6)
    expected = run(engine, longer)
    with np.load(tmp_path / "state") as arrays:
        assert {name for name in arrays.files if name.startswith(("state.", "keys."))} == {
            "state.0",
            "keys.1",
            "state.2",
        }
    options = PlanOptions(devices=(Device().info.name,) * n_devices, split_mode="tensor" if n_devices > 1 else None)
    other = Engine(replace(engine_config(path, SPEC, N_CTX), options=options))
    run(other, PROMPT[::-1])
    (loaded,) = events_of(other, StateQuery(3, "load", tmp_path / "state"))
    assert isinstance(loaded, StateAnswer) and loaded.token_ids == saved.token_ids
    assert run(other, longer) == expected == (expected[0], 111)
    assert run(other, PROMPT)[0] == tokens
    events_of(other, StateQuery(4, "save", tmp_path / "other"))
    other.close()
    engine._forget()
    (loaded,) = events_of(engine, StateQuery(5, "load", tmp_path / "other"))
    assert isinstance(loaded, StateAnswer) and loaded.token_ids[:100] == PROMPT
    further = (*loaded.token_ids, 5, 6)
    again = run(engine, further)
    assert again == (fresh(engine, further), len(loaded.token_ids))
    assert expected[0] == fresh(engine, longer)


def test_kernels_are_timed_and_the_states_are_right_afterwards(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkllm.gpu.measure.kernel_times.MEASURE_S", 0.01)
    expected = fresh(engine, PROMPT)
    for n_rows in (1,):
        kernels = {time.work.kernel for time in engine.measure_kernels(n_rows, 40).kernels}
        assert {"convolution", "mamba2", "gated_norm"} <= kernels
        assert any(name.startswith("delta_net") for name in kernels)
    assert run(engine, PROMPT) == (expected, 0)
