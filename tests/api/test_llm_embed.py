"""`embed` of the Python API: what it takes and refuses, batches, cancels; and what it says of real sentences."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fake_engine as fake
import numpy as np
import pytest
from tiny_gguf import IM_START, N_CTX, write_tiny_gguf

from vkllm import LLM, AsyncLLM, ContextOverflow, DeviceLost, InvalidParameter, NoDevice, UnsupportedModel
from vkllm.api.ollama.embeddings import embed_request
from vkllm.engine.process.handle import EngineProcess
from vkllm.formats.gguf import ModelFile
from vkllm.formats.quants import dequantize
from vkllm.model.pooling import pooling
from vkllm.model.reference import Reference

MakeLLM = Callable[..., LLM]


def fake_vector(n_tokens: int, last: int) -> list[float]:
    """What the fake engine answers."""
    return [n_tokens / math.hypot(n_tokens, last), last / math.hypot(n_tokens, last)]


def test_one_text_has_one_vector_and_a_list_has_a_list(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert llm.embed("Xab") == fake_vector(3, ord("b"))
    assert llm.embed([88, 97, 98]) == llm.embed(tuple(b"Xab")) == fake_vector(3, ord("b"))
    assert llm.embed(["Xab"]) == [fake_vector(3, ord("b"))]
    assert llm.embed(["Xab", "c", "Xab"]) == [fake_vector(*each) for each in ((3, 98), (1, 99), (3, 98))]
    assert llm.embed([[88, 97], [99]]) == [fake_vector(2, 97), fake_vector(1, 99)]


def test_a_batch_is_sent_before_the_first_answer_and_counts_as_requests(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    texts = [f"X{n}" for n in range(300)]
    vectors = llm.embed(texts)
    assert len(vectors) == 300 and vectors[7] == fake_vector(2, ord("7"))
    stats = llm.stats()
    assert (stats.n_requests, stats.n_generated) == (300, 0)
    assert stats.n_prompt == sum(map(len, texts))


def test_what_cannot_be_embedded_is_refused_before_anything_runs(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    for empty in ("", [""], [[]]):
        with pytest.raises(InvalidParameter, match="the text is empty and has no embedding"):
            llm.embed(empty)
    assert llm.embed([]) == []
    with pytest.raises(InvalidParameter, match="text 1 of 3 is empty"):
        llm.embed(["a", "", "b"])
    with pytest.raises(ContextOverflow, match=f"text 2 of 3 has {N_CTX + 1} tokens and the context holds {N_CTX}"):
        llm.embed(["a", "b" * N_CTX, "c" * (N_CTX + 1)])
    with pytest.raises(ContextOverflow, match=f"has {N_CTX + 1} tokens and the context holds {N_CTX}, .* into parts$"):
        llm.embed([1] * (N_CTX + 1))
    with pytest.raises(InvalidParameter, match="token id 999 is not in the vocabulary"):
        llm.embed([1, 999])
    with pytest.raises(InvalidParameter, match="'a' is not a token id"):
        llm.embed([1, "a"])  # type: ignore[list-item]
    assert llm.stats().n_requests == 0


def test_an_empty_text_is_refused_also_where_a_model_puts_a_token_before_it(
    fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm()
    monkeypatch.setattr(llm.tokenizer, "adds_bos", True)
    assert llm.embed("ab") == fake_vector(3, ord("b")) and llm.tokenize("") == [IM_START]
    with pytest.raises(InvalidParameter, match="the text is empty"):
        llm.embed("")


def test_a_closed_engine_is_told(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    llm.close()
    with pytest.raises(DeviceLost, match="the engine was closed"):
        llm.embed(["a", "b"])


def test_an_engine_that_dies_fails_all_and_the_next_call_works(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    pid = llm._engine.pid
    assert pid is not None
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(DeviceLost, match="SIGKILL"):
        llm.embed([chr(fake.ENDLESS) + "a"] * 200)
    assert llm.embed("Xab") == fake_vector(3, ord("b"))


def assert_engine_is_free(llm: LLM) -> None:
    """A request that nobody has cancelled would keep it for ever."""
    assert llm.generate("Xok", max_tokens=2).text == "ok"


def test_ctrl_c_cancels_the_whole_batch(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        llm.embed([chr(fake.ENDLESS) + "a"] * 200)
    assert_engine_is_free(llm)


def test_an_error_in_one_cancels_the_others(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    with pytest.raises(ContextOverflow, match="refused"):
        llm.embed([chr(fake.REFUSE), *[chr(fake.ENDLESS) + "a"] * 200])
    assert_engine_is_free(llm)


@pytest.mark.asyncio
async def test_asyncio_goes_on_meanwhile_and_a_cancel_ends_the_batch(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vkllm.api.loading.EngineProcess", partial(EngineProcess, factory="fake_engine:FakeEngine"))
    async with AsyncLLM(tiny_gguf) as llm:
        assert await llm.embed("Xab") == fake_vector(3, ord("b"))
        assert await llm.embed(["Xab", "c"]) == [fake_vector(3, ord("b")), fake_vector(1, ord("c"))]
        with pytest.raises(InvalidParameter, match="the text is empty"):
            await llm.embed("")
        batch = asyncio.create_task(llm.embed([chr(fake.ENDLESS) + "a"] * 200))
        await asyncio.sleep(0.3)
        assert not batch.done()
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert await asyncio.wait_for(llm.embed("Xab"), 2) == fake_vector(3, ord("b"))


@pytest.mark.asyncio
async def test_a_text_that_ollama_cuts_keeps_the_token_behind_it(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vkllm.api.loading.EngineProcess", partial(EngineProcess, factory="fake_engine:FakeEngine"))
    async with AsyncLLM(tiny_gguf) as llm:
        tokenizer = llm.llm.tokenizer
        assert tokenizer.eos_id is not None
        monkeypatch.setattr(tokenizer, "adds_eos", True)
        found = await embed_request({"model": "m", "input": ["ab", "x" * 2 * N_CTX]}).run(llm)
        assert found == ([fake_vector(3, tokenizer.eos_id), fake_vector(N_CTX, tokenizer.eos_id)], 3 + N_CTX)


@pytest.mark.parametrize(("number", "kind"), [(None, "mean"), (0, "mean"), (1, "mean"), (2, "cls"), (3, "last")])
def test_the_file_says_how_rows_are_pooled(tmp_path: Path, number: int | None, kind: str) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf", pooling=number)
    assert pooling(ModelFile.open(path).metadata) == kind


def test_a_model_that_is_made_for_ranks_generates_but_makes_no_embeddings(fake_llm: MakeLLM, tmp_path: Path) -> None:
    llm = fake_llm(model=write_tiny_gguf(tmp_path / "ranks.gguf", pooling=4))
    with pytest.raises(UnsupportedModel, match="ranks: the model's file asks for ranks of texts, as a reranker"):
        llm.embed("a")
    assert llm.generate("Xab", max_tokens=2).text == "ab"


def test_a_user_may_choose_the_tokens_that_make_an_embedding(fake_llm: MakeLLM, tmp_path: Path) -> None:
    ranks = write_tiny_gguf(tmp_path / "ranks.gguf", pooling=4)
    assert fake_llm(model=ranks, pooling="cls").embed("Xab") == fake_vector(3, ord("b"))
    with pytest.raises(InvalidParameter, match="pooling must be mean, cls or last, not 'none'"):
        fake_llm(pooling="none")


@pytest.mark.gpu
@pytest.mark.parametrize(("number", "chosen"), [(1, None), (2, None), (1, "last")])
def test_a_text_has_the_reference_embedding(tmp_path: Path, number: int, chosen: str | None) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf", pooling=number)
    file = ModelFile.open(path)
    weights = {n: dequantize(file.raw(n), info.format, info.shape) for n, info in file.tensors.items()}
    try:
        llm = LLM(path, pooling=chosen)
    except NoDevice as error:
        pytest.skip(str(error))
    with llm:
        text = "Forty characters are a text, are they not?"
        rows = Reference(llm.spec, weights.__getitem__, N_CTX).hidden_states(llm.tokenize(text)).astype(np.float64)
        pooled = {1: rows.mean(axis=0), 2: rows[0]}[number] if chosen is None else rows[-1]
        # keys and values are rounded to 2^-12
        assert np.abs(llm.embed(text) - pooled / np.linalg.norm(pooled)).max() < 1e-3


def cosines(vectors: list[list[float]]) -> np.ndarray:
    return np.array(vectors) @ np.array(vectors).T


@pytest.mark.gpu
@pytest.mark.weights
def test_sentences_of_the_same_are_nearer_than_others(smollm2: LLM) -> None:
    cat, kitten, law = range(3)
    similarity = cosines(
        smollm2.embed(
            [
                "The cat is sleeping on the sofa in the living room.",
                "A kitten is taking a nap on the couch.",
                "Corporate tax law requires companies to file annual returns.",
            ]
        )
    )
    assert similarity[cat, kitten] > similarity[cat, law] + 0.05
    assert similarity[cat, kitten] > similarity[kitten, law] + 0.05


@pytest.mark.gpu
@pytest.mark.weights
def test_the_default_models_embedding_is_the_one_of_the_reference(smollm2: LLM) -> None:
    text = "The capital of France is Paris."
    file = ModelFile.open(smollm2.path)
    weights = {n: dequantize(file.raw(n), info.format, info.shape) for n, info in file.tensors.items()}
    rows = Reference(smollm2.spec, weights.__getitem__, 64).hidden_states(smollm2.tokenize(text)).astype(np.float64)
    mean = rows.mean(axis=0)
    # float16 keys and values and 16-bit activations, through 30 layers
    assert np.abs(smollm2.embed(text) - mean / np.linalg.norm(mean)).max() < 5e-4
