"""Answers with a grammar in the engine: valid whatever a random model wants, on both paths; others stay as they are."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from model_specs import tiny_spec
from random_model import engine_config, reference, write_random_model
from tiny_vocabularies import tiny_bpe, write_gguf

from vkllm.engine.constraint import Constraint, Words
from vkllm.engine.engine import Engine
from vkllm.engine.events import Event, Failed, Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, TokenTexts
from vkllm.errors import InvalidParameter, NoDevice
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import Result
from vkllm.text.grammar import answer_grammar
from vkllm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.gpu

SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 6},
        "n": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "kind": {"enum": ["hello", "world", None]},
    },
    "required": ["word", "n", "kind"],
    "additionalProperties": False,
}
JSON = answer_grammar(json_schema=json.dumps(SCHEMA))
OPEN_END = answer_grammar(regex="[ab]+")
SEED = 1
"""One with which the model goes on for some tokens."""
PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, 256, 20))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(write_gguf(tmp_path_factory.mktemp("vocabulary") / "tiny.gguf", tiny_bpe()))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Engine]:
    spec = tiny_spec(n_vocab=tokenizer.n_vocab)
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", spec, {"attn_q": "Q8_0"})
    config = engine_config(path, spec)
    try:
        made = Engine(config)
    except NoDevice as error:
        pytest.skip(str(error))
    made.learn(TokenTexts(tokenizer.answer_bytes(), tokenizer.stop_ids))
    made.config = config  # type: ignore[attr-defined]
    yield made
    made.close()


def run(
    engine: Engine,
    grammar: str | None,
    prompt: tuple[int, ...] = PROMPT,
    stop: frozenset[int] = frozenset(),
    **options: Any,
) -> list[Event]:
    engine.submit(Request(1, prompt, SamplingParams(**options), stop, grammar=grammar))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def ended(events: list[Event]) -> str:
    assert isinstance(events[-1], Finished)
    return events[-1].reason


@pytest.mark.parametrize("temperature", [0, 0.5, 1, 5])
def test_an_answer_is_valid_whatever_the_model_wants(engine: Engine, tokenizer: Tokenizer, temperature: float) -> None:
    validator, answers = Draft202012Validator(SCHEMA), set()
    for seed in range(6):
        events = run(engine, JSON, PROMPT[seed:], temperature=temperature, seed=seed, max_tokens=120)
        answers.add(tokenizer.decode(tokens(events), continues=True))
        assert ended(events) == "stop"
    for answer in answers:
        validator.validate(json.loads(answer))
    assert len(answers) > 1


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_grammar_that_takes_too_long_ends_its_own_request_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    may_end, n_masks, next_mask = threading.Event(), [0], Constraint._next_mask

    def waiting(self: Constraint) -> Words:
        n_masks[0] += 1
        assert n_masks[0] <= n_before or may_end.wait(120)
        return next_mask(self)

    run(engine, OPEN_END, max_tokens=1)  # makes the vocabulary
    limit = engine._vocabulary._limit
    with monkeypatch.context() as patch:
        patch.setattr(Constraint, "_next_mask", waiting)
        patch.setattr(limit, "_seconds", 0.1)
        *before, failed = run(engine, OPEN_END, seed=SEED)
    assert isinstance(failed, Failed) and "takes longer than 0.1 s" in str(failed.error)
    assert len(tokens(before)) == max(n_before - 1, 0), "the tokens of the masks in time"
    assert ended(run(engine, None, max_tokens=3)) == "length"
    [failed] = run(engine, OPEN_END)
    assert isinstance(failed, Failed) and "ask again later" in str(failed.error)
    may_end.set()
    for worker in limit._late:
        worker.join()
    assert ended(run(engine, OPEN_END, max_tokens=3)) in ("stop", "length")


@pytest.mark.parametrize("grammar", [JSON, OPEN_END], ids=["a schema", "an open end"])
@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"temperature": 2, "top_k": 64, "top_p": 1, "min_p": 0}])
def test_the_gpu_chooses_what_the_cpu_chooses(
    engine: Engine, tokenizer: Tokenizer, grammar: str, options: dict[str, float]
) -> None:
    stop = tokenizer.stop_ids
    for seed in range(5):
        chosen = run(engine, grammar, stop=stop, seed=seed, max_tokens=60, **options)
        # a penalty that changes no number also brings the logits to the CPU
        for cpu in ({"logprobs": 0}, {"presence_penalty": 1e-30, "penalty_window": -1}):
            events = run(engine, grammar, stop=stop, seed=seed, max_tokens=60, **options, **cpu)
            assert (tokens(events), ended(events)) == (tokens(chosen), ended(chosen))


def test_logprobs_are_those_of_the_model_without_the_grammar(engine: Engine) -> None:
    events = run(engine, answer_grammar(regex="hello"), temperature=0, max_tokens=5, logprobs=3)
    (token,) = (event for event in events if isinstance(event, Token))
    logits = reference(engine.config).run(list(PROMPT))[-1].astype(np.float64)
    wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert token.logprob == pytest.approx(wanted[token.token_id], abs=2e-3)
    assert [top.token_id for top in token.top_logprobs] == list(np.argsort(-wanted)[:3])
    assert token.token_id not in np.argsort(-wanted)[:3], "the model wanted something else"


def test_requests_without_a_grammar_are_as_they_were(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"seed": 3, "temperature": 1.2, "max_tokens": 20}
    before = tokens(run(engine, None, **options)), tokens(run(engine, None, temperature=0, max_tokens=20))
    run(engine, JSON, temperature=1, seed=1, max_tokens=50)
    masks: list[bool] = []
    submit = Program.submit
    monkeypatch.setattr(
        Program,
        "submit",
        lambda self, parts, **more: (
            masks.extend(r.mask is not None for r in parts[0].results) or submit(self, parts, **more)
        ),
    )
    after = tokens(run(engine, None, **options)), tokens(run(engine, None, temperature=0, max_tokens=20))
    assert after == before and len(before[0]) == 20 and not any(masks)
    masks.clear()
    run(engine, JSON, temperature=1, seed=1, max_tokens=50)
    assert masks[-1]
    plain, masked = (
        [dispatch.kernel.name for dispatch in engine._program.dispatches(1, [Result(mask=mask)])]
        for mask in (None, np.zeros(1, np.uint32))
    )
    assert masked == [*plain[:-1], "mask_logits", "argmax"] and "mask_logits" not in plain


@pytest.mark.parametrize("logprobs", [None, 0])
def test_an_answer_ends_where_nothing_may_follow_without_a_step_for_it(
    engine: Engine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, logprobs: int | None
) -> None:
    results: list[Result] = []
    submit = Program.submit
    monkeypatch.setattr(
        Program, "submit", lambda self, parts, **more: results.extend(parts[0].results) or submit(self, parts, **more)
    )
    events = run(engine, answer_grammar(regex="hello|world"), temperature=1, seed=1, max_tokens=50, logprobs=logprobs)
    ids = tokens(events)
    assert tokenizer.decode(ids) in ("hello", "world") and ended(events) == "stop"
    assert len(ids) == len(results), "a step for each token"
    exactly = run(engine, answer_grammar(regex="hello"), temperature=0, max_tokens=1, logprobs=logprobs)
    assert tokenizer.decode(tokens(exactly)) == "hello" and ended(exactly) == "stop", "the limit is no matter then"


def test_an_end_token_ends_an_answer_that_could_go_on(engine: Engine, tokenizer: Tokenizer) -> None:
    reasons = set()
    for seed in range(8):
        for ignore_eos in (False, True):
            stop = frozenset() if ignore_eos else tokenizer.stop_ids
            events = run(engine, OPEN_END, stop=stop, seed=seed, temperature=5, max_tokens=3, ignore_eos=ignore_eos)
            *text, last = tokens(events)
            assert (last in tokenizer.stop_ids) == (ended(events) == "stop")
            assert set(tokenizer.decode(text)) <= {"a", "b"}
            reasons.add(ended(events))
    assert reasons == {"stop", "length"}


def test_a_limit_cuts_an_answer(engine: Engine, tokenizer: Tokenizer) -> None:
    events = run(engine, JSON, temperature=0, max_tokens=4)
    assert ended(events) == "length" and len(tokens(events)) == 4
    assert '{"word":"'.startswith(tokenizer.decode(tokens(events)))


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_context_shift_keeps_the_grammar(engine: Engine, tokenizer: Tokenizer, logprobs: int | None) -> None:
    grammar = answer_grammar(regex="([ab]{10};){30}")
    options = {"temperature": 1, "seed": 2, "max_tokens": 400, "context_shift": True, "logprobs": logprobs}
    events = run(engine, grammar, PROMPT * 10, **options)
    text = tokenizer.decode(tokens(events))
    assert ended(events) == "stop" and len(text) == 330
    assert {len(part) for part in text.split(";")[:-1]} == {10}
    assert events[-1].stats.n_shifts > 0


def test_cancelling_leaves_nothing_behind(engine: Engine) -> None:
    whole = tokens(run(engine, JSON, temperature=0, max_tokens=100))
    engine.submit(Request(1, PROMPT, SamplingParams(temperature=0), frozenset(), grammar=OPEN_END))
    events: list[Event] = []
    while len(tokens(events)) < 2:
        events += engine.step()
    engine.cancel(1)
    while engine.has_work:
        events += engine.step()
    assert ended(events) == "cancelled"
    assert tokens(run(engine, JSON, temperature=0, max_tokens=100)) == whole


@pytest.mark.parametrize("grammar", ["start: <nothing>", "start: x\nx: x x", "start: foo"])
def test_a_grammar_that_fails_fails_its_request_alone(engine: Engine, grammar: str) -> None:
    before = tokens(run(engine, None, temperature=0, max_tokens=5))
    engine.submit(Request(1, PROMPT, SamplingParams(temperature=0, max_tokens=5), frozenset(), grammar=grammar))
    engine.submit(Request(2, PROMPT, SamplingParams(temperature=0, max_tokens=5), frozenset()))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.request_id == 1 and isinstance(failed.error, InvalidParameter)
    assert "the grammar of the answer cannot be followed" in str(failed.error)
    assert tokens(events) == before and {event.request_id for event in events if isinstance(event, Token)} == {2}


def test_a_mask_that_fails_midway_fails_the_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, n_accepted = Constraint.accept, [0]

    def failing(self: Constraint, token_id: int) -> None:
        n_accepted[0] += 1
        if n_accepted[0] == 3:
            raise InvalidParameter("too complex")
        accept(self, token_id)

    monkeypatch.setattr(Constraint, "accept", failing)
    events = run(engine, JSON, temperature=0, max_tokens=50)
    assert len(tokens(events)) == 2 and isinstance(events[-1], Failed)
    monkeypatch.undo()
    assert ended(run(engine, JSON, temperature=0, max_tokens=100)) == "stop"


def test_an_engine_makes_its_vocabulary_at_the_first_grammar(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("vkllm.engine.constraint._Tokens", lambda *rest: made.append(1) or pytest.fail("too early"))
    fresh = Engine(engine.config)
    assert len(tokens(run(fresh, None, max_tokens=2))) == 2 and made == []
    fresh.close()
