"""A head for further tokens where sequences wait again, shift, are cancelled, or go on from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hybrid_models import HYBRIDS
from running import run, tokens
from test_heads import engine
from variant import write

from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Finished, StateAnswer
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, StateQuery
from vkllm.engine.scheduler import Scheduler
from vkllm.engine.speculation.heads import MOST_PREDICTED, Head, HeadGain

pytestmark = pytest.mark.gpu

N_VOCAB = 288


@pytest.fixture(autouse=True)
def always_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadGain, "n_predicted", lambda self, most: min(most, MOST_PREDICTED))
    monkeypatch.setattr(HeadGain, "begin", lambda self: True)


def request(number: int, n_prompt: int, n: int | None, **options: Any) -> Request:
    prompt = tuple(int(t) for t in np.random.default_rng(number).integers(0, N_VOCAB, n_prompt))
    params = SamplingParams(max_tokens=n, ignore_eos=True, **({"temperature": 0} | options))
    return Request(number, prompt, params, frozenset())


def ends(events: list[Event]) -> dict[int, Finished]:
    return {event.request_id: event for event in events if isinstance(event, Finished)}


def test_answers_are_the_same_where_sequences_wait_again_and_contexts_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.gguf", HYBRIDS["qwen35 that predicts with a head of its own"])
    put_back: list[int] = []
    put = Scheduler._put_back
    monkeypatch.setattr(Scheduler, "_put_back", lambda self, s: put_back.append(s.request.id) or put(self, s))
    requests = [
        request(1, 95, 36),
        request(2, 95, 36, temperature=1.0, seed=5),
        request(3, 250, 16, context_shift=True),
        request(4, 246, 16, context_shift=True, temperature=0.9, seed=3),
    ]
    plain = engine(path, "off")
    wanted = {each.id: tokens(run(plain, each), each.id) for each in requests}
    plain.close()
    drafted = engine(path, "mtp", n_parallel=None)
    assert drafted.plan.n_sequences > 1 and drafted.plan.n_blocks == 8, "five for each of the first two"
    for together in (requests, requests[2:3]):
        events = run(drafted, *together)
        assert all(tokens(events, each.id) == wanted[each.id] for each in together)
        assert put_back and ends(events)[3].stats.n_shifts and ends(events)[together[-1].id].stats.n_drafted > 5
    assert drafted._cache.pool.n_free == drafted._cache.pool.n_blocks
    drafted.close()


class Guesses:
    """What the head of an engine guesses for each request. begins: whether it reads new sequences."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begins = True
        self._found: list[list[int]] = []
        drafts = Head.drafts
        monkeypatch.setattr(HeadGain, "begin", lambda gain: self.begins)

        def spied(head: Head, *arguments: Any) -> list[int]:
            self._found.append(drafts(head, *arguments))
            return self._found[-1]

        monkeypatch.setattr(Head, "drafts", spied)

    def answer(self, engine: Engine, wanted: Request) -> tuple[list[int], list[list[int]]]:
        """The tokens of a request, and the guesses on the way."""
        self._found.clear()
        return tokens(run(engine, wanted), wanted.id), [*self._found]


def ask(engine: Engine, action: Literal["save", "load"], path: Path) -> tuple[int, ...]:
    """The tokens that are saved or loaded."""
    (done,) = run(engine, StateQuery(99, action, path))
    assert isinstance(done, StateAnswer)
    return done.token_ids


def arrays_of_head(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files if name.endswith(".2")]


def test_a_head_goes_on_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is in the file, as far as it has read the tokens; what it has not read is zeros, not earlier text."""
    path = write(tmp_path / "model.gguf", HYBRIDS["deepseek2 that predicts"])
    states = [tmp_path / f"{i}.state" for i in range(4)]
    guesses, drafted, without = Guesses(monkeypatch), engine(path, "mtp"), engine(path, "off")
    wanted, other = request(1, 70, 8), request(3, 120, 3)
    text, _ = guesses.answer(drafted, wanted)
    cached = ask(drafted, "save", states[0])
    longer = Request(2, (*wanted.prompt_token_ids, *text, 5, 6), wanted.params, frozenset())
    expected = guesses.answer(drafted, longer)
    assert len(expected[1]) > 1
    drafted._forget()
    guesses.begins = False
    assert guesses.answer(drafted, wanted) == (text, [])
    assert ask(drafted, "save", states[1]) == cached
    read, unread = arrays_of_head(states[0]), arrays_of_head(states[1])
    assert len(read) == len(unread) > 0 and all(each.any() for each in read)
    assert not any(each.any() for each in unread)
    guesses.begins = True

    def guessed_from(state: Path) -> list[list[int]]:
        drafted._forget()
        guesses.answer(drafted, other)
        assert ask(drafted, "load", state) == cached
        if state == states[0]:
            assert ask(drafted, "save", states[3]) == cached and states[3].read_bytes() == state.read_bytes()
        answer, found = guesses.answer(drafted, longer)
        assert answer == expected[0]
        return found

    assert guessed_from(states[0]) == expected[1]
    of_zeros = guessed_from(states[1])
    assert of_zeros and of_zeros != expected[1]
    assert ask(without, "load", states[0]) == cached
    assert guesses.answer(without, longer) == (expected[0], [])
    without._forget()
    assert guesses.answer(without, wanted) == (text, [])
    assert ask(without, "save", states[2]) == cached and not arrays_of_head(states[2])
    assert guessed_from(states[2]) == of_zeros
    drafted.close()
    without.close()
