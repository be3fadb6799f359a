"""The engine with a model on several devices, split by layers and by tensors: answers, scores, embeddings and states
are those of one device, and several requests keep all devices busy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_program import Fake, Session
from fake_program import request as fake_request
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from running import run, tokens

from vkllm.engine.engine import Engine
from vkllm.engine.events import Embedded, Event, Failed, Scores, StateAnswer
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import EngineConfig, Request, StateQuery
from vkllm.engine.rows import Rows
from vkllm.errors import DeviceLost, InvalidParameter, NoDevice
from vkllm.gpu.device.kompute import Device
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

STOP: frozenset[int] = frozenset()
PROMPT = tuple(np.random.default_rng(3).integers(0, TINY_SPEC.n_vocab, 40).tolist())


def split(config: EngineConfig, n_devices: int, mode: str) -> EngineConfig:
    names = (Device().info.name,) * n_devices
    return replace(config, options=PlanOptions(devices=names, split_mode=mode, n_parallel=4))


@pytest.fixture(scope="module", params=["layer", "tensor"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """A model on one device, and on two."""
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, {"ffn_up": "Q8_0"})
    try:
        one, two = (Engine(split(engine_config(path, TINY_SPEC), n, request.param)) for n in (1, 2))
    except NoDevice as error:
        pytest.skip(str(error))
    yield one, two
    one.close()
    two.close()


def test_requests_side_by_side_have_the_answers_of_one_device(engines: tuple[Engine, Engine]) -> None:
    def answers(engine: Engine) -> list[list[int]]:
        kinds = (
            {"temperature": 0},
            {"temperature": 1.0, "seed": 5},
            {"temperature": 0, "logprobs": 2},
            {"temperature": 0.7, "seed": 6, "repetition_penalty": 1.2},
        )
        requests = [
            Request(i, PROMPT[: 40 - 9 * i], SamplingParams(max_tokens=8, **kind), STOP) for i, kind in enumerate(kinds)
        ]
        events = run(engine, *requests)
        return [tokens(events, i) for i in range(len(kinds))]

    one, two = engines
    assert two.device_name.startswith("2 x ")
    wanted = answers(one)
    assert answers(two) == wanted and all(len(answer) == 8 for answer in wanted)


def test_scores_embeddings_and_saved_states_are_those_of_one_device(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    one, two = engines
    bound = 1e-5 if two._program.n_in_turn > 1 else 2e-3  # sums over ranks are rounded in another order

    def reported(engine: Engine, **wanted: object) -> Event:
        return run(engine, Request(1, PROMPT, SamplingParams(), STOP, **wanted))[0]  # type: ignore[arg-type]

    scores = [reported(engine, score_from=1) for engine in engines]
    assert isinstance(scores[0], Scores) and isinstance(scores[1], Scores)
    assert scores[1].logprobs == pytest.approx(scores[0].logprobs, abs=bound)
    found, wanted_vector = (reported(engine, pooling="mean") for engine in engines)
    assert isinstance(found, Embedded) and isinstance(wanted_vector, Embedded)
    assert np.allclose(found.vector, wanted_vector.vector, atol=bound / 10)
    greedy = SamplingParams(temperature=0, max_tokens=6)
    wanted = tokens(run(one, Request(1, PROMPT, greedy, STOP, origin="a")), 1)
    (saved,) = run(two, Request(2, PROMPT, greedy, STOP, origin="b"), StateQuery(3, "save", tmp_path / "s.npz", "b"))[
        -1:
    ]
    assert isinstance(saved, StateAnswer) and len(saved.token_ids) >= len(PROMPT)
    for engine in (one, two):  # a state of two devices is as good for one
        loaded, *events = run(
            engine, StateQuery(4, "load", tmp_path / "s.npz", "c"), Request(5, PROMPT, greedy, STOP, origin="c")
        )
        assert isinstance(loaded, StateAnswer), loaded
        assert tokens(events, 5) == wanted and events[-1].stats.n_cached == len(PROMPT) - 1


def test_what_one_device_alone_can_do_is_refused(engines: tuple[Engine, Engine]) -> None:
    with pytest.raises(InvalidParameter, match=r"several devices cannot be tuned; load it on one device \(-dev\)"):
        engines[1].tune(1.0, print, lambda: False)
    with pytest.raises(InvalidParameter, match="several devices cannot be timed kernel by kernel"):
        engines[1].measure_kernels(1, 0)


def test_a_lost_device_is_named_with_what_was_running(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise DeviceLost("it fell off the bus")

    two = engines[1]
    for how in ("submit", "send_piece"):
        monkeypatch.setattr(two._program.ranks[1], how, lost)
    message = r"2 x .*, running the end of a prompt \(.*\) at position .*\(device 2 of 2\): it fell off the bus"
    with pytest.raises(DeviceLost, match=message):
        events = run(two, Request(9, PROMPT, SamplingParams(max_tokens=1), STOP))
        assert not [event for event in events if isinstance(event, Failed)]


@pytest.mark.parametrize("n_in_turn", [2, 3])
def test_sequences_take_turns_so_that_every_device_has_a_step(n_in_turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six sequences that decode are shared by as many steps as there are devices, all of them in flight at once."""
    session = Session(Fake(n_blocks=200, n_sequences=6))
    batching = session.batching
    batching.scheduler.n_in_turn = batching._n_in_turn = n_in_turn
    for i in range(6):
        session.submit(fake_request(i, [i + 1] * 3, 12))
    steps: list[list[int]] = []
    most_in_flight = 0
    submit_step = batching._submit_step

    def noted(rows: list[Rows]) -> None:
        nonlocal most_in_flight
        if all(not part.is_prompt for part in rows):
            steps.append(sorted(part.sequence.request.id for part in rows))
        submit_step(rows)
        most_in_flight = max(most_in_flight, len(batching._in_flight))

    monkeypatch.setattr(batching, "_submit_step", noted)
    session.run()
    middle = steps[2 * n_in_turn : 5 * n_in_turn]
    assert {len(step) for step in middle} == {6 // n_in_turn}
    for i in range(0, len(middle), n_in_turn):
        assert sorted(number for step in middle[i : i + n_in_turn] for number in step) == list(range(6))
    assert most_in_flight == n_in_turn + 1
    assert all(len(session.tokens(i)) == 12 for i in range(6))
