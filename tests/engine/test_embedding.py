"""Embeddings in the engine: rows pooled as the reference does it, however they are cut into chunks or cached before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, reference, write_random_model

from vkllm.engine.chunks import ChunkLengths
from vkllm.engine.engine import Engine
from vkllm.engine.events import Embedded, Event, Failed, Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import ContextOverflow, NoDevice
from vkllm.gpu.program.program import Program
from vkllm.model.spec import Pooling

pytestmark = pytest.mark.gpu

TEXT = tuple(int(t) for t in np.random.default_rng(7).integers(0, TINY_SPEC.n_vocab, 256))
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")

# of a vector of length 1; keys and values in float16 (2^-12) change a row by some times that
BOUND = 2e-3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    formats = dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, formats)
    try:
        made = Engine(engine_config(path, TINY_SPEC))
    except NoDevice as error:
        pytest.skip(str(error))
    made.path = path  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.fixture(scope="module")
def hidden_states(engine: Engine) -> npt.NDArray[np.float64]:
    """The reference's rows of the whole text; a causal model's rows do not depend on what follows."""
    return reference(engine_config(engine.path, TINY_SPEC)).hidden_states(list(TEXT)).astype(np.float64)


def run(engine: Engine, request: Request) -> list[Event]:
    engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def embedding(engine: Engine, text: tuple[int, ...], pooling: Pooling = "mean") -> npt.NDArray[np.float64]:
    embedded, finished = run(engine, Request(1, text, SamplingParams(), frozenset(), pooling=pooling))
    assert isinstance(embedded, Embedded) and isinstance(finished, Finished)
    assert finished.reason == "length" and finished.stats.n_generated == 0 and finished.stats.n_prompt == len(text)
    return np.array(embedded.vector)


def answer(engine: Engine, prompt: tuple[int, ...]) -> tuple[list[int], int]:
    """Some greedy tokens, and how much of the prompt was cached."""
    *tokens, finished = run(engine, Request(1, prompt, SamplingParams(temperature=0, max_tokens=6), frozenset()))
    assert isinstance(finished, Finished)
    return [event.token_id for event in tokens if isinstance(event, Token)], finished.stats.n_cached


def wanted(hidden_states: npt.NDArray[np.float64], pooling: Pooling) -> npt.NDArray[np.float64]:
    row = {"mean": hidden_states.mean(axis=0), "cls": hidden_states[0], "last": hidden_states[-1]}[pooling]
    return row / np.sqrt(np.square(row).sum())


@pytest.mark.parametrize("n_tokens", [1, 2, 9, 70, 256])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_embedding_is_the_pooled_and_normalized_rows_of_the_reference(
    engine: Engine, hidden_states: npt.NDArray[np.float64], pooling: Pooling, n_tokens: int
) -> None:
    got = embedding(engine, TEXT[:n_tokens], pooling)
    assert np.abs(got - wanted(hidden_states[:n_tokens], pooling)).max() < BOUND
    assert abs(np.square(got).sum() - 1) < 1e-12


def test_poolings_differ_by_more_than_the_bound(hidden_states: npt.NDArray[np.float64]) -> None:
    mean, cls, last = (wanted(hidden_states[:70], pooling) for pooling in POOLINGS)
    assert min(np.abs(mean - cls).max(), np.abs(mean - last).max(), np.abs(cls - last).max()) > 50 * BOUND


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_rows", [3, 13, 64])
def test_it_is_the_same_in_any_chunks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, pooling: Pooling, n_rows: int
) -> None:
    whole = embedding(engine, TEXT[:100], pooling)
    engine._forget()
    monkeypatch.setattr(ChunkLengths, "n_rows", lambda self, *_: n_rows)
    assert np.allclose(embedding(engine, TEXT[:100], pooling), whole, rtol=0, atol=1e-12)  # sums in another order


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_is_the_same_where_the_beginning_is_cached(engine: Engine, pooling: Pooling) -> None:
    engine._forget()
    fresh = embedding(engine, TEXT[:50], pooling)
    answer(engine, TEXT[:40])
    assert np.array_equal(embedding(engine, TEXT[:50], pooling), fresh)
    assert np.array_equal(embedding(engine, TEXT[:50], pooling), fresh)


def test_the_last_row_alone_needs_no_cached_rows_again(engine: Engine) -> None:
    answer(engine, TEXT[:40])
    _, finished = run(engine, Request(1, TEXT[:50], SamplingParams(), frozenset(), pooling="last"))
    assert isinstance(finished, Finished) and finished.stats.n_cached >= 40
    _, finished = run(engine, Request(1, TEXT[:50], SamplingParams(), frozenset(), pooling="mean"))
    assert isinstance(finished, Finished) and finished.stats.n_cached == 0


def test_many_texts_share_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TEXT[i : i + n] for i, n in enumerate((9, 40, 1, 64, 33, 3, 70, 20, 5, 256, 12, 31))]
    asked = [(text, POOLINGS[i % 3]) for i, text in enumerate(texts)]
    engine._forget()
    alone = [embedding(engine, *each) for each in asked]
    engine._forget()
    monkeypatch.setattr(ChunkLengths, "n_rows", lambda self, *_: 256)
    monkeypatch.setattr(engine._batching.scheduler, "rows_apart", 8 * engine._program.rows_apart)
    submit, steps = Program.submit, []
    monkeypatch.setattr(Program, "submit", lambda self, parts, **how: steps.append(parts) or submit(self, parts, **how))
    for i, (text, pooling) in enumerate(asked):
        engine.submit(Request(i, text, SamplingParams(), frozenset(), pooling=pooling))
    found = {}
    while engine.has_work:
        found |= {event.request_id: event.vector for event in engine.step() if isinstance(event, Embedded)}
    assert all(np.allclose(found[i], vector, rtol=0, atol=BOUND) for i, vector in enumerate(alone))
    assert len(steps) <= 8 and any(part.n_padding for parts in steps for part in parts[:-1])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_answer_after_it_is_the_one_without_it(engine: Engine, pooling: Pooling) -> None:
    engine._forget()
    tokens, n_cached = answer(engine, TEXT[:30])
    assert n_cached == 0
    engine._forget()
    embedding(engine, TEXT[:25], pooling)
    assert answer(engine, TEXT[:30]) == (tokens, 1 if pooling == "cls" else 25), "its rows are cached"


def test_a_text_longer_than_the_context_says_both_numbers(engine: Engine) -> None:
    (event,) = run(engine, Request(1, (*TEXT, 1), SamplingParams(), frozenset(), pooling="mean"))
    assert isinstance(event, Failed) and isinstance(event.error, ContextOverflow)
    assert "257" in str(event.error) and "256" in str(event.error)


def test_it_can_be_cancelled_between_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkLengths, "n_rows", lambda self, *_: 8)
    engine.submit(Request(1, TEXT, SamplingParams(), frozenset(), pooling="mean"))
    assert [engine.step() for _ in range(3)] == [[], [], []]
    engine.cancel(1)
    (event,) = engine.step()
    assert isinstance(event, Finished) and event.reason == "cancelled" and not engine.has_work
