"""The chat model for LangChain, by LangChain's own functions, on an engine that echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from tiny_gguf import write_tiny_gguf

pytest.importorskip("langchain_core", reason="langchain-core is no part of the dev extra: it brings much with it")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
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


def weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: sunny"


def test_tools_can_be_bound_and_calls_and_reasoning_come_back(fake_llm: Callable[..., LLM], tmp_path: Path) -> None:
    template = (
        "{# </think><tool_call> #}{% if tools %}{% endif %}{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}"
    )
    path = write_tiny_gguf(tmp_path / "echo.gguf", template=template, n_ctx=1024)
    said = '<think>Hm</think>Look.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    model = ChatVkllm(model=str(path))
    bound = model.bind_tools([weather])
    chunks = list(bound.stream(said))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    for message in (bound.invoke(said), streamed):
        assert message.content == "Look." and message.additional_kwargs == {"reasoning_content": "Hm"}
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Rome"}) and call["id"]
        result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
        assert bound.invoke([HumanMessage("Hi"), message, result]).content == "Hi"
    model.close()


def test_it_is_a_part_of_a_chain(make: Make) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | make() | StrOutputParser()
    assert chain.invoke({"question": "Hi"}) == "user\nHi"
    assert "".join(chain.stream({"question": "Hi"})) == "user\nHi"


def test_leaving_a_stream_frees_the_engine(make: Make) -> None:
    model = make(load_options={"device": "slow steps"})
    for _ in model.stream("Hi" * 50):
        break
    assert model._llm.generate(chr(fake.SEED) + "a", max_tokens=1).text == "\0"
