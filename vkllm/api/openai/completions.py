"""Answers in the shape of OpenAI's API, for programs that were written for it.

It knows the fields, and how an answer's log-probabilities and counts fill them; not how answers are made. The shapes
are those of the openai package 3.54, with `reasoning_content` as llama.cpp's and vLLM's servers have it. Fields that
vkllm never fills are left out, but for `refusal`, which programs look at.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from vkllm.api.answer import Generation, Logprob, Piece
from vkllm.api.embedding import Embedding
from vkllm.text.tokenizer import Tokenizer

Reason = Literal["stop", "length", "tool_calls"]


class Shape(BaseModel):
    """One object of the API. It does not change; `model_dump()` is a dict of it, `model_dump_json()` its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TopTokenLogprob(Shape):
    """A token that could have come. bytes: its UTF-8 bytes, perhaps a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopTokenLogprob):
    """A token that came, and the likeliest ones in its place, best first."""

    top_logprobs: list[TopTokenLogprob]


class ChoiceLogprobs(Shape):
    """One entry a token of the content."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(Shape):
    """cached_tokens: those of the prompt that were not computed, because they were cached."""

    cached_tokens: int


class Usage(Shape):
    """Counts of tokens; of several choices, the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CalledFunction(Shape):
    """A tool's name, and its arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(Shape):
    """A call of a tool; the message with its result names its id."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class DeltaToolCall(MessageToolCall):
    """A call in a chunk: always a whole one. index: which of the message's calls it is, counted from 0."""

    index: int


class WithReasoning(Shape):
    """A message or a part of one that may have reasoning; without any, its dict has no such key."""

    reasoning_content: str | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = fields(self)
        if self.reasoning_content is None:
            made.pop("reasoning_content", None)
        return made


class AssistantMessage(WithReasoning):
    """What the model said; content is None where it only calls tools."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MessageToolCall] | None = None


class ChatChoice(Shape):
    """One answer to a conversation."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Reason


class ChatCompletion(Shape):
    """What `chat.completions.create` returns.

    >>> made = llm.chat.completions.create(
    ...     messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=7, temperature=0
    ... )
    >>> made.choices[0].message.content
    'The capital of France is Paris.'
    >>> made.usage.completion_tokens
    7
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(WithReasoning):
    """What a chunk adds to a message: the role at first, then reasoning, content or calls, nothing at last."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(Shape):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Reason | None = None


class ChatCompletionChunk(Shape):
    """What `chat.completions.create(stream=True)` yields. usage: only in the last one, which has no choices.

    >>> chunks = llm.chat.completions.create(
    ...     messages=[{"role": "user", "content": "What is the capital of France?"}],
    ...     max_tokens=7,
    ...     temperature=0,
    ...     stream=True,
    ... )
    >>> print("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    The capital of France is Paris.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextLogprobs(Shape):
    """Of a text's tokens: how each reads, how likely it was, what else was likely, where in the text it begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Shape):
    """One continuation of a prompt, or what a chunk adds to it. finish_reason: None until its end."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Reason | None = None


class Completion(Shape):
    """What `completions.create` returns, and with stream=True yields, with usage in the last one as for chats.

    >>> made = llm.completions.create(prompt="The capital of France is", max_tokens=1, temperature=0)
    >>> made.choices[0].text
    ' Paris'
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class EmbeddingData(Shape):
    """The embedding of one text: numbers, or their bytes as little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Shape):
    """Counts of tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Shape):
    """What `embeddings.create` returns, in the order of the texts.

    >>> found = llm.embeddings.create(input=["a cat", "a kitten"])
    >>> len(found.data), len(found.data[0].embedding)
    (2, 576)
    """

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


def finish_reason(generation: Generation) -> Reason:
    """OpenAI has no word for an answer that was cancelled."""
    if generation.finish_reason == "length":
        return "length"
    return "tool_calls" if generation.tool_calls else "stop"


def message_of(generation: Generation) -> AssistantMessage:
    """An answer as a message."""
    generation = generation.with_cut_call()
    calls = [MessageToolCall.model_validate(call.as_message_part()) for call in generation.tool_calls]
    return AssistantMessage(
        content=generation.text or (None if calls else ""),
        reasoning_content=generation.reasoning or None,
        tool_calls=calls or None,
    )


def delta_of(piece: Piece, n_calls: int) -> Delta:
    """A piece of an answer as what it adds to the message. n_calls: those that came before it."""
    piece = piece.with_cut_call()
    calls = [
        DeltaToolCall.model_validate({"index": n_calls + place, **call.as_message_part()})
        for place, call in enumerate(piece.tool_calls)
    ]
    return Delta(
        content=str(piece) if piece else None, reasoning_content=piece.reasoning or None, tool_calls=calls or None
    )


def usage_of(prompts: Sequence[Sequence[Generation]]) -> Usage:
    """Counts over several prompts with one or more answers each; of a prompt's answers only the first computes it."""
    first = [answers[0].stats for answers in prompts]
    n_prompt = sum(stats.n_prompt for stats in first)
    n_generated = sum(len(answer.token_ids) for answers in prompts for answer in answers)
    return Usage(
        prompt_tokens=n_prompt,
        completion_tokens=n_generated,
        total_tokens=n_prompt + n_generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(stats.n_cached for stats in first)),
    )


def embedding_response(found: Sequence[Embedding], model: str, *, in_base64: bool) -> EmbeddingResponse:
    """Embeddings as the API returns them."""
    data = []
    for index, each in enumerate(found):
        as_bytes = struct.pack(f"<{len(each.vector)}f", *each.vector)
        embedding = base64.b64encode(as_bytes).decode() if in_base64 else each.vector
        data.append(EmbeddingData(index=index, embedding=embedding))
    n_tokens = sum(each.n_tokens for each in found)
    return EmbeddingResponse(
        data=data, model=model, usage=EmbeddingUsage(prompt_tokens=n_tokens, total_tokens=n_tokens)
    )


def logprobs_of_text(generation: Generation, tokenizer: Tokenizer) -> list[Logprob] | None:
    """Those of the tokens that are text; a stop token at the end is none."""
    logprobs = generation.logprobs
    if logprobs and generation.finish_reason == "stop" and logprobs[-1].token_id in tokenizer.stop_ids:
        return logprobs[:-1]
    return logprobs


def chat_logprobs(logprobs: Sequence[Logprob] | None, tokenizer: Tokenizer) -> ChoiceLogprobs | None:
    """A chat's form of log-probabilities."""
    if logprobs is None:
        return None

    def token_bytes(token_id: int) -> list[int]:
        return list(tokenizer.token_bytes(token_id))

    return ChoiceLogprobs(
        content=[
            TokenLogprob(
                token=entry.text,
                logprob=entry.logprob,
                bytes=token_bytes(entry.token_id),
                top_logprobs=[
                    TopTokenLogprob(token=top.text, logprob=top.logprob, bytes=token_bytes(top.token_id))
                    for top in entry.top
                ],
            )
            for entry in logprobs
        ]
    )


def text_logprobs(logprobs: Sequence[Logprob] | None, offset: int) -> TextLogprobs | None:
    """A text's form of log-probabilities. offset: the characters of the answer before it."""
    if logprobs is None:
        return None
    offsets = []
    for entry in logprobs:
        offsets.append(offset)
        offset += len(entry.text)
    return TextLogprobs(
        tokens=[entry.text for entry in logprobs],
        token_logprobs=[entry.logprob for entry in logprobs],
        top_logprobs=[{top.text: top.logprob for top in entry.top} for entry in logprobs],
        text_offset=offsets,
    )
