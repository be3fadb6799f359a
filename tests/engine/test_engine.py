"""The engine in process: tokens against the reference, reuse of the cache, seeds, limits and cancels."""

from collections.abc import Iterator

import numpy as np
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, reference, write_random_model

from vkllm.engine import engine as engine_module
from vkllm.engine.engine import Engine
from vkllm.engine.request import Event, Failed, Finished, Request, SamplingParams, Token
from vkllm.errors import ContextOverflow, NoDevice

pytestmark = pytest.mark.gpu

PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, TINY_SPEC.n_vocab, 20))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    formats = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, formats)
    progress: list[tuple[int, int]] = []
    try:
        made = Engine(engine_config(path, TINY_SPEC), lambda done, total: progress.append((done, total)))
    except NoDevice as error:
        pytest.skip(str(error))
    assert progress[-1][0] == progress[-1][1] > 0
    made.path = path  # type: ignore[attr-defined]
    yield made
    made.close()


def run(engine: Engine, prompt: tuple[int, ...] = PROMPT, stop: frozenset[int] = frozenset(), **options) -> list[Event]:
    engine.submit(Request(1, prompt, SamplingParams(**options), stop))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def test_greedy_tokens_are_those_of_the_reference_on_both_paths(engine: Engine) -> None:
    oracle = reference(engine_config(engine.path, TINY_SPEC))
    logits, expected = oracle.run(list(PROMPT))[-1], []
    for _ in range(12):
        expected.append(int(np.argmax(logits)))
        logits = oracle.run(expected[-1:])[-1]
    assert tokens(run(engine, temperature=0, max_tokens=12)) == expected
    assert tokens(run(engine, temperature=0, max_tokens=12, logprobs=0)) == expected


def test_the_same_seed_gives_the_same_tokens_whatever_ran_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 20}
    first = tokens(run(engine, **options))
    run(engine, PROMPT[::-1], temperature=0, max_tokens=3)
    monkeypatch.setattr(engine_module, "MIN_CHUNK", 3)
    monkeypatch.setattr(engine_module, "CHUNK_S", 0.0)
    assert tokens(run(engine, **options)) == first
    assert tokens(run(engine, **options | {"seed": 6})) != first


def test_a_prompt_that_continues_the_last_one_is_not_run_again(engine: Engine) -> None:
    run(engine, PROMPT[::-1], temperature=0, max_tokens=1)
    events = run(engine, temperature=0, max_tokens=10)
    stats = events[-1].stats
    assert (stats.n_prompt, stats.n_cached, stats.n_generated) == (20, 0, 10)
    longer = PROMPT + tuple(tokens(events)) + (1, 2, 3)
    fresh = tokens(run(engine, longer, temperature=0, max_tokens=8))
    again = run(engine, longer, temperature=0, max_tokens=8)
    assert 29 <= again[-1].stats.n_cached <= 32 and tokens(again) == fresh
    run(engine, PROMPT[::-1], temperature=0, max_tokens=1)
    assert tokens(run(engine, longer, temperature=0, max_tokens=8)) == fresh, "without the cache it is the same"


@pytest.mark.parametrize("greedy_on_gpu", [True, False])
def test_a_stop_token_is_the_last_one(engine: Engine, greedy_on_gpu: bool) -> None:
    logprobs = None if greedy_on_gpu else 0
    plain = tokens(run(engine, temperature=0, max_tokens=10, logprobs=logprobs))
    stop = plain[4]
    events = run(engine, stop=frozenset({stop}), temperature=0, max_tokens=10, logprobs=logprobs)
    assert tokens(events) == plain[: plain.index(stop) + 1]
    assert isinstance(events[-1], Finished) and events[-1].reason == "stop"
    ignored = run(engine, stop=frozenset({stop}), temperature=0, max_tokens=10, ignore_eos=True, logprobs=logprobs)
    assert tokens(ignored) == plain and ignored[-1].reason == "length"


def test_the_context_ends_the_answer(engine: Engine) -> None:
    events = run(engine, PROMPT * 12, temperature=0)
    assert len(tokens(events)) == 256 - 240 and events[-1].reason == "length"


def test_a_prompt_that_does_not_fit_says_both_numbers(engine: Engine) -> None:
    (event,) = run(engine, PROMPT * 13, temperature=0)
    assert isinstance(event, Failed) and isinstance(event.error, ContextOverflow)
    assert "260" in str(event.error) and "256" in str(event.error)


def test_cancelling_ends_a_running_and_a_waiting_request(engine: Engine) -> None:
    engine.submit(Request(1, PROMPT, SamplingParams(temperature=0), frozenset()))
    engine.submit(Request(2, PROMPT, SamplingParams(temperature=0), frozenset()))
    events: list[Event] = []
    while not tokens(events):
        events += engine.step()
    engine.cancel(2)
    events += engine.step()
    assert isinstance(events[-1], Finished) and events[-1].request_id == 2, "it need not wait for its turn"
    engine.cancel(1)
    while engine.has_work:
        events += engine.step()
    ended = {event.request_id: event for event in events if isinstance(event, Finished)}
    assert ended[1].reason == ended[2].reason == "cancelled"
    assert len(tokens(events)) < 4 and all(event.request_id == 1 for event in events if isinstance(event, Token))


def test_logprobs_are_those_of_the_reference(engine: Engine) -> None:
    events = run(engine, temperature=0, max_tokens=3, logprobs=4)
    logits = reference(engine_config(engine.path, TINY_SPEC)).run(list(PROMPT))[-1].astype(np.float64)
    wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    token = events[0]
    assert isinstance(token, Token) and token.logprob == pytest.approx(wanted[token.token_id], abs=2e-3)
    assert [t.token_id for t in token.top_logprobs] == list(np.argsort(-wanted)[:4])
