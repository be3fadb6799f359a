"""Large language models on any GPU with a Vulkan driver: `from vkllm import LLM`.

Importing this touches no device and reads no model; each public name is imported when it is first used.
"""

from importlib import import_module

# As in typing, whose import would take longer than all of this, and which with `python -m vkllm` may still be one in
# the current folder.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from vkllm.api.answer import Generation, Logprob, Piece, TopLogprob
    from vkllm.api.async_llm import AsyncLLM
    from vkllm.api.async_stream import AsyncStream
    from vkllm.api.benchmark import BatchTimes
    from vkllm.api.llm import LLM
    from vkllm.api.openai.completions import ChatCompletion, ChatCompletionChunk, Completion, EmbeddingResponse
    from vkllm.api.planning import ModelPlan, plan_model
    from vkllm.api.stream import Stream
    from vkllm.engine.events import DeviceReport, EngineStats, RunStats
    from vkllm.engine.params import SamplingParams
    from vkllm.errors import (
        ContextOverflow,
        DeadlineExceeded,
        DeviceError,
        DeviceLost,
        DeviceTimeout,
        InvalidParameter,
        ModelFileError,
        ModelNotFound,
        NoDevice,
        OutOfDeviceMemory,
        QueueFull,
        RequestError,
        StateFileError,
        UnsupportedDevice,
        UnsupportedModel,
        VkllmError,
    )
    from vkllm.gpu.measure.step_times import KernelTime, KernelWork, StepTimes
    from vkllm.gpu.tuning.tuner import TuningReport
    from vkllm.model.memory.plan import MemoryPlan
    from vkllm.text.answers.parts import ToolCall

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncStream",
    "BatchTimes",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "ContextOverflow",
    "DeadlineExceeded",
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
    "QueueFull",
    "RequestError",
    "RunStats",
    "SamplingParams",
    "StateFileError",
    "StepTimes",
    "Stream",
    "ToolCall",
    "TopLogprob",
    "TuningReport",
    "UnsupportedDevice",
    "UnsupportedModel",
    "VkllmError",
    "__version__",
    "plan_model",
]

_MODULES = {
    "AsyncLLM": "vkllm.api.async_llm",
    "AsyncStream": "vkllm.api.async_stream",
    "BatchTimes": "vkllm.api.benchmark",
    "ChatCompletion": "vkllm.api.openai.completions",
    "ChatCompletionChunk": "vkllm.api.openai.completions",
    "Completion": "vkllm.api.openai.completions",
    "DeviceReport": "vkllm.engine.events",
    "EmbeddingResponse": "vkllm.api.openai.completions",
    "EngineStats": "vkllm.engine.events",
    "KernelTime": "vkllm.gpu.measure.step_times",
    "KernelWork": "vkllm.gpu.measure.step_times",
    "LLM": "vkllm.api.llm",
    "Generation": "vkllm.api.answer",
    "Logprob": "vkllm.api.answer",
    "MemoryPlan": "vkllm.model.memory.plan",
    "ModelPlan": "vkllm.api.planning",
    "Piece": "vkllm.api.answer",
    "RunStats": "vkllm.engine.events",
    "SamplingParams": "vkllm.engine.params",
    "StepTimes": "vkllm.gpu.measure.step_times",
    "Stream": "vkllm.api.stream",
    "ToolCall": "vkllm.text.answers.parts",
    "TopLogprob": "vkllm.api.answer",
    "TuningReport": "vkllm.gpu.tuning.tuner",
    "plan_model": "vkllm.api.planning",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "vkllm.errors")), name)


def __dir__() -> list[str]:
    return __all__
