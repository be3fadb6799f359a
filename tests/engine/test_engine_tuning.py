"""Tuning through the engine: refused while it answers, ended by what comes, and harmless to later requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import ENDLESS, TRIALS
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm import LLM, InvalidParameter
from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.gpu.tuning.cache import kept_tunings
from vkllm.gpu.tuning.search import Trial

PROMPT = tuple(range(7, 27))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKLLM_TUNING")
    formats = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    made = Engine(engine_config(write_random_model(tmp_path / "model.gguf", TINY_SPEC, formats), TINY_SPEC))
    yield made
    made.close()


def answer(engine: Engine) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt were cached."""
    engine.submit(Request(1, PROMPT, SamplingParams(temperature=0, max_tokens=8), frozenset()))
    events = []
    while engine.has_work:
        events += engine.step()
    (finished,) = [event for event in events if isinstance(event, Finished)]
    return [event.token_id for event in events if isinstance(event, Token)], finished.stats.n_cached


@pytest.mark.gpu
def test_answers_are_the_same_after_tuning_and_nothing_of_the_cache_is_believed(engine: Engine) -> None:
    tokens, _ = answer(engine)
    assert answer(engine) == (tokens, len(PROMPT) - 1)
    report = engine.tune(1.0, lambda trial: None, lambda: False)
    assert [kept.choice for kept in kept_tunings() or ()] == [report.choice]
    assert answer(engine) == (tokens, 0), "tuning has overwritten the cache"


@pytest.mark.gpu
def test_an_engine_that_answers_is_not_tuned(engine: Engine) -> None:
    engine.submit(Request(1, PROMPT, SamplingParams(temperature=0, max_tokens=8), frozenset()))
    for _ in range(3):
        with pytest.raises(InvalidParameter, match="the model is answering"):
            engine.tune(1.0, lambda trial: None, lambda: False)
        engine.step()


@pytest.mark.gpu
def test_an_interrupted_engine_answers_as_before(engine: Engine) -> None:
    tokens, _ = answer(engine)
    with pytest.raises(InvalidParameter, match="interrupted"):
        engine.tune(600.0, lambda trial: None, lambda: True)
    assert answer(engine) == (tokens, 0)


def test_trials_come_one_by_one_before_the_report(fake_llm: Callable[..., LLM]) -> None:
    llm = fake_llm()
    trials: list[Trial] = []
    report = llm.tune(8, trials.append)
    assert tuple(trials) == report.trials == TRIALS
    assert (report.device, report.seconds, report.choice.decode.size) == ("fake device", 4, 512)
    assert llm.tune().seconds == 15
    assert llm.generate([100, 11, 12], max_tokens=2).token_ids == [11, 12]


def test_a_request_ends_the_tuning_and_is_answered(fake_llm: Callable[..., LLM]) -> None:
    llm = fake_llm(device="slow steps")
    streams = []
    with pytest.raises(InvalidParameter, match="interrupted"):
        llm.tune(600, lambda trial: streams.append(llm.stream([100, 11, 12], max_tokens=2)))
    assert [stream.result().token_ids for stream in streams] == [[11, 12]] * len(TRIALS)


def test_a_model_that_answers_is_not_tuned(fake_llm: Callable[..., LLM]) -> None:
    llm = fake_llm()
    with llm.stream([ENDLESS, 11, 12], max_tokens=40) as stream:
        next(iter(stream))
        with pytest.raises(InvalidParameter, match="the model is answering"):
            llm.tune(600)


@pytest.mark.parametrize("budget_s", [0, -1, 3601, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused(fake_llm: Callable[..., LLM], budget_s: float) -> None:
    with pytest.raises(InvalidParameter, match=f"^budget_s must be a number between 1 and 3600, not {budget_s}$"):
        fake_llm().tune(budget_s)
