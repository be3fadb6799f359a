"""OpenAI's shape on a tiny file and an engine that echoes; openai's own types must take what comes out."""

from __future__ import annotations

import base64
import inspect
import json
import time
from collections.abc import Callable
from typing import Any

import fake_engine as fake
import numpy as np
import openai.types
import openai.types.chat
import pytest
from openai.resources.chat import Completions as OpenAIChat
from tiny_gguf import IM_END, N_CTX

from vkllm import (
    LLM,
    AsyncLLM,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ContextOverflow,
    DeviceLost,
    EmbeddingResponse,
    InvalidParameter,
)
from vkllm.api.answer import SamplingOptions
from vkllm.api.openai.options import ChatCompletionOptions, EmbeddingOptions, TextOptions
from vkllm.engine.requests import Request

MakeLLM = Callable[..., LLM]
HI = [{"role": "user", "content": "Hi"}]  # the engine answers "user\nHi"
ENDLESS = chr(fake.ENDLESS)
N_HI = 21


def sent_by(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that it sends from now on."""
    sent: list[Request] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: sent.append(request) or submit(request))
    return sent


def test_a_chat_completion_has_openais_fields(fake_llm: MakeLLM) -> None:
    before = int(time.time())
    made = fake_llm().chat.completions.create(model="gpt-4o", messages=HI)
    assert isinstance(made, ChatCompletion)
    assert made.id.startswith("chatcmpl-") and before <= made.created <= time.time()
    assert made.model_dump(exclude={"id", "created"}) == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "user\nHi", "refusal": None, "tool_calls": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": N_HI,
            "completion_tokens": 8,
            "total_tokens": N_HI + 8,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    theirs = openai.types.chat.ChatCompletion.model_validate(made.model_dump())
    assert theirs.choices[0].message.content == "user\nHi" and theirs.usage is not None
    assert theirs.to_dict(exclude_unset=True) == made.model_dump()


def test_chunks_are_the_role_then_content_then_the_reason(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    chunks = list(llm.chat.completions.create(messages=HI, stream=True))
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
    assert "".join(choice.delta.content or "" for choice in choices) == "user\nHi"
    assert [choice.finish_reason for choice in choices] == [None] * 8 + ["stop"]
    assert choices[-1].delta.content is None and {chunk.usage for chunk in chunks} == {None}
    *_, end, usage = llm.chat.completions.create(
        messages=HI, max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    assert end.choices[0].finish_reason == "length"
    assert usage.choices == [] and usage.usage is not None
    assert (usage.usage.completion_tokens, usage.usage.prompt_tokens_details.cached_tokens) == (2, N_HI - 1)
    for chunk in (*chunks, end, usage):
        theirs = openai.types.chat.ChatCompletionChunk.model_validate(chunk.model_dump())
        assert theirs.to_dict(exclude_unset=True) == chunk.model_dump()


def test_parameters_reach_the_engine_under_our_names(fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = fake_llm(seed=9)
    sent = sent_by(llm, monkeypatch)
    llm.chat.completions.create(
        messages=HI,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repeat_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        max_completion_tokens=3,
        seed=5,
        stop=["x", "y"],
    )
    params = sent[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.1, 0.2, 0.3)
    assert (params.max_tokens, params.seed, params.stop, params.logprobs) == (3, 5, ("x", "y"), None)
    llm.chat.completions.create(messages=HI, temperature=None, seed=None, stop=None, n=None, max_tokens=None)
    llm.chat(HI)
    assert sent[1].params == sent[2].params, "None is the default"


def test_several_answers_have_seeds_of_their_own_and_share_the_prompt(
    fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm()
    sent = sent_by(llm, monkeypatch)
    made = llm.chat.completions.create(messages=HI, n=3, seed=2**64 - 2, max_tokens=2)
    assert [request.params.seed for request in sent] == [2**64 - 2, 2**64 - 1, 0]
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (N_HI, 6, N_HI + 6)
    assert made.usage.prompt_tokens_details.cached_tokens == 0
    assert llm.stats().n_cached == 2 * (N_HI - 1)
    chunks = list(llm.chat.completions.create(messages=HI, n=2, stream=True))
    assert [chunk.choices[0].index for chunk in chunks] == [0] * 9 + [1] * 9
    llm.chat.completions.create(messages=HI, n=2, max_tokens=1)
    assert [request.params.seed for request in sent[-2:]] == [None, None]
    seeded = fake_llm(seed=9)
    sent = sent_by(seeded, monkeypatch)
    seeded.completions.create(prompt="Xab", n=2, max_tokens=1)
    assert [request.params.seed for request in sent] == [9, 10]


def test_logprobs_have_an_entry_a_token_of_the_content(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    made = llm.chat.completions.create(messages=[{"role": "é", "content": ""}], logprobs=True, top_logprobs=2)
    assert made.choices[0].message.content == "é\n"
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert [entry.bytes for entry in logprobs.content] == [[0xC3], [0xA9], [10]], "the stop token is no content"
    assert [(top.token, top.logprob) for top in logprobs.content[2].top_logprobs] == [("\n", -0.5), ("\x0b", -1.5)]
    openai.types.chat.ChatCompletion.model_validate(made.model_dump())
    chunks = llm.chat.completions.create(messages=HI, logprobs=True, stream=True)
    found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].delta.content]
    assert [len(logprobs.content) for logprobs in found if logprobs] == [1] * 7
    assert found[0] is not None and found[0].content[0].top_logprobs == []


def test_messages_may_have_parts_of_text_and_be_answers_of_before(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    made = llm.chat.completions.create(messages=[{"role": "user", "content": parts}])
    assert made.choices[0].message.content == "user\nHel\nlo"
    messages: list[Any] = [made.choices[0].message, *HI]
    n_more = len("<assistant\nuser\nHel\nlo>\n")
    assert llm.chat.completions.create(messages=messages).usage.prompt_tokens == N_HI + n_more
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidParameter, match="part of type 'image_url'"):
        llm.chat.completions.create(messages=[{"role": "user", "content": image}])


def test_response_formats_become_schemas(fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = fake_llm()
    seen: list[Any] = []
    of_chat = llm._prompts.of_chat

    def spy(messages: Any, params: Any, options: dict[str, Any], *more: Any) -> Any:
        seen.append(options.pop("json_schema", None))
        return of_chat(messages, params, options, *more)

    monkeypatch.setattr(llm._prompts, "of_chat", spy)
    schema = {"type": "integer"}
    for response_format in (
        None,
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_object", "schema": None},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    ):
        llm.chat.completions.create(messages=HI, response_format=response_format, max_tokens=1)
    assert seen == [None, None, {"type": "object"}, {"type": "object"}, schema]
    no_schemas = ({}, {"schema": None})
    wrong = (
        {"type": "xml"},
        {"type": "json_schema"},
        "x",
        *({"type": "json_schema", "json_schema": s} for s in no_schemas),
    )
    for response_format in wrong:
        with pytest.raises(InvalidParameter, match="response_format must be"):
            llm.chat.completions.create(messages=HI, response_format=response_format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "temprature is no parameter that vkllm knows; did you mean temperature"),
        ({"mirostat": 2}, "^mirostat is no parameter that vkllm knows; docs/embed.md says which there are$"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "give one of them"),
        ({"top_logprobs": 3}, "needs logprobs=True"),
        ({"n": 0}, "n must be a whole number between 1 and 128, not 0"),
        ({"n": 2.5}, "not 2.5"),
        ({"stream_options": {"usage": True}, "stream": True}, "stream_options must be"),
        ({"stream_options": {"include_usage": True}}, "stream_options is for streams; give stream=True too"),
        ({"stream_options": {}, "stream": False}, "stream_options is for streams"),
        ({"messages": []}, "messages is empty; give at least one message"),
        ({"store": True}, "store is not in vkllm: nothing is kept after an answer"),
        ({"temperature": -1}, "temperature must be a number between 0 and 100"),
        ({"messages": ["Hi"]}, "message 0 is of type str; pass a mapping"),
    ],
)
def test_what_cannot_be_is_a_typed_error_that_names_it(fake_llm: MakeLLM, options: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        fake_llm().chat.completions.create(**{"messages": HI, **options})


def test_a_prompt_that_is_too_long_is_refused_before_the_stream_begins(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    with pytest.raises(ContextOverflow, match=f"the context holds {N_CTX}"):
        llm.chat.completions.create(messages=[{"role": "user", "content": "a" * 300}], stream=True)
    with pytest.raises(DeviceLost, match="fake device was lost"):
        list(llm.completions.create(prompt=[chr(fake.FAIL) + "ab", ENDLESS + "abc"], stream=True))
    assert_engine_is_free(llm)


def test_closing_leaving_or_dropping_a_stream_frees_the_engine(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    with llm.completions.create(prompt=ENDLESS + "abc", stream=True, n=3) as chunks:
        assert next(chunks).choices[0].text == "a"
    assert list(chunks) == []
    assert_engine_is_free(llm)
    for _ in llm.completions.create(prompt=ENDLESS + "abc", stream=True):
        break
    assert_engine_is_free(llm)


def assert_engine_is_free(llm: LLM) -> None:
    """A request that nobody has cancelled would keep it for ever."""
    assert llm.generate("Xok", max_tokens=2).text == "ok"


def test_text_completions_take_one_prompt_or_several(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    made = llm.completions.create(prompt="Xab<|im_end|>", logprobs=1)
    assert isinstance(made, Completion) and made.id.startswith("cmpl-") and made.object == "text_completion"
    assert made.model_dump()["choices"] == [
        {
            "index": 0,
            "text": "ab",
            "logprobs": {
                "tokens": ["a", "b"],
                "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
                "text_offset": [0, 1],
            },
            "finish_reason": "stop",
        }
    ]
    assert openai.types.Completion.model_validate(made.model_dump()).choices[0].text == "ab"
    made = llm.completions.create(prompt=["Xab", "Xcd"], n=2, max_tokens=2)
    assert [(choice.index, choice.text) for choice in made.choices] == [(0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")]
    assert made.usage is not None and (made.usage.prompt_tokens, made.usage.completion_tokens) == (6, 8)
    assert llm.completions.create(prompt=[88, 97, IM_END]).choices[0].text == "a"


def test_text_completions_stream_with_offsets(fake_llm: MakeLLM) -> None:
    chunks = list(
        fake_llm().completions.create(
            prompt="Xabc", max_tokens=3, logprobs=0, stream=True, stream_options={"include_usage": True}
        )
    )
    *texts, end, usage = chunks
    assert [chunk.choices[0].text for chunk in texts] == ["a", "b", "c"]
    assert [chunk.choices[0].logprobs.text_offset for chunk in texts if chunk.choices[0].logprobs] == [[0], [1], [2]]
    assert (end.choices[0].text, end.choices[0].finish_reason, end.usage) == ("", "length", None)
    assert usage.choices == [] and usage.usage is not None and usage.usage.total_tokens == 7


@pytest.mark.asyncio
async def test_async_models_have_the_same(fake_llm: MakeLLM, tiny_gguf: Any) -> None:
    async with AsyncLLM(tiny_gguf) as llm:
        made = await llm.chat.completions.create(messages=HI, n=2)
        assert [choice.message.content for choice in made.choices] == ["user\nHi"] * 2
        chunks = [chunk async for chunk in await llm.chat.completions.create(messages=HI, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user\nHi"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert (await llm.completions.create(prompt="Xab", max_tokens=3)).choices[0].text == "aba"
        found = await llm.embeddings.create(input=["ab", "abc"], encoding_format="float")
        assert [each.embedding for each in found.data] == await llm.embed(["ab", "abc"])
        with pytest.raises(InvalidParameter, match="temprature"):
            await llm.chat.completions.create(messages=HI, temprature=1)  # type: ignore[call-overload]
        async with await llm.completions.create(prompt=ENDLESS + "abc", n=2, stream=True) as slow:
            assert (await anext(slow)).choices[0].text == "a"
        assert [chunk async for chunk in slow] == []
        assert (await llm.generate("Xok", max_tokens=2)).text == "ok", "both have been cancelled"
        usage = [
            chunk.usage
            async for chunk in await llm.completions.create(
                prompt="Xab", max_tokens=2, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert usage[:-1] == [None] * 3 and usage[-1] is not None and usage[-1].completion_tokens == 2


def test_embeddings_are_numbers_or_base64(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    texts = ["ab", "abc"]
    made = llm.embeddings.create(model="any", input=texts)
    assert isinstance(made, EmbeddingResponse) and (made.object, made.model) == ("list", "tiny")
    assert [each.embedding for each in made.data] == llm.embed(texts)
    assert [(each.index, each.object) for each in made.data] == [(0, "embedding"), (1, "embedding")]
    assert made.usage.model_dump() == {"prompt_tokens": 5, "total_tokens": 5}
    theirs = openai.types.CreateEmbeddingResponse.model_validate(made.model_dump())
    assert theirs.data[1].embedding == llm.embed("abc")
    coded = llm.embeddings.create(input=[97, 98], encoding_format="base64").data
    assert len(coded) == 1 and isinstance(coded[0].embedding, str), "a list of integers is one text"
    assert np.frombuffer(base64.b64decode(coded[0].embedding), "<f4") == pytest.approx(llm.embed("ab"))
    with pytest.raises(InvalidParameter, match="encoding_format must be"):
        llm.embeddings.create(input="a", encoding_format="int8")


def test_json_of_an_answer_is_read_back_as_the_same(fake_llm: MakeLLM) -> None:
    made = fake_llm().chat.completions.create(messages=HI)
    assert ChatCompletion.model_validate(json.loads(made.model_dump_json())) == made


def test_every_parameter_of_the_openai_package_is_known_and_the_others_are_sampling_params() -> None:
    ours = {*SamplingOptions.__annotations__, "repeat_penalty"}
    of_chats = {"chat_template_kwargs", "enable_thinking", "continue_final_message"}  # as other servers have them
    for options, create, explicit in (
        (ChatCompletionOptions, OpenAIChat.create, {"messages", "model", "stream"}),
        (TextOptions, openai.resources.Completions.create, {"prompt", "model", "stream"}),
        (EmbeddingOptions, openai.resources.Embeddings.create, {"input", "model"}),
    ):
        theirs = inspect.signature(create).parameters.keys() - {"self"} - explicit
        known = options.__annotations__.keys()
        assert theirs <= known
        assert known - theirs <= ours | of_chats
        assert options is EmbeddingOptions or ours <= known
