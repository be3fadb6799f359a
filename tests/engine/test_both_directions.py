"""A model that reads in both directions makes embeddings, of a limited length, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from family_models import write_variant

from vkllm.engine.engine import Engine
from vkllm.engine.events import Embedded, Failed
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import EngineConfig, Request
from vkllm.errors import ContextOverflow, InvalidParameter, NoDevice
from vkllm.formats.gguf import ModelFile
from vkllm.model.architectures import model_spec

pytestmark = pytest.mark.gpu

ANSWERS = json.loads((Path(__file__).parents[1] / "model" / "answers.json").read_text())
NAME = "gemma-embedding"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_variant(tmp_path_factory.mktemp("model") / "model.gguf", NAME, n_ctx=1024)
    file = ModelFile.open(path)
    config = EngineConfig(path, file.tensors, model_spec(file.metadata, file.tensors), 1024)
    try:
        made = Engine(config)
    except NoDevice as error:
        pytest.skip(str(error))
    yield made
    made.close()


def result(engine: Engine, tokens: list[int], **fields: object) -> object:
    engine.submit(Request(1, tuple(tokens), SamplingParams(), frozenset(), **fields))  # type: ignore[arg-type]
    events = []
    while engine.has_work:
        events += engine.step()
    return events[0]


def test_an_embedding_is_llama_cpp_s_whatever_was_read_before(engine: Engine) -> None:
    tokens = ANSWERS["prompt_tokens"]
    for text in (tokens[:30], tokens, tokens):
        embedded = result(engine, text, pooling="mean")
        assert isinstance(embedded, Embedded)
    assert np.allclose(embedded.vector, ANSWERS["embeddings"][NAME], atol=2e-3)


def test_what_it_cannot_do_is_told(engine: Engine) -> None:
    answered = result(engine, [1, 2, 3])
    assert isinstance(answered, Failed) and isinstance(answered.error, InvalidParameter)
    assert "makes embeddings only" in str(answered.error)
    too_long = result(engine, [1] * 513, pooling="mean")
    assert isinstance(too_long, Failed) and isinstance(too_long.error, ContextOverflow)
    assert "at most 512" in str(too_long.error)
