"""How a model is to be loaded, as people type it, and what they should know of where it lies.

Several commands share these options; they become arguments of `LLM` and `plan_model`.
"""

from __future__ import annotations

import re
from typing import Any

from vkllm import LLM, InvalidParameter
from vkllm.faces.terminal import complain
from vkllm.model.limits import memory_size

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def loading(
    ctx_size: int | None = None,
    device: str | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    gpu_layers: str | None = None,
    vram_limit: str | None = None,
    ram_limit: str | None = None,
) -> dict[str, Any]:
    """Arguments of `LLM` by name. Raises InvalidParameter."""
    return {
        "n_ctx": ctx_size,
        "device": device,
        "type_k": type_k,
        "type_v": type_v,
        "n_gpu_layers": layers(gpu_layers),
        "vram_limit": size(vram_limit, "--vram-limit"),
        "ram_limit": size(ram_limit, "--ram-limit"),
    }


def size(text: str | None, option: str) -> int | None:
    """Bytes of a size such as 16GiB, 16GB, 16G, 1.5g or 500MiB; a G is always 2^30 bytes, as in llama.cpp's tools."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if match is None:
        raise InvalidParameter(f"{option} takes a size such as 16GiB or 500MiB, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def layers(text: str | None) -> int | None:
    """The number of -ngl; "all", "auto" and -1 are all layers."""
    if text is None or text.strip().lower() in ("all", "auto", "-1"):
        return None
    if not text.strip().isdecimal():
        raise InvalidParameter(f"-ngl takes a number of layers or all, not {text!r}")
    return int(text)


def tell_of_memory(llm: LLM) -> None:
    """Says on standard error if a part of the model lies in memory that makes it slower."""
    fastest, *others = llm.plan.tiers
    slow = [tier for tier in others if tier.bytes_per_s < fastest.bytes_per_s]
    if n_bytes := sum(tier.weights_bytes + tier.cache_bytes for tier in slow):
        complain("note", f"{memory_size(n_bytes)} of the model lie in system memory, which is slower; see `vkllm plan`")
    if llm.moved_bytes:
        complain("warning", f"the driver refused {memory_size(llm.moved_bytes)}, which now lie in slower memory")
