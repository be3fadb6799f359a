"""AsyncLLM on a tiny file and an engine that echoes the prompt from its second token on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from processes import is_running
from tiny_gguf import IM_START, N_VOCAB
from work_time import without_garbage_collection

from vkllm import (
    LLM,
    AsyncLLM,
    AsyncStream,
    ContextOverflow,
    DeviceLost,
    InvalidParameter,
    ModelNotFound,
    NoDevice,
    Piece,
)
from vkllm.engine.process.handle import EngineProcess

pytestmark = pytest.mark.asyncio

MakeLLM = Callable[..., AsyncLLM]
ENDLESS = chr(fake.ENDLESS)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def make(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLLM]:
    """Makes AsyncLLMs whose engine is fake_engine.FakeEngine in a process of its own; all are closed at the end."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )
    made: list[AsyncLLM] = []

    def make(**options: Any) -> AsyncLLM:
        made.append(AsyncLLM(options.pop("model", tiny_gguf), **options))
        return made[-1]

    yield make
    for llm in made:
        asyncio.run(llm.close())


@contextlib.asynccontextmanager
async def free_loop(limit_s: float) -> AsyncIterator[None]:
    """Asserts that the event loop never waits long for what runs inside: longer than this, and than a quarter of all of
    it, as on a busy machine all takes longer."""
    gaps: list[float] = []
    begun = time.monotonic()

    async def tick() -> None:
        while True:
            start = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - start - 0.01)

    ticking = asyncio.create_task(tick())
    with without_garbage_collection():
        await asyncio.sleep(0)
        yield
        took_s = time.monotonic() - begun
        await asyncio.sleep(0.02)
    ticking.cancel()
    assert max(gaps) < max(limit_s, took_s / 4)


async def assert_engine_is_free(llm: AsyncLLM) -> None:
    """A request that nobody has cancelled would keep it for ever."""
    assert (await llm.generate("Xok", max_tokens=2)).text == "ok"


async def test_generate_and_chat_answer_as_those_of_llm(make: MakeLLM) -> None:
    async with make() as llm:
        answer = await llm.generate("Xab", max_tokens=5, logprobs=1)
        assert (answer.text, answer.finish_reason, answer.stats.n_generated) == ("ababa", "length", 5)
        assert answer.logprobs is not None and len(answer.logprobs) == 5
        assert (await llm.generate([88, 99, 100], max_tokens=2)).text == "cd"
        answer = await llm.chat(HI)
        assert (answer.prompt_token_ids[0], answer.text, answer.finish_reason) == (IM_START, "user\nHi", "stop")
        assert llm.stats().n_requests == 3
        assert (llm.llm.n_ctx, llm.llm.device_name) == (256, "fake device")


async def test_a_stream_yields_pieces_with_their_tokens_and_then_its_result(make: MakeLLM) -> None:
    llm = make()
    stream = llm.stream("Xaé€", max_tokens=6, logprobs=0)
    pieces = [piece async for piece in stream]
    assert pieces == ["a", "é", "€"] and all(isinstance(piece, Piece) for piece in pieces)
    assert [piece.token_ids for piece in pieces] == [[97], [0xC3, 0xA9], [0xE2, 0x82, 0xAC]]
    assert (await stream.result()).text == "aé€"
    assert [piece async for piece in stream] == []
    async with llm.chat(HI, stream=True) as stream:
        assert (await stream.result()).text == "user\nHi"
    assert [piece async for piece in llm.stream("Xabc", stop="c")] == ["a", "b"]


async def test_twenty_streams_at_once_get_their_own_answers_in_no_thread_each(make: MakeLLM) -> None:
    llm = make()
    await llm.load()
    seen = set()

    async def ask(text: str) -> str:
        pieces = []
        async for piece in llm.stream("X" + text, max_tokens=2 * len(text)):
            pieces.append(piece)
            seen.add(threading.active_count())
        return "".join(pieces)

    n_threads = threading.active_count()
    texts = [chr(97 + i) * (1 + i % 4) + "." for i in range(20)]
    async with free_loop(0.5):
        assert await asyncio.gather(*map(ask, texts)) == [text * 2 for text in texts]
    assert max(seen) - n_threads <= min(32, (os.cpu_count() or 1) + 4), "more than the executor has"


async def test_a_consumer_that_waits_does_not_keep_others_waiting(make: MakeLLM) -> None:
    llm = make()
    idle = llm.stream("Xab", max_tokens=200)
    assert await anext(idle) == "a"
    await assert_engine_is_free(llm)
    assert len((await idle.result()).text) == 200


async def test_cancelling_a_task_cancels_its_request(make: MakeLLM) -> None:
    llm = make(device="slow steps")
    await llm.load()
    for ask in (
        lambda: llm.generate("Xabc"),
        lambda: llm.generate(["Xabc", "Xabd"]),
        lambda: llm.chat.completions.create(messages=[{"role": "user", "content": "x" * 20}], n=5),
        lambda: llm.generate("Xabc", on_token=lambda piece: asyncio.sleep(60)),
    ):
        task = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_engine_is_free(llm)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            async for _ in (kept := llm.stream("Xabc")):
                pass
    await assert_engine_is_free(llm)
    assert (await kept.result()).finish_reason == "cancelled"


async def test_a_request_that_is_cancelled_while_it_is_made_is_cancelled_once_it_is_sent(
    make: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    await llm.load()
    may_go_on = threading.Event()
    encode = llm.llm.tokenizer.encode
    monkeypatch.setattr(llm.llm.tokenizer, "encode", lambda text: may_go_on.wait(120) and encode(text))
    task = asyncio.create_task(llm.generate(ENDLESS + "abc"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go_on.set()
    await assert_engine_is_free(llm)


async def test_closing_leaving_or_dropping_a_stream_frees_the_engine(make: MakeLLM) -> None:
    llm = make()
    stream = llm.stream(ENDLESS + "abc")
    assert await anext(stream) == "a"
    await stream.close()
    assert [piece async for piece in stream] == []
    assert ((await stream.result()).text, (await stream.result()).finish_reason) == ("a", "cancelled")
    await assert_engine_is_free(llm)
    async with llm.stream(ENDLESS + "abc") as stream:
        pass
    await assert_engine_is_free(llm)
    async for _ in llm.stream(ENDLESS + "abc"):
        break
    del stream
    await assert_engine_is_free(llm)
    unread = llm.stream(ENDLESS + "abc")
    await unread.close()
    assert (await unread.result()).token_ids == []


async def test_a_batch_comes_in_order_and_fails_together(make: MakeLLM) -> None:
    llm = make()
    answers = await llm.generate(["Xab", "Xcd", "Xef"], max_tokens=2)
    assert [answer.text for answer in answers] == ["ab", "cd", "ef"]
    with pytest.raises(ContextOverflow, match="refused") as raised:
        await llm.generate([chr(fake.REFUSE) + "ab", ENDLESS + "abc", ENDLESS + "abc"])
    assert raised.tb is not None, "which keeps the streams from being dropped"
    await assert_engine_is_free(llm)


async def test_embeddings_and_states_are_those_of_llm(
    make: MakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    vectors = await llm.embed(["ab", [97, 98, 99]])
    assert vectors == [await llm.embed("ab"), await llm.embed([97, 98, 99])] and len(vectors[0]) > 1
    with pytest.raises(InvalidParameter, match="text 1 of 2 is empty"):
        await llm.embed(["ab", ""])
    cancelled: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(llm.llm._engine, "cancel", cancelled.append)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.embed([chr(fake.SLOW) + "ab"] * 20), 0.3)
    assert len(set(cancelled)) == 20
    await llm.generate("Xab", max_tokens=1)
    await llm.save_state(tmp_path / "state.npz")
    await llm.generate("Yc", max_tokens=1)
    assert await llm.load_state(tmp_path / "state.npz") == [88, 97, 98]


async def test_on_token_sees_the_pieces_and_an_error_in_it_cancels(make: MakeLLM) -> None:
    llm = make()
    seen: list[str] = []

    async def later(piece: Piece) -> None:
        await asyncio.sleep(0)
        seen.append(piece)

    await llm.generate("Xabc", max_tokens=3, on_token=seen.append)
    await llm.chat(HI, on_token=later)
    assert seen == ["a", "b", "c", *"user\nHi"]
    with pytest.raises(ZeroDivisionError):
        await llm.generate(ENDLESS + "abc", on_token=lambda piece: 1 / 0)
    await assert_engine_is_free(llm)


async def test_errors_are_raised_where_the_answer_is_awaited(make: MakeLLM) -> None:
    llm = make()
    for prompt in ("", [N_VOCAB], [1.5]):
        with pytest.raises(InvalidParameter):
            await llm.generate(prompt)
    stream = llm.stream("a" * 300)
    for _ in range(2):
        with pytest.raises(ContextOverflow):
            await anext(stream)
        with pytest.raises(ContextOverflow):
            await stream.result()
    lost = llm.stream(chr(fake.DIE) + "ab")
    with pytest.raises(DeviceLost, match="SIGKILL"):
        _ = [piece async for piece in lost]
    with pytest.raises(DeviceLost, match="SIGKILL"):
        await lost.result()
    await assert_engine_is_free(llm)
    with pytest.raises(ModelNotFound):
        await make(model="no such model").load()
    with pytest.raises(NoDevice):
        await make(device="none").generate("Xab")


async def test_loading_tells_its_progress_in_the_event_loop_and_happens_once(make: MakeLLM) -> None:
    seen: list[tuple[str, int, int, int]] = []
    llm = make(on_progress=lambda *args: seen.append((*args, threading.get_ident())))
    async with free_loop(0.5):
        await asyncio.gather(llm.load(), llm.load(), llm.generate("Xab", max_tokens=1))
    assert seen == [("loading tiny.gguf", done, 100, threading.get_ident()) for done in (0, 50, 100)]


async def pid_of_loading(llm: AsyncLLM) -> int:
    """The engine's process, once it has been started."""
    while llm._loading is None or llm._loading._engine is None or llm._loading._engine.pid is None:
        await asyncio.sleep(0.01)
    return llm._loading._engine.pid


async def test_a_cancel_or_close_while_the_model_is_loaded_ends_that(make: MakeLLM) -> None:
    llm = make(device="slow start")
    task = asyncio.create_task(llm.load())
    pid = await pid_of_loading(llm)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pid)
    task = asyncio.create_task(llm.load())
    await pid_of_loading(llm)
    await llm.close()
    with pytest.raises(DeviceLost, match=r"closed|interrupted"):
        await task
    with pytest.raises(DeviceLost, match="closed"):
        await llm.generate("a")


async def test_the_loop_goes_on_while_a_long_text_is_tokenized_and_a_template_rendered(make: MakeLLM) -> None:
    llm = make()
    await llm.load()
    text = "<|im_start|> a long text. " * 20_000
    async with free_loop(0.5):
        start = time.monotonic()
        n_tokens = await llm.count_tokens(text)
        assert await llm.count_tokens([{"role": "user", "content": text}]) > n_tokens
        with pytest.raises(ContextOverflow):
            await llm.chat([{"role": "user", "content": text}])
        assert time.monotonic() - start > 0.5, "the text is too short to show anything"
    assert await llm.detokenize(await llm.tokenize("Hi")) == "Hi"


async def test_requests_of_a_loop_that_ended_disturb_nobody(make: MakeLLM) -> None:
    llm = make()
    kept: list[AsyncStream] = []

    async def leave_one_open() -> None:
        kept.append(llm.stream("Xabc", max_tokens=100))
        assert await anext(kept[0]) == "a"

    await asyncio.to_thread(asyncio.run, leave_one_open())
    await assert_engine_is_free(llm)


async def test_two_models_at_once_answer_each_its_own(make: MakeLLM) -> None:
    first, second = make(seed=65), make(seed=66)
    prompt = [fake.SEED, 0]
    answers = await asyncio.gather(*(llm.generate(prompt, max_tokens=1) for llm in (first, second) * 3))
    assert [answer.text for answer in answers] == ["A", "B"] * 3
    await first.close()
    assert (await second.generate(prompt, max_tokens=1)).text == "B"


async def test_a_model_that_is_loaded_is_shared(make: MakeLLM, tiny_gguf: Path) -> None:
    llm = await asyncio.to_thread(LLM, tiny_gguf)
    shared = make(model=llm)
    assert shared.llm is llm
    assert (await shared.generate("Xab", max_tokens=2)).text == llm.generate("Xab", max_tokens=2).text
    assert shared.stats() == llm.stats() and llm.stats().n_requests == 2
    await shared.close()
    with pytest.raises(DeviceLost, match="closed"):
        llm.generate("a")
    with pytest.raises(InvalidParameter, match="loaded already; n_ctx cannot"):
        make(model=llm, n_ctx=10)
