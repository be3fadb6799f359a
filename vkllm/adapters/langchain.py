"""vkllm's models in LangChain: `pip install "vkllm[langchain]"`, then `ChatVkllm(model="smollm2").invoke("Hello")`.

It knows LangChain's chat models and messages, and vkllm's public names. Reasoning is `reasoning_content` among a
message's additional_kwargs, as other chat models have it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolCall,
    ToolCallChunk,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from vkllm import LLM, AsyncLLM, Generation, Piece


class ChatVkllm(BaseChatModel):
    """A chat model of LangChain. The model is loaded when the object is made.

    model: a name or path, as `vkllm.LLM` takes it. load_options: the other arguments of `vkllm.LLM`. The rest are
    fields of `vkllm.SamplingParams`; all of these may also be given to `invoke`, `stream` or `bind`. Raises what
    `vkllm.LLM` and its `chat` raise.
    """

    model: str = "smollm2"
    load_options: dict[str, Any] = Field(default_factory=dict)
    temperature: float | None = None
    max_tokens: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    _llm: LLM = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Loads the model."""
        super().model_post_init(context)
        self._llm = LLM(self.model, **self.load_options)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call. Whether it does is its own choice, so there is no tool_choice."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def close(self) -> None:
        """Ends the engine and releases the device."""
        self._llm.close()

    @property
    def _llm_type(self) -> str:
        return "vkllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, **self._sampling(None, {})}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(self._llm.chat(_dicts(messages), **self._sampling(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(await AsyncLLM(self._llm).chat(_dicts(messages), **self._sampling(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._llm.chat(_dicts(messages), stream=True, **self._sampling(stop, kwargs)) as answer:
            n_calls = 0
            for piece in answer:
                chunk = _chunk(piece, n_calls)
                n_calls += len(piece.tool_calls)
                if run_manager is not None:
                    run_manager.on_llm_new_token(str(piece), chunk=chunk)
                yield chunk
            yield self._last_chunk(answer.result())

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        model = AsyncLLM(self._llm)
        async with model.chat(_dicts(messages), stream=True, **self._sampling(stop, kwargs)) as answer:
            n_calls = 0
            async for piece in answer:
                chunk = _chunk(piece, n_calls)
                n_calls += len(piece.tool_calls)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(piece), chunk=chunk)
                yield chunk
            yield self._last_chunk(await answer.result())

    def _sampling(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """The options of a request: the model's own, overridden by those of a call."""
        names = ("temperature", "max_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return own | given | ({} if stop is None else {"stop": stop})

    def _result(self, answer: Generation) -> ChatResult:
        message = AIMessage(
            content=answer.text,
            additional_kwargs=_reasoning(answer),
            tool_calls=[ToolCall(name=call.name, args=call.arguments, id=call.id) for call in answer.tool_calls],
            response_metadata=self._metadata(answer),
            usage_metadata=_usage(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, answer: Generation) -> ChatGenerationChunk:
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                response_metadata=self._metadata(answer),
                usage_metadata=_usage(answer),
                chunk_position="last",
            )
        )

    def _metadata(self, answer: Generation) -> dict[str, Any]:
        return {"model_name": self.model, "model_provider": "vkllm", "finish_reason": answer.finish_reason}


def _chunk(piece: Piece, n_calls: int) -> ChatGenerationChunk:
    """A piece of an answer. n_calls: those that came before it."""
    calls = [
        ToolCallChunk(name=call.name, args=call.arguments_json, id=call.id, index=n_calls + place)
        for place, call in enumerate(piece.tool_calls)
    ]
    message = AIMessageChunk(content=str(piece), additional_kwargs=_reasoning(piece), tool_call_chunks=calls)
    return ChatGenerationChunk(message=message)


def _reasoning(answer: Piece | Generation) -> dict[str, Any]:
    return {"reasoning_content": answer.reasoning} if answer.reasoning else {}


def _dicts(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    found = convert_to_openai_messages(messages, text_format="string")
    assert isinstance(found, list)
    return found


def _usage(answer: Generation) -> UsageMetadata:
    stats = answer.stats
    return UsageMetadata(
        input_tokens=stats.n_prompt,
        output_tokens=stats.n_generated,
        total_tokens=stats.n_prompt + stats.n_generated,
        input_token_details={"cache_read": stats.n_cached},
    )
