"""Large language models on any GPU with a Vulkan driver: `from vkllm import LLM`.

Importing this touches no device and reads no model; each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vkllm.async_llm import AsyncLLM
    from vkllm.async_stream import AsyncStream
    from vkllm.engine.request import DeviceReport, EngineStats, RunStats, SamplingParams
    from vkllm.errors import (
        ContextOverflow,
        DeviceError,
        DeviceLost,
        DeviceTimeout,
        InvalidParameter,
        ModelFileError,
        ModelNotFound,
        NoDevice,
        OutOfDeviceMemory,
        RequestError,
        StateFileError,
        UnsupportedModel,
        VkllmError,
    )
    from vkllm.generation import Generation, Logprob, Piece, Stream, TopLogprob
    from vkllm.gpu.step_times import KernelTime, KernelWork, StepTimes
    from vkllm.gpu.tuner import TuningReport
    from vkllm.llm import LLM
    from vkllm.model.plan import MemoryPlan
    from vkllm.openai.completions import ChatCompletion, ChatCompletionChunk, Completion, EmbeddingResponse
    from vkllm.planning import ModelPlan, plan_model

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncStream",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "ContextOverflow",
    "DeviceError",
    "DeviceLost",
    "DeviceReport",
    "DeviceTimeout",
    "EmbeddingResponse",
    "EngineStats",
    "Generation",
    "InvalidParameter",
    "KernelTime",
    "KernelWork",
    "Logprob",
    "MemoryPlan",
    "ModelFileError",
    "ModelNotFound",
    "ModelPlan",
    "NoDevice",
    "OutOfDeviceMemory",
    "Piece",
    "RequestError",
    "RunStats",
    "SamplingParams",
    "StateFileError",
    "StepTimes",
    "Stream",
    "TopLogprob",
    "TuningReport",
    "UnsupportedModel",
    "VkllmError",
    "__version__",
    "plan_model",
]

_MODULES = {
    "AsyncLLM": "vkllm.async_llm",
    "AsyncStream": "vkllm.async_stream",
    "ChatCompletion": "vkllm.openai.completions",
    "ChatCompletionChunk": "vkllm.openai.completions",
    "Completion": "vkllm.openai.completions",
    "DeviceReport": "vkllm.engine.request",
    "EmbeddingResponse": "vkllm.openai.completions",
    "EngineStats": "vkllm.engine.request",
    "KernelTime": "vkllm.gpu.step_times",
    "KernelWork": "vkllm.gpu.step_times",
    "LLM": "vkllm.llm",
    "Generation": "vkllm.generation",
    "Logprob": "vkllm.generation",
    "MemoryPlan": "vkllm.model.plan",
    "ModelPlan": "vkllm.planning",
    "Piece": "vkllm.generation",
    "RunStats": "vkllm.engine.request",
    "SamplingParams": "vkllm.engine.request",
    "StepTimes": "vkllm.gpu.step_times",
    "Stream": "vkllm.generation",
    "TopLogprob": "vkllm.generation",
    "TuningReport": "vkllm.gpu.tuner",
    "plan_model": "vkllm.planning",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "vkllm.errors")), name)


def __dir__() -> list[str]:
    return __all__
