"""How a model is to be loaded, as people type it, and what they should know of where it lies.

Several commands share these options; they become arguments of `LLM` and `plan_model`.
"""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.options import DeviceName
from vkllm.faces.terminal import complain, is_terminal

if TYPE_CHECKING:
    from vkllm import LLM


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Loading", show_default=False, **more)


@dataclass(frozen=True)
class LoadingFlags:
    """Options of the commands that load a model, or plan to."""

    ctx_size: Annotated[
        int | None, _option("-c", "--ctx-size", help="Tokens of prompt and answer; 0: the most that costs no speed.")
    ] = None
    gpu_layers: Annotated[
        str | None, _option("-ngl", "--n-gpu-layers", metavar="N|all", help="Layers in the GPU's own memory.")
    ] = None
    device: DeviceName = None
    cache_type_k: Annotated[
        str,
        _option(
            "-ctk",
            "--cache-type-k",
            metavar="f16|q8_0",
            help="How keys are cached.",
            autocompletion=lambda: ["f16", "q8_0"],
        ),
    ] = "f16"
    cache_type_v: Annotated[
        str,
        _option(
            "-ctv",
            "--cache-type-v",
            metavar="f16|q8_0",
            help="How values are cached.",
            autocompletion=lambda: ["f16", "q8_0"],
        ),
    ] = "f16"
    vram_limit: Annotated[
        str | None, _option("--vram-limit", metavar="SIZE", help="Most of the GPU's own memory, such as 16GiB.")
    ] = None
    ram_limit: Annotated[
        str | None, _option("--ram-limit", metavar="SIZE", help="Most of the system's memory, such as 500MiB.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of `LLM` by name. Raises InvalidParameter."""
        return {
            "n_ctx": self.ctx_size,
            "device": self.device,
            "type_k": self.cache_type_k,
            "type_v": self.cache_type_v,
            "n_gpu_layers": layers(self.gpu_layers),
            "vram_limit": _size(self.vram_limit, "--vram-limit"),
            "ram_limit": _size(self.ram_limit, "--ram-limit"),
        }


def _ignored(*names: str, **more: Any) -> Any:
    return typer.Option(
        *names, metavar="X", rich_help_panel="Of llama.cpp, without effect here", show_default=False, **more
    )


@dataclass(frozen=True)
class IgnoredFlags:
    """Options that llama.cpp's command lines have and that mean nothing where the GPU does all the work."""

    threads: Annotated[str | None, _ignored("-t", "--threads", help="The device computes, not threads.")] = None
    batch_size: Annotated[str | None, _ignored("-b", "--batch-size", help="The speed decides.")] = None
    ubatch_size: Annotated[str | None, _ignored("-ub", "--ubatch-size", help="The speed decides.")] = None
    flash_attn: Annotated[str | None, _ignored("-fa", "--flash-attn", help="Attention is always so.")] = None

    def note(self) -> str | None:
        """What to tell of those that were given."""
        given = [name for name, value in zip(("-t", "-b", "-ub", "-fa"), astuple(self), strict=True) if value]
        if not given:
            return None
        return f"{', '.join(given)} has no effect here: the device computes, in steps as its speed allows"

    def tell(self) -> None:
        """Tells a person; a script need not hear it each time."""
        if is_terminal(sys.stderr) and (note := self.note()):
            complain("note", note)


def _size(text: str | None, option: str) -> int | None:
    from vkllm.gpu.device.probe import memory_bytes

    return None if text is None else memory_bytes(text, option)


def layers(text: str | None) -> int | None:
    """The number of -ngl; "all", "auto" and -1 are all layers."""
    if text is None or text.strip().lower() in ("all", "auto", "-1"):
        return None
    if not text.strip().isdecimal():
        raise InvalidParameter(f"-ngl takes a number of layers or all, not {text!r}")
    return int(text)


def tell_of_memory(llm: LLM) -> None:
    """Says on standard error if a part of the model lies in memory that makes it slower."""
    from vkllm.model.memory.limits import memory_size

    fastest, *others = llm.plan.tiers
    slow = [tier for tier in others if tier.bytes_per_s < fastest.bytes_per_s]
    if n_bytes := sum(tier.weights_bytes + tier.cache_bytes for tier in slow):
        complain("note", f"{memory_size(n_bytes)} of the model lie in system memory, which is slower; see `vkllm plan`")
    if llm.moved_bytes:
        complain("warning", f"the driver refused {memory_size(llm.moved_bytes)}, which now lie in slower memory")
