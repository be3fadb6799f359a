"""Drafts by a head for further tokens: what it guesses, what the answers are, and how long drafts are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from file_reference import file_reference
from hybrid_models import HYBRIDS
from variant import write

from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import EngineConfig, Request
from vkllm.engine.speculation.gain import StepSeconds
from vkllm.engine.speculation.heads import MOST_PREDICTED, Head, HeadGain
from vkllm.errors import InvalidParameter, NoDevice
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec
from vkllm.model.memory.options import PlanOptions

GREEDY: dict[str, Any] = {"temperature": 0}
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 3}


def engine(path: Path, spec: str, n_parallel: int | None = 1) -> Engine:
    file = ModelFile.open(path)
    model = model_spec(file.metadata, file.tensors)
    try:
        return Engine(
            EngineConfig(path, file.tensors, model, 256, options=PlanOptions(spec=spec, n_parallel=n_parallel))
        )
    except NoDevice as error:
        pytest.skip(str(error))


def answers(engine: Engine, *requests: Request) -> tuple[list[list[int]], list[Finished]]:
    for request in requests:
        engine.submit(request)
    events = []
    while engine.has_work:
        events += engine.step()
    texts = [[e.token_id for e in events if isinstance(e, Token) and e.request_id == r.id] for r in requests]
    return texts, [event for event in events if isinstance(event, Finished)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["qwen35 that predicts with a head of its own", "deepseek2 that predicts", "nemotron_h_moe that predicts"]
)
def test_a_head_guesses_as_the_reference_does_and_leaves_answers_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path / "model.gguf", HYBRIDS[name])
    n_vocab = file_reference(path, 256).spec.n_vocab
    prompts = [tuple(int(t) for t in np.random.default_rng(i).integers(0, n_vocab, 50)) for i in range(2)]
    prompts.append(
        (*prompts[0][:40], *prompts[1][:20])
    )  # begins with what is cached, and goes on in the middle of a block
    monkeypatch.setattr(HeadGain, "n_predicted", lambda self, most: min(most, MOST_PREDICTED))
    guesses: list[tuple[list[int], list[int]]] = []
    drafts = Head.drafts

    def spied(self: Head, number: int, held: Any, tokens: Any, row_before: int | None, n: int) -> list[int]:
        guesses.append((list(tokens), drafts(self, number, held, tokens, row_before, n)))
        return guesses[-1][1]

    monkeypatch.setattr(Head, "drafts", spied)
    params = [SamplingParams(max_tokens=12, ignore_eos=True, **options) for options in (GREEDY, DRAWN, GREEDY)]
    requests = [Request(i, prompt, params[i], frozenset()) for i, prompt in enumerate(prompts)]
    plain = engine(path, "ngram")
    assert plain.plan.n_predictors == 0, "what is not used is not loaded"
    wanted = [answers(plain, request)[0] for request in requests]
    plain.close()
    drafted = engine(path, "mtp")
    got = [answers(drafted, request) for request in requests]
    drafted.close()
    assert [texts for texts, _ in got] == wanted
    assert all(stats.n_drafted > stats.n_accepted for _, (end,) in got for stats in [end.stats])
    reference = file_reference(path, 256)
    hidden_before = np.zeros((1, reference.spec.d_model), np.float32)
    for tokens, drafts_of in [guesses[i] for i in (0, 1, 4, -1)]:
        reference = file_reference(path, 256)
        hidden = np.concatenate([hidden_before, reference.hidden_states(tokens[:-1])])
        ids = tokens
        for draft in drafts_of:
            logits, made = reference.predict(reference.spec.predictors[0], hidden, ids)
            assert logits[-1, draft] > logits[-1].max() - 0.02, (len(tokens), drafts_of)
            hidden, ids = made[-1:], [draft]


def test_models_without_heads_refuse_them(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", HYBRIDS["gemma4 with heads of 512"])
    with pytest.raises(InvalidParameter, match="no heads for further tokens, so --spec mtp is not possible"):
        engine(path, "mtp")


@pytest.mark.parametrize(
    ("right", "verify_s", "head_s", "least"),
    [
        (0.8, 0.1, 0.05, 2.0),
        (0.5, 0.1, 0.05, 1.25),
        (0.8, 0.6, 0.3, 0.97),
        (0.3, 0.3, 0.2, 0.97),
        (0.0, 3.0, 1.0, 0.97),
    ],
)
def test_drafts_of_a_head_are_as_long_as_pays(right: float, verify_s: float, head_s: float, least: float) -> None:
    """verify_s, head_s: what each draft costs in a step that verifies it, and to guess it; a plain step takes 1 s."""
    plain, dice, now_s = StepSeconds(), np.random.default_rng(3), 0.0
    gain = HeadGain(plain)
    for _ in range(2):
        gain.begin()
        n_tokens, start_s = 0, now_s
        while n_tokens < 400:
            n = gain.n_predicted(31)
            assert 0 <= n <= MOST_PREDICTED
            seconds = 1 + n * (verify_s + head_s)
            n_right = next((i for i in range(n) if dice.random() >= right), n)
            now_s, n_tokens = now_s + seconds, n_tokens + 1 + n_right
            if n:
                gain.counted(n, n_right, seconds)
            else:
                plain.measured(1, seconds, is_ahead=True)
                gain.passed(seconds)
        assert n_tokens / (now_s - start_s) > least
    assert gain.begin() or least < 1
