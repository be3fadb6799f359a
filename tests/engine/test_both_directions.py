"""A model that reads in both directions makes embeddings, of texts as long as the context, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from family_models import write_variant
from file_reference import file_reference

from vkllm.engine import prompt_rows
from vkllm.engine.engine import Engine
from vkllm.engine.events import Embedded, Failed
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import EngineConfig, Request
from vkllm.errors import ContextOverflow, InvalidParameter, NoDevice
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.program import program, whole_texts
from vkllm.model.architectures import model_spec
from vkllm.model.pooling import Projection
from vkllm.model.spec import Pooling

pytestmark = pytest.mark.gpu

ANSWERS = json.loads((Path(__file__).parents[1] / "model" / "answers.json").read_text())
LONG = np.random.default_rng(3).integers(0, 256, 700).tolist()
NAME = "gemma-embedding with dense layers"

BOUND = 2e-3  # of a vector of length 1: keys and values in float16 (2^-12) change a row by some times that


def opened(path: Path, name: str) -> Engine:
    file = ModelFile.open(write_variant(path, name, n_ctx=1024))
    try:
        return Engine(EngineConfig(path, file.tensors, model_spec(file.metadata, file.tensors), 1024))
    except NoDevice as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = opened(tmp_path_factory.mktemp("model") / "model.gguf", NAME)
    yield made
    made.close()


def result(engine: Engine, tokens: list[int], **fields: object) -> object:
    engine.submit(Request(1, tuple(tokens), SamplingParams(), frozenset(), **fields))  # type: ignore[arg-type]
    events = []
    while engine.has_work:
        events += engine.step()
    return events[0]


def vector(engine: Engine, tokens: list[int], pooling: Pooling = "mean") -> np.ndarray:
    embedded = result(engine, tokens, pooling=pooling)
    assert isinstance(embedded, Embedded)
    return np.array(embedded.vector)


def test_an_embedding_is_llama_cpp_s_whatever_was_read_before(engine: Engine) -> None:
    tokens = ANSWERS["prompt_tokens"]
    for text in (tokens[:30], tokens, tokens):
        embedded = vector(engine, text)
    assert np.allclose(embedded, ANSWERS["embeddings"][NAME], rtol=0, atol=BOUND)
    assert np.allclose(vector(engine, LONG), ANSWERS["embeddings of 700 tokens"][NAME], rtol=0, atol=BOUND)
    assert np.array_equal(vector(engine, tokens), embedded)


def test_texts_of_one_step_do_not_see_each_other(engine: Engine) -> None:
    texts = [LONG[i : i + n] for i, n in enumerate((50, 20, 7))]
    alone = [vector(engine, text) for text in texts]
    for i, text in enumerate(texts):
        engine.submit(Request(i, tuple(text), SamplingParams(), frozenset(), pooling="mean"))
    found = {}
    while engine.has_work:
        found |= {event.request_id: event.vector for event in engine.step() if isinstance(event, Embedded)}
    assert all(np.allclose(found[i], alone[i], rtol=0, atol=BOUND) for i in range(3))


def test_steps_of_a_text_go_through_the_layers_together(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (program, prompt_rows, whole_texts):
        monkeypatch.setattr(module, "MAX_ROWS", 64)
    path = tmp_path / "model.gguf"
    engine = opened(path, NAME)
    request.addfinalizer(engine.close)
    projection = Projection(path, engine._config.spec, engine._config.tensors)
    for n_tokens in (150, 64):
        rows = file_reference(path, 1024).hidden_states(LONG[:n_tokens])
        found = {pooling: vector(engine, LONG[:n_tokens], pooling) for pooling in ("mean", "cls", "last")}
        assert np.allclose(found["mean"], projection(rows.mean(0, np.float64)), rtol=0, atol=BOUND)
        assert np.allclose(found["cls"], projection(rows[0].astype(np.float64)), rtol=0, atol=BOUND)
        assert np.allclose(found["last"], projection(rows[-1].astype(np.float64)), rtol=0, atol=BOUND)


def test_what_it_cannot_do_is_told(engine: Engine) -> None:
    answered = result(engine, [1, 2, 3])
    assert isinstance(answered, Failed) and isinstance(answered.error, InvalidParameter)
    assert "makes embeddings only" in str(answered.error)
    too_long = result(engine, [1] * 1025, pooling="mean")
    assert isinstance(too_long, Failed) and isinstance(too_long.error, ContextOverflow)
    assert "1025 tokens and the context holds 1024" in str(too_long.error)
