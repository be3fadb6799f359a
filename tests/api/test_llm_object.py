"""An `LLM` as an object of Python: what it says of itself, names it refuses, processes it does not follow into."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import numpy as np
import pytest

from vkllm import LLM, AsyncLLM, InvalidParameter, RequestError, plan_model

MakeLLM = Callable[..., LLM]


def test_repr_says_what_it_is(fake_llm: MakeLLM, tiny_gguf: Any) -> None:
    llm = fake_llm(n_ctx=64)
    assert repr(llm) == "<LLM tiny in F32, 64 tokens of context on fake device>"
    assert repr(AsyncLLM(llm)) == "<AsyncLLM tiny in F32, 64 tokens of context on fake device>"
    assert repr(AsyncLLM("smollm2")) == "<AsyncLLM smollm2, not loaded>"
    assert repr(llm.chat).startswith("<Chat: call it with messages")
    stream = llm.stream("Xab", max_tokens=2)
    assert repr(stream) == "<Stream, 0 tokens so far>"
    next(stream)
    assert repr(stream) == "<Stream, 1 token so far>"
    stream.result()
    assert repr(stream) == "<Stream, ended after 2 tokens: length>"
    assert repr(AsyncLLM(llm).stream("Xab")) == "<AsyncStream, not started>"
    llm.close()
    assert repr(llm) == "<LLM tiny in F32, closed>"


@pytest.mark.asyncio
async def test_repr_of_a_stream_that_is_read(fake_llm: MakeLLM) -> None:
    async with AsyncLLM(fake_llm()).stream("Xab", max_tokens=2) as stream:
        await stream.result()
        assert repr(stream) == "<AsyncStream, ended after 2 tokens: length>"


def test_nothing_that_belongs_to_the_process_can_be_pickled_or_copied(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    for thing in (llm, llm.chat, llm._engine, llm.stream("Xab"), AsyncLLM(llm), AsyncLLM(llm).stream("Xab")):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(RequestError, match=r"cannot be pickled .*; open the model in each"):
                copied(thing)
    with pytest.raises(RequestError, match="cannot be pickled"):
        multiprocessing.get_context("spawn").Process(target=print, args=(llm,)).start()
    assert llm.generate("Xab", max_tokens=1).text == "a"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_gets_a_sentence_and_the_model_stays_with_its_process(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    stream = llm.stream(chr(fake.SLOW) + "abc", max_tokens=5)
    uses = [
        lambda: llm.generate("Xab"),
        lambda: llm.chat([{"role": "user", "content": "Hi"}]),
        lambda: next(stream),
        lambda: llm.embed("ab"),
        lambda: llm.score([97, 98]),
        lambda: asyncio.run(AsyncLLM(llm).generate("Xab")),
    ]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # whatever happens here must not go on as a second run of the tests
        try:
            for use in uses:
                try:
                    use()
                except RequestError as error:
                    os.write(writing, str(error).encode() + b"\n")
            llm.close()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as told:
        lines = told.read().splitlines()
    os.waitpid(pid, 0)
    sentence = f"the model was opened in process {os.getpid()} and this is its fork {pid}, which cannot use it; "
    assert lines == [sentence + "open the model in each process that uses it"] * len(uses)
    assert stream.result().text == "abcab", "the parent's requests go on"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: LLM(llm.path, n_ctxt=5), "n_ctxt is no parameter that vkllm knows; did you mean n_ctx?"),
        (lambda llm: LLM(llm.path, max_model_len=5), "did you mean n_ctx?"),
        (lambda llm: AsyncLLM(llm.path, gpu_layers=5), "did you mean n_gpu_layers?"),
        (lambda llm: plan_model(llm.path, n_context=5), "did you mean n_ctx?"),
        (lambda llm: llm.generate("a", temprature=1), "temprature .* did you mean temperature?"),
        (lambda llm: llm.generate("a", ontoken=print), "did you mean on_token?"),
        (lambda llm: llm.stream("a", max_new_tokens=1), "did you mean max_tokens?"),
        (lambda llm: llm.chat([], tool=[]), "did you mean tools?"),
        (lambda llm: llm.embed(texts="a"), "did you mean text?"),
        (lambda llm: llm.tokenize("a", add_specials=True), "did you mean add_special?"),
        (lambda llm: llm.save_state(pth="a"), "did you mean path?"),
        (lambda llm: asyncio.run(AsyncLLM(llm).generate("a", temprature=1)), "did you mean temperature?"),
        (lambda llm: asyncio.run(AsyncLLM(llm).chat([], temprature=1)), "did you mean temperature?"),
    ],
)
def test_mistyped_names_are_told_the_nearest(fake_llm: MakeLLM, call: Callable[[LLM], Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        call(fake_llm())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.chat.completions.create("x"), "create takes nothing without a name; .* create(messages=...)"),
        (lambda llm: llm.completions.create("x"), "create takes nothing without a name; .* create(prompt=...)"),
        (lambda llm: llm.embeddings.create("x"), "create takes nothing without a name; .* create(input=...)"),
        (lambda llm: LLM(llm.path, 4096), "LLM takes only model without a name; name the others, as in LLM(n_ctx=...)"),
        (lambda llm: llm.generate("a", None, 5), "generate takes only prompt and params without a name"),
        (lambda llm: llm.chat([], None, []), "chat takes only messages and params without a name"),
        (lambda llm: llm.benchmark_generate(x=1), "x is no parameter that vkllm knows; docs/embed.md says"),
        (lambda llm: llm.benchmark_generate("a", generate_len=1), "did you mean generate_length?"),
        (lambda llm: llm.tune(budget=1), "did you mean budget_s?"),
        (lambda llm: llm.measure_kernels(rows=1), "did you mean n_rows?"),
        (lambda llm: LLM(llm.path, colour="blue"), "colour is no parameter that vkllm knows; docs/embed.md says"),
        (lambda llm: llm.chat([]), 'messages is empty; give at least one message, such as {"role": "user"'),
        (lambda llm: llm.chat((message for message in ()), stream=True), "messages is empty"),
        (lambda llm: asyncio.run(AsyncLLM(llm).chat([])), "messages is empty"),
        (lambda llm: llm.detokenize("ab"), "'ab' is not a list of token ids; `tokenize` makes one of a text"),
        (lambda llm: plan_model(llm.path, device="0,"), "device takes devices as their indices .*, not '0,'"),
        (lambda llm: plan_model(llm.path, split_mod="layer"), "did you mean split_mode?"),
        (lambda llm: plan_model(llm.path, device=True), "device must be an index or a part of a name, not True"),
    ],
)
def test_calls_that_cannot_be_meant_so_are_told_in_a_sentence(
    fake_llm: MakeLLM, call: Callable[[LLM], Any], message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        call(fake_llm())


def test_a_missing_argument_is_pythons_own_error(fake_llm: MakeLLM) -> None:
    with pytest.raises(TypeError, match=r"generate\(\) missing 1 required positional argument: 'prompt'"):
        fake_llm().generate()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"create\(\) missing 1 required keyword-only argument: 'messages'"):
        fake_llm().chat.completions.create()  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type_k": "q4_0"}, "type_k .* must be f16 or q8_0, not 'q4_0'"),
        ({"type_v": 8}, "type_v .* must be f16 or q8_0, not 8"),
        ({"n_ctx": 1}, "a context of 1 token is not possible"),
        ({"n_ctx": "4096"}, "n_ctx must be a whole number of tokens, here from 2 to 256, or 0 for .*, not '4096'"),
        ({"n_ctx": 2**40}, "n_ctx must be a whole number of tokens, here from 2 to 256"),
        ({"n_gpu_layers": -2}, "n_gpu_layers .* must be a whole number of at least 0, or -1 for all, not -2"),
        ({"vram_limit": "8GiB"}, "vram_limit .* must be a whole number"),
        ({"ram_limit": -1}, "ram_limit"),
        ({"device": True}, "device must be an index or a part of a name, not True"),
        ({"device": 1.5}, "device must be"),
        ({"device": "0/1"}, "device takes devices as their indices or parts of their names, with .* not '0/1'"),
        ({"device": " "}, "device takes devices .* not ' '"),
        ({"device": []}, "device must name a device, not be an empty list"),
        ({"device": [0, None]}, r"device must name devices, and one of \[0, None\] is None"),
        ({"device": "0," * 8 + "0"}, r"device \(-dev\) names 9 devices; a model runs on 8 at most"),
        ({"split_mode": "columns"}, r"split_mode \(-sm\) must be one of none, layer, tensor or row, .* not 'columns'"),
        ({"tensor_split": "3,1"}, r"tensor_split \(-ts\) must be shares such as \(3, 1\), .* not '3,1'"),
        ({"tensor_split": (1, -1)}, r"each share of tensor_split \(-ts\) must be a number between 0"),
        ({"tensor_split": [0, 0]}, r"tensor_split \(-ts\) must have a share above 0"),
        ({"num_shards": 0}, r"num_shards \(--num-shards\) must be a whole number between 1 and 8, not 0"),
        ({"main_gpu": -1}, r"main_gpu \(-mg\) must be a whole number of at least 0, not -1"),
        ({"seed": -2}, "seed must be"),
        ({"seed": "7"}, "seed must be"),
        ({"on_progress": 5}, "on_progress must be a function"),
    ],
)
def test_options_that_are_wrong_are_found_before_a_process_starts(
    tiny_gguf: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("the engine was started")

    monkeypatch.setattr("vkllm.api.loading.EngineProcess", no_process)
    with pytest.raises(InvalidParameter, match=message):
        LLM(tiny_gguf, **options)
    if "n_ctx" not in options:
        with pytest.raises(InvalidParameter, match=message):
            AsyncLLM(tiny_gguf, **options)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be"),
        ({"json_schema": "{"}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"grammar": "root ::= nothing"}, "grammar"),
        ({"params": {"top_p": 1}}, "params must be SamplingParams"),
        ({"origin": 5}, "origin must be text"),
    ],
)
async def test_wrong_options_are_found_before_the_model_is_loaded(options: dict[str, Any], message: str) -> None:
    llm = AsyncLLM("there is no such model")
    for answer in (llm.generate("a", **options), llm.chat([{"role": "user", "content": "Hi"}], **options)):
        with pytest.raises(InvalidParameter, match=message):
            await answer


@pytest.mark.asyncio
async def test_batches_of_all_kinds(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    again = AsyncLLM(llm)
    assert llm.generate([]) == [] == llm.generate(()) == await again.generate([])
    assert llm.embed([]) == [] == await again.embed([])
    assert llm.completions.create(prompt=[]).choices == []
    for batch in (
        ["Xab", "Xcd"],
        ("Xab", "Xcd"),
        (text for text in ("Xab", "Xcd")),
        {"Xab": 1, "Xcd": 2}.keys() | set(),
    ):
        if isinstance(batch, set):  # a set has no order
            with pytest.raises(InvalidParameter, match="is no prompt"):
                llm.generate(batch)
        else:
            assert [answer.text for answer in llm.generate(batch, max_tokens=2)] == ["ab", "cd"]
    assert [answer.text for answer in llm.generate(np.array([[88, 97], [88, 98]]), max_tokens=1)] == ["a", "b"]
    assert llm.generate(np.array([88, 97]), max_tokens=1).text == "a"
    for wrong in (b"Xab", {"prompt": "Xab"}, {"Xab"}, None, 5):
        with pytest.raises(InvalidParameter, match="is no prompt; pass text or a list of token ids"):
            llm.generate(wrong)
    with pytest.raises(InvalidParameter, match="params must be SamplingParams, not a dict"):
        llm.generate("Xab", {"temperature": 0})


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are counted in /proc")
def test_ctrl_c_while_a_model_is_loaded_leaves_no_process(fake_llm: MakeLLM) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        fake_llm(device="slow start")
    assert children.read_text() == before
    assert fake_llm().generate("Xab", max_tokens=1).text == "a"


@pytest.mark.parametrize("model", [None, 3, b"a"])
def test_a_plan_of_what_is_no_name_is_refused(model: Any) -> None:
    with pytest.raises(InvalidParameter, match="model must be a name or a path"):
        plan_model(model)
