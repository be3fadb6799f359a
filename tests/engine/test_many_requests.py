"""Many requests at once on a device: each gets the answer that it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from model_specs import HYBRID_SPEC, TINY_SPEC
from random_model import engine_config, write_random_model
from running import run, tokens

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Finished, Scores
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import NoDevice
from vkllm.gpu.program.program import Program
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

N_VOCAB = 300


@pytest.fixture(scope="module", params=[TINY_SPEC, HYBRID_SPEC], ids=["attention", "states"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    spec = request.param
    formats = dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", spec, formats)
    config = replace(engine_config(path, spec, 160), options=PlanOptions(n_parallel=6))
    try:
        made = Engine(config)
    except NoDevice as error:
        pytest.skip(str(error))
    yield made
    made.close()


def ids(seed: int, n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist())


def scores(events: list[Event]) -> list[float]:
    return [value for event in events if isinstance(event, Scores) for value in event.logprobs]


def test_each_gets_the_answer_that_it_gets_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, with the likelihoods of some on the CPU. On lavapipe a row is the same in steps of any width but for the
    last bits; these prompts' likeliest tokens are not that close."""
    rng = np.random.default_rng(1)
    requests = []
    for i in range(14):
        prompt = ids(i % 3, 100)[: int(rng.integers(0, 100))] + ids(100 + i, int(rng.integers(1, 45)))
        options = {"logprobs": 0} if i % 5 == 0 else {}
        params = SamplingParams(temperature=0, max_tokens=int(rng.integers(1, 14)), **options)
        requests.append(Request(i, prompt, params, frozenset()))
    n_parts: list[int] = []
    submit = Program.submit
    monkeypatch.setattr(
        Program, "submit", lambda self, parts, **options: n_parts.append(len(parts)) or submit(self, parts, **options)
    )
    events = run(engine, *requests)
    assert max(n_parts) >= 4
    assert engine._cache.pool.n_free == engine._cache.pool.n_blocks
    assert sum(event.stats.n_cached > 0 for event in events if isinstance(event, Finished)) >= 2
    for request in requests[::2]:
        engine._forget()
        assert tokens(run(engine, request), request.id) == tokens(events, request.id), request.id


def test_those_that_are_cancelled_leave_the_others_alone(engine: Engine) -> None:
    requests = [Request(i, ids(i, 30), SamplingParams(temperature=0, max_tokens=12), frozenset()) for i in range(5)]
    alone = tokens(run(engine, requests[4]), 4)
    engine._forget()
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
        for i in range(4):
            if len(tokens(events, i)) == 2 * i + 1:
                engine.cancel(i)
    ends = {event.request_id: event.reason for event in events if isinstance(event, Finished)}
    assert ends == {0: "cancelled", 1: "cancelled", 2: "cancelled", 3: "cancelled", 4: "length"}
    assert tokens(events, 4) == alone
    assert engine._cache.pool.n_free == engine._cache.pool.n_blocks


def test_scores_run_beside_answers(engine: Engine) -> None:
    answer = Request(1, ids(1, 30), SamplingParams(temperature=0, max_tokens=12), frozenset())
    scored = Request(2, ids(2, 60), SamplingParams(), frozenset(), score_from=20)
    alone, expected = tokens(run(engine, answer), 1), scores(run(engine, scored))
    engine._forget()
    events = run(engine, answer, scored)
    assert tokens(events, 1) == alone and scores(events) == pytest.approx(expected, abs=1e-3)
