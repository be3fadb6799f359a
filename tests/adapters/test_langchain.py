"""The chat model for LangChain, by LangChain's own functions, on an engine that echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

pytest.importorskip("langchain_core", reason="langchain-core is no part of the dev extra: it brings much with it")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from vkllm import LLM, InvalidParameter
from vkllm.adapters.langchain import ChatVkllm

Make = Callable[..., ChatVkllm]


@pytest.fixture
def make(fake_llm: Callable[..., LLM], tiny_gguf: Path) -> Iterator[Make]:
    """fake_llm's engine is in the place of the real one."""
    made: list[ChatVkllm] = []

    def make(**options: Any) -> ChatVkllm:
        made.append(ChatVkllm(model=str(tiny_gguf), **options))
        return made[-1]

    yield make
    for model in made:
        model.close()


def test_an_answer_comes_with_its_counts(make: Make) -> None:
    answer = make().invoke("Hi")
    assert isinstance(answer, AIMessage) and answer.content == "user\nHi"
    assert answer.usage_metadata is not None and answer.usage_metadata["total_tokens"] == 29
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_conversation_keeps_its_roles(make: Make) -> None:
    parts = HumanMessage([{"type": "text", "text": "x"}])
    answer = make().invoke([SystemMessage("Be short"), HumanMessage("Hi"), AIMessage("Hello"), parts])
    prompt = "<system\nBe short>\n<user\nHi>\n<assistant\nHello>\n<user\nx>\n<assistant\n"
    assert answer.content == "system\nBe short"
    assert answer.usage_metadata["input_tokens"] == len(prompt)


def test_a_stream_ends_with_counts_and_adds_up(make: Make) -> None:
    chunks = list(make(max_tokens=4).stream("Hi"))
    assert [chunk.content for chunk in chunks if chunk.content] == list("user")
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == 4
    assert whole.response_metadata["finish_reason"] == "length"


def test_asyncio_streams_and_batches_without_a_thread_each(make: Make) -> None:
    model = make()

    async def ask() -> tuple[list[Any], list[Any]]:
        pieces = [chunk.content async for chunk in model.astream("Hi") if chunk.content]
        return pieces, await asyncio.gather(*(model.ainvoke("Hi") for _ in range(5)))

    pieces, answers = asyncio.run(ask())
    assert pieces == list("user\nHi")
    assert [answer.content for answer in answers] == ["user\nHi"] * 5


def test_options_of_a_call_override_those_of_the_model(make: Make) -> None:
    model = make(max_tokens=2, load_options={"n_ctx": 64})
    assert model.invoke("Hi").content == "us"
    assert model.invoke("Hi", max_tokens=3).content == "use"
    assert model.bind(max_tokens=4).invoke("Hi").content == "user"
    assert model.invoke("Hi", stop=["s"]).content == "u"
    with pytest.raises(InvalidParameter, match="temperature"):
        model.invoke("Hi", temperature=-1)


def test_it_is_a_part_of_a_chain(make: Make) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | make() | StrOutputParser()
    assert chain.invoke({"question": "Hi"}) == "user\nHi"
    assert "".join(chain.stream({"question": "Hi"})) == "user\nHi"


def test_leaving_a_stream_frees_the_engine(make: Make) -> None:
    model = make(load_options={"device": "slow steps"})
    for _ in model.stream("Hi" * 50):
        break
    assert model._llm.generate(chr(fake.SEED) + "a", max_tokens=1).text == "\0"
