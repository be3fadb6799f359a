"""Kernels are timed between requests, at the depth asked for, and requests then go on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fake_engine as fake
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm import LLM, ContextOverflow, InvalidParameter, OutOfDeviceMemory
from vkllm.engine.engine import Engine
from vkllm.engine.events import Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.prefix_cache import Held
from vkllm.engine.requests import Request
from vkllm.gpu.measure import kernel_times, timing

N_CTX = 200


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    for module in (timing, kernel_times):
        monkeypatch.setattr(module, "MEASURE_S", 0.002)
    formats = dict.fromkeys(("attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    made = Engine(engine_config(write_random_model(tmp_path / "model.gguf", TINY_SPEC, formats), TINY_SPEC, N_CTX))
    yield made
    made.close()


def submit(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    engine.submit(Request(1, tuple(range(40)), params, frozenset()))


def answer(engine: Engine) -> list[int]:
    """The tokens of a prompt's answer."""
    events = []
    while engine.has_work:
        events += engine.step()
    return [event.token_id for event in events if isinstance(event, Token)]


@pytest.mark.gpu
def test_a_request_answers_the_same_before_and_after(engine: Engine) -> None:
    submit(engine)
    before = answer(engine)
    for n_rows, n_depth in ((1, 25), (8, 25), (1, 0)):
        times = engine.measure_kernels(n_rows, n_depth)
        assert (times.n_rows, times.n_depth) == (n_rows, n_depth)
        assert times.product_flops_per_s > 0
        submit(engine)
        assert answer(engine) == before


@pytest.mark.gpu
def test_the_cache_is_filled_to_the_depth_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[tuple[int, int]] = []
    run_chunk = engine._run_chunk

    def recorded(held: Held, token_ids: list[int], start: int) -> None:
        chunks.append((start, len(token_ids)))
        run_chunk(held, token_ids, start)

    monkeypatch.setattr(engine, "_run_chunk", recorded)
    engine.measure_kernels(1, 90)
    starts, ends = zip(*chunks, strict=True)
    assert (starts, ends[-1]) == ((0, *ends[:-1]), 90)
    engine.measure_kernels(8, 90)
    engine.measure_kernels(1, 30)
    assert len(chunks) == len(starts)


@pytest.mark.gpu
def test_a_step_that_cannot_be_is_refused_and_a_running_request_goes_on(engine: Engine) -> None:
    for n_rows, n_depth in ((0, 0), (513, 0), (1, -1)):
        with pytest.raises(InvalidParameter, match="there is no step of"):
            engine.measure_kernels(n_rows, n_depth)
    engine.measure_kernels(8, N_CTX - 8)
    with pytest.raises(ContextOverflow, match=f"longer than the context of {N_CTX} tokens"):
        engine.measure_kernels(9, N_CTX - 8)
    submit(engine)
    with pytest.raises(InvalidParameter, match="is answering a request"):
        engine.measure_kernels(1, 0)
    assert len(answer(engine)) == 8


def test_llm_hands_on_what_the_engine_measured_or_why_it_cannot(fake_llm: Callable[..., LLM]) -> None:
    times = fake_llm().measure_kernels(4, 30)
    assert (times.n_rows, times.n_depth, times.step_s, times.sum_s) == (4, 30, 0.04, 0.032)
    assert [kernel.work.kernel for kernel in times.kernels] == ["product", "choice"]
    full = fake_llm(device="full")
    with pytest.raises(OutOfDeviceMemory, match="no room"):
        full.measure_kernels()
    assert full.generate(chr(fake.SLOW) + "ab", max_tokens=2).text == "ab", "the engine goes on"
