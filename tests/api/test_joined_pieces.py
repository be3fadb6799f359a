"""Streams that join the pieces that have come meanwhile: what a slow reader gets is the same, in fewer pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from vkllm.api.answer import AnswerText, Piece
from vkllm.api.async_stream import AsyncStream, joining
from vkllm.engine.events import Event, Failed, Finished, PromptProgress, RunStats, Token, TokenLogprob
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import DeviceLost
from vkllm.text.answers.parts import Parts

pytestmark = pytest.mark.asyncio

END = Finished(1, "length", RunStats(2, 0, 6, 0.1, 0.1, 0.1))


class Letters:
    """A detokenizer: ids are letters."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


class Thoughts:
    """A parser: what is upper case is reasoning."""

    def push(self, text: str) -> Parts:
        return Parts(reasoning=text) if text.isupper() else Parts(text=text)

    def finish(self) -> Parts:
        return Parts()


class Engine:
    """Has all events at once."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events, self.cancelled = events, 0

    def send(self, request: Request, on_event: Any) -> None:
        for event in self.events:
            on_event(event)

    def cancel(self, request_id: int) -> None:
        self.cancelled += 1


def tokens(text: str, **options: Any) -> list[Event]:
    return [Token(1, ord(letter), *options.values()) for letter in text]


def stream_of(engine: Engine, parser: Any = None, *, joins: bool = True, **params: Any) -> AsyncStream:
    async def opened() -> Any:
        return engine, None

    request = Request(1, (1, 2), SamplingParams(**params), frozenset())
    made = AsyncStream(opened, lambda prompts: AnswerText(request, Letters(), chr, parser))  # type: ignore[arg-type]
    joining([made], joins=joins)
    return made


async def pieces_of(stream: AsyncStream) -> list[Piece]:
    async with stream:
        await asyncio.sleep(0)  # all that the engine has sent is in the event loop's queue
        return [piece async for piece in stream]


async def test_text_is_joined_with_its_tokens_and_log_probabilities() -> None:
    events = [*tokens("abc", logprob=-0.5, top=(TokenLogprob(97, -0.5),)), END]
    (piece,) = await pieces_of(stream_of(Engine(events), logprobs=1))
    assert (piece, piece.token_ids) == ("abc", [97, 98, 99])
    assert piece.logprobs is not None and [each.text for each in piece.logprobs] == ["a", "b", "c"]
    stream = stream_of(Engine(events), logprobs=1, joins=False)
    apart = await pieces_of(stream)
    assert [(each, each.token_ids) for each in apart] == [("a", [97]), ("b", [98]), ("c", [99])]
    assert (await stream.result()).text == "abc"


async def test_only_text_is_joined_and_the_order_stays() -> None:
    progress = PromptProgress(1, 2, 0, 1, 0.0)
    found = await pieces_of(stream_of(Engine([progress, *tokens("abCDef"), END]), Thoughts()))
    assert found[0].progress == progress
    assert [(str(each), each.reasoning, each.token_ids) for each in found[1:]] == [
        ("ab", "", [97, 98]),
        ("", "C", [67]),
        ("", "D", [68]),
        ("ef", "", [101, 102]),
    ]


async def test_what_came_before_an_error_is_read_before_it() -> None:
    stream = stream_of(Engine([*tokens("ab"), Failed(1, DeviceLost("gone"))]))
    async with stream:
        await asyncio.sleep(0)
        assert await anext(stream) == "ab"
        with pytest.raises(DeviceLost, match="gone"):
            await anext(stream)


async def test_a_stop_string_ends_it_and_the_request() -> None:
    engine = Engine([*tokens("abcd"), END])
    stream = stream_of(engine, stop=("c",))
    assert [str(each) for each in await pieces_of(stream)] == ["ab"]
    assert engine.cancelled == 1
