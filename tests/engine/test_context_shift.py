"""A full context that goes on: the engine against runs that begin with the tokens that a shift leaves."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from model_specs import tiny_spec
from random_model import engine_config, write_random_model

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.engine.sequence import shifted
from vkllm.errors import NoDevice

pytestmark = pytest.mark.gpu

N_CTX, N_KEEP = 64, 5
SPEC = tiny_spec(n_layers=1)
PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, SPEC.n_vocab, 40))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    formats = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"), "Q8_0")
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", SPEC, formats)
    try:
        made = Engine(engine_config(path, SPEC, N_CTX))
    except NoDevice as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine_without_drafts(engine: Engine) -> Iterator[Engine]:
    """Its log-probabilities are equal to the last bit: a step that has drafts rounds otherwise than one of a token."""
    config = engine._config
    with closing(Engine(replace(config, options=replace(config.options, spec="off")))) as made:
        yield made


def run(
    engine: Engine, prompt: tuple[int, ...], n_keep: int = N_KEEP, stop: frozenset[int] = frozenset(), **options: float
) -> tuple[list[Token], Finished]:
    engine.submit(Request(1, prompt, SamplingParams(**options), stop, n_keep=n_keep))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    return [event for event in events if isinstance(event, Token)], events[-1]


def ids(tokens: list[Token]) -> list[int]:
    return [token.token_id for token in tokens]


def test_a_shift_keeps_the_beginning_and_the_newer_half() -> None:
    assert shifted(list(range(10)), 2) == [0, 1, 6, 7, 8, 9]
    assert shifted(list(range(9)), 2) == [0, 1, 6, 7, 8], "of an odd number the smaller half"
    assert shifted([1, 2, 3], 0) == [3]
    assert shifted([1, 2, 3], 2) == [1, 2], "there is always room for a token more"


@pytest.mark.parametrize("n_keep", [0, 1, N_KEEP, len(PROMPT)])
@pytest.mark.parametrize("logprobs", [None, 3], ids=["on the GPU", "on the CPU"])
def test_a_shifted_answer_is_that_to_the_shifted_tokens(
    request: pytest.FixtureRequest, n_keep: int, logprobs: int | None
) -> None:
    engine: Engine = request.getfixturevalue("engine" if logprobs is None else "engine_without_drafts")
    options = {"temperature": 0, "logprobs": logprobs}
    got, finished = run(engine, PROMPT, n_keep, max_tokens=100, context_shift=True, **options)
    assert len(got) == 100 and finished.reason == "length"
    sequence, rest, n_shifts = list(PROMPT), got, 0
    while True:
        room = N_CTX - len(sequence)
        run(engine, PROMPT[::-1], temperature=0, max_tokens=1)  # so that nothing is cached
        fresh, ended = run(engine, tuple(sequence), temperature=0, logprobs=logprobs)
        assert ended.reason == "length" and len(fresh) == room
        assert fresh[: len(rest)] == rest[:room], f"after {n_shifts} shifts"  # log-probabilities and all
        if len(rest) <= room:
            break
        sequence, rest, n_shifts = shifted([*sequence, *ids(rest[:room])], n_keep), rest[room:], n_shifts + 1
        assert sequence[:n_keep] == list(PROMPT[:n_keep])
    assert finished.stats.n_shifts == n_shifts >= 2
    assert (finished.stats.n_prompt, finished.stats.n_generated) == (len(PROMPT), 100)


def test_drawn_answers_shift_alike_on_the_gpu_and_the_cpu_and_every_time(engine: Engine) -> None:
    options = {"temperature": 1.2, "seed": 4, "max_tokens": 80, "context_shift": True}
    tokens, finished = run(engine, PROMPT, **options)
    assert finished.stats.n_shifts > 0 and len(set(ids(tokens))) > 10
    on_cpu, _ = run(engine, PROMPT, logprobs=0, **options)
    assert ids(on_cpu) == ids(tokens) == ids(run(engine, PROMPT, **options)[0])


def test_without_the_wish_a_full_context_ends_the_answer(engine: Engine) -> None:
    tokens, finished = run(engine, PROMPT, temperature=0, max_tokens=100)
    assert (len(tokens), finished.reason, finished.stats.n_shifts) == (N_CTX - len(PROMPT), "length", 0)


def test_an_answer_that_just_fits_is_not_shifted(engine: Engine) -> None:
    room = N_CTX - len(PROMPT)
    tokens, finished = run(engine, PROMPT, temperature=0, max_tokens=room, context_shift=True)
    assert (len(tokens), finished.reason, finished.stats.n_shifts) == (room, "length", 0)


def test_a_stop_token_ends_an_answer_after_a_shift(engine: Engine) -> None:
    options = {"temperature": 1.2, "seed": 4, "context_shift": True}
    plain = ids(run(engine, PROMPT, max_tokens=60, **options)[0])
    room = N_CTX - len(PROMPT)
    stop = next(token for token in plain[room + 3 :] if token not in plain[: room + 3])
    tokens, finished = run(engine, PROMPT, stop=frozenset({stop}), **options)
    assert ids(tokens) == plain[: plain.index(stop) + 1]
    assert finished.reason == "stop" and finished.stats.n_shifts == 1


def test_what_a_shift_leaves_is_used_again_by_a_prompt_that_begins_with_it(engine: Engine) -> None:
    tokens, finished = run(engine, PROMPT, temperature=0, max_tokens=N_CTX - len(PROMPT) + 4, context_shift=True)
    assert finished.stats.n_shifts == 1
    left = shifted([*PROMPT, *ids(tokens)[:-4]], N_KEEP)
    _, again = run(engine, (*left, *ids(tokens)[-4:], 7), temperature=0, max_tokens=1)
    assert again.stats.n_cached == len(left) + 3, "all but the last token, which no step has run"
