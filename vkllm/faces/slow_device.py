"""What makes a model slow on its device, in sentences for people. Where its parts lie is told elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vkllm import LLM


def why_slow(llm: LLM) -> list[str]:
    """A sentence, without a full stop, for each thing about the device that makes an open model slow."""
    reasons = []
    if llm.slow_paths:
        wrong = " and ".join(llm.slow_paths)
        reasons.append(f"the driver of {llm.device_name} computes wrongly with {wrong}; slower kernels run instead")
    if llm.is_cpu_device:
        reasons.append(f"{llm.device_name} is a Vulkan driver on the CPU, which is slow")
    return reasons
