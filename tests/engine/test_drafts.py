"""Answers with drafts, right ones and wrong ones, are those without, whatever the caches keep."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fake_program
import numpy as np
import pytest
from fake_program import N_VOCAB, Fake, FakeProgram, Session, request
from hypothesis import given, settings
from hypothesis import strategies as st
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from running import run

from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.engine.sampler import Floats, Sampler, pick
from vkllm.engine.scheduler import MOST_ROWS
from vkllm.engine.speculation.drafter import Speculation
from vkllm.engine.speculation.gain import DraftLengths
from vkllm.errors import NoDevice
from vkllm.gpu.program.step import WIDTHS, Draw, Part

MODELS = {
    "plain": Fake(),
    "windows": Fake(n_blocks=20, window=40, n_window_blocks=24),
    "states": Fake(n_blocks=20, n_state_slots=24),
    "few slots": Fake(n_state_slots=6, n_sequences=1),
    "both, few blocks": Fake(n_blocks=17, window=10, n_window_blocks=24, n_state_slots=24),
}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.0, "seed": 3, "top_k": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logprobs": 2},
]
"""Of the requests for each text; the CPU chooses the tokens of the last one."""


class Guesses(Speculation):
    """Drafts the answers that it was given, with mistakes. share: of the tokens that are right."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], share: float, seed: int) -> None:
        super().__init__((1, 2, 4, 8, 16, 32))
        self._answers, self._share, self._dice = answers, share, random.Random(seed)

    def drafter(  # type: ignore[override]
        self, origin: str, prompt_token_ids: Sequence[int], *, has_head: bool = True
    ) -> Guesser:
        return Guesser(self._answers[tuple(prompt_token_ids)], self._share, self._dice)


class Guesser:
    """Drafts one answer."""

    head = None

    def __init__(self, answer: list[int], share: float, dice: random.Random) -> None:
        self._answer, self._share, self._dice = answer, share, dice
        self._n = 0
        self._wants = True

    def catch_up(self) -> None:
        pass

    def append(self, token_id: int) -> None:
        assert token_id == self._answer[self._n], "a wrong token"
        self._n += 1
        self._wants = self._dice.random() < 0.7

    def n_worthwhile(self, most: int, n_rows: int) -> int:
        return max(min(most, 32 - n_rows), 0) if self._wants else 0

    def n_predicted(self, most: int) -> int:
        return 0

    def draft(self, most: int, n_rows: int, constraint: None = None, *, waits: bool = False) -> list[int]:
        most = min(self._dice.randrange(9), self.n_worthwhile(most, n_rows))
        right = (self._answer[self._n :] + 31 * [1])[:most]
        return [token if self._dice.random() < self._share else self._dice.randrange(1, N_VOCAB) for token in right]


def alone(model: Fake, wanted: Request) -> list[int]:
    """The answer of a program without drafts that nobody else uses."""
    session = Session(model)
    session.run(wanted)
    return session.tokens(wanted.id)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([*MODELS]),
    prompts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 130), st.integers(1, 60)), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_answers_with_drafts_are_those_without(
    name: str, prompts: list[tuple[int, int, int]], share: float, seed: int
) -> None:
    model = MODELS[name]
    texts = [np.random.default_rng(i).integers(1, N_VOCAB, 130).tolist() for i in range(3)]
    wanted = [request(i, texts[text][:n_prompt], n, **OPTIONS[text]) for i, (text, n_prompt, n) in enumerate(prompts)]
    answers = {
        each.prompt_token_ids: alone(model, request(0, each.prompt_token_ids, 60, **OPTIONS[text]))
        for each, (text, _, _) in zip(wanted, prompts, strict=True)
    }
    session = Session(model, speculation=Guesses(answers, share, seed))
    session.run(*wanted)
    session.check_nothing_is_lost()
    for each in wanted:
        end, got = session.end(each.id), session.tokens(each.id)
        assert isinstance(end, Finished) and got == answers[each.prompt_token_ids][: len(got)]
        assert len(got) == each.params.max_tokens or got[-1] == 0
        assert end.stats.n_accepted <= end.stats.n_drafted and (share > 0 or end.stats.n_accepted < 4)
    after = [request(100 + i, [*each.prompt_token_ids, *session.tokens(each.id)], 3) for i, each in enumerate(wanted)]
    session.batching._speculation = None
    session.run(*after)
    for each in after:
        assert session.tokens(each.id) == alone(model, each), "what drafts leave in the caches is what belongs there"


@pytest.mark.parametrize("name", ["plain", "states"])
def test_right_drafts_take_fewer_steps(name: str) -> None:
    wanted = request(0, [5, 6, 7], 60)
    answer = alone(MODELS[name], wanted)
    session = Session(MODELS[name], speculation=Guesses({(5, 6, 7): answer}, 1.0, 3))
    session.run(wanted)
    end = session.end(0)
    assert isinstance(end, Finished) and len(session.program.steps) < len(answer) * 0.7
    assert end.stats.n_accepted == end.stats.n_drafted > 20


class Repeating(FakeProgram):
    """Says the same ten tokens again and again."""

    def _run(self, part: Part, tokens: list[int], logits: list[Floats]) -> None:
        end = part.position + len(part.tokens)
        for position, result in zip(range(end - len(part.results), end), part.results, strict=True):
            self._choose(part, result, 1 + position % 10, tokens, logits)


def test_what_is_recorded_for_the_first_drafts_is_not_held_against_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a quick device, recordings for the first steps of a width, one for each slot, take longer than these."""
    monkeypatch.setattr(fake_program, "FakeProgram", Repeating)
    session = Session(Fake(step_s=0.001, record_s=0.01), speculation=Speculation(WIDTHS))
    session.run(request(0, [1 + i % 10 for i in range(-1, 40)], 300))
    assert session.tokens(0) == [1 + i % 10 for i in range(40, 340)]
    assert len(session.program.steps) < 60


def test_drafts_leave_others_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pay: of three that decode each goes on, and a prompt that comes runs at once."""
    model, n = Fake(), 200
    prompts = [tuple(range(first, first + 20)) for first in (1, 101, 201, 301)]
    answers = {prompt: alone(model, request(0, list(prompt), n)) for prompt in prompts}

    def draft_all(
        guesser: Guesser, most: int, n_rows: int, constraint: None = None, *, waits: bool = False
    ) -> list[int]:
        return guesser._answer[guesser._n :][: max(most, 0)]

    monkeypatch.setattr(Guesser, "draft", draft_all)
    session = Session(model, speculation=Guesses(answers, 1.0, 3))
    for i in range(3):
        session.submit(request(i, list(prompts[i]), n))
    while not all(session.tokens(i) for i in range(3)):
        session.step()
    n_before = len(session.program.steps)
    session.submit(request(3, list(prompts[3]), n))
    session.run()
    assert all(session.tokens(i) == answers[prompts[i]] for i in range(4))
    steps = session.program.steps[n_before:]
    assert any(max(len(part.tokens) for part in parts) > 15 for parts in steps), "drafts take what is free"
    start = next(i for i, parts in enumerate(steps) if any(part.position == 0 for part in parts))
    assert start <= 1 and all(sum(len(part.tokens) for part in parts) <= MOST_ROWS for parts in steps)
    for i in range(start, start + 6):  # while one step runs, the next one is of those that are not in it
        assert len({part.sequence for parts in steps[i : i + 2] for part in parts}) == 4


class ChanceProgram(FakeProgram):
    """The logits behind a token follow from it alone, and each row draws from them as the GPU does."""

    def _run(self, part: Part, tokens: list[int], logits: list[Floats]) -> None:
        ids = [self._next_token[part.sequence] if token is None else token for token in part.tokens]
        for token, result in zip(ids[len(ids) - len(part.results) :], part.results, strict=True):
            assert result.draw is not None
            tokens.append(drawn(token, result.draw))
            self._next_token[part.sequence] = tokens[-1]


@cache
def numbers_of(token: int, draw: Draw) -> tuple[list[int], list[int]]:
    """Of the tokens that `pick` takes behind a token as the number grows: the last number of each but the last."""
    order = np.argsort(-LOGITS[token], kind="stable").tolist()

    def rank(number: int) -> int:
        return order.index(pick(LOGITS[token], replace(draw, number=number)))

    return [bisect_left(range(2**32), i + 1, key=rank) - 1 for i in range(7)], order


def drawn(token: int, draw: Draw) -> int:
    """What `pick` takes behind a token, quickly."""
    last, order = numbers_of(token % 8, replace(draw, number=0))
    return order[bisect_left(last, draw.number)]


LOGITS = np.random.default_rng(3).normal(0, 1.5, (8, 8)).astype(np.float32)


def test_tokens_that_are_drawn_behind_drafts_have_the_distribution_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 draws at temperature 0.8: chi-squared of what follows each of 8 tokens; and the same text as without."""
    monkeypatch.setattr(fake_program, "FakeProgram", ChanceProgram)
    wanted, answers, counts = [], {}, np.zeros((8, 8))
    for i in range(32):
        options = {"temperature": 0.8, "seed": i, "top_k": 8, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
        wanted.append(request(i, [100 + i, 3], 625, **options))
        sampler, answer, last = Sampler(wanted[-1].params, ()), [], 3
        for n in range(625):
            answer.append(drawn(last, sampler.draw(n)))
            counts[last, answer[-1]] += 1
            last = answer[-1]
        answers[wanted[-1].prompt_token_ids] = answer
        assert answer[0] == pick(LOGITS[3], sampler.draw(0)) and answer[9] == pick(LOGITS[answer[8]], sampler.draw(9))
    session = Session(Fake(n_blocks=1000, n_ctx=640), speculation=Guesses(answers, 0.6, 1))
    session.run(*wanted)
    ends = [session.end(each.id) for each in wanted]
    assert all(session.tokens(each.id) == answers[each.prompt_token_ids] for each in wanted)
    n_drafted, n_accepted = (sum(getattr(end.stats, name) for end in ends) for name in ("n_drafted", "n_accepted"))
    assert n_accepted > 3000 and n_drafted - n_accepted > 3000
    weights = np.exp(LOGITS.astype(np.float64) / 0.8)
    expected = weights / weights.sum(axis=1, keepdims=True) * counts.sum(axis=1, keepdims=True)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 94.5, "8 * 7 degrees of freedom exceed it once in a thousand times"


@pytest.mark.gpu
def test_an_engine_s_answers_are_the_same_with_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_random_model(tmp_path / "model.gguf", TINY_SPEC, {})
    prompt = tuple(int(t) for t in np.random.default_rng(3).integers(0, TINY_SPEC.n_vocab, 20))
    monkeypatch.setattr(DraftLengths, "best", lambda self, probabilities, n_rows=1, waits=False: len(probabilities))
    answers: dict[str, list[list[Token]]] = {}
    for spec in ("off", "auto"):
        config = engine_config(path, TINY_SPEC)
        try:
            engine = Engine(replace(config, options=replace(config.options, spec=spec)))
        except NoDevice as error:
            pytest.skip(str(error))
        n_accepted: list[int] = []
        # the second answer is drafted from the first
        for n_together, options in ((1, GREEDY), (1, DRAWN), (1, PENALIZED), (2, PENALIZED), (1, REPORTED)):
            for _ in range(2):
                requests = [
                    Request(i, prompt[i:], SamplingParams(max_tokens=32, **options), frozenset())
                    for i in range(n_together)
                ]
                events = run(engine, *requests)
                answers.setdefault(spec, []).extend(
                    [e for e in events if isinstance(e, Token) and e.request_id == request.id] for request in requests
                )
            ends = [event.stats for event in events if isinstance(event, Finished)]
            n_accepted.append(sum(stats.n_accepted for stats in ends))
            assert spec != "off" or not any(stats.n_drafted for stats in ends)
        engine.close()
    ids = {spec: [[token.token_id for token in answer] for answer in found] for spec, found in answers.items()}
    assert ids["off"] == ids["auto"] and min(n_accepted) > 10
    assert ids["off"][0] != ids["off"][4], "penalties have an effect"
    for off, drafted in zip(answers["off"][-1], answers["auto"][-1], strict=True):
        assert off.logprob is not None and drafted.logprob == pytest.approx(off.logprob, abs=1e-3)


GREEDY: dict[str, Any] = {"temperature": 0}
DRAWN: dict[str, Any] = {"temperature": 0.8, "seed": 3}
PENALIZED: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.5, "frequency_penalty": 0.3, "ignore_eos": True}
REPORTED: dict[str, Any] = {"temperature": 0.8, "seed": 4, "top_k": 0, "presence_penalty": 0.5, "logprobs": 2}
