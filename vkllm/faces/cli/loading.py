"""How a model is to be loaded, as people type it, and what they should know of where it lies.

Several commands share these options; they become arguments of `LLM` and `plan_model`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.options import DeviceName
from vkllm.faces.terminal import complain
from vkllm.parameters import named_devices

if TYPE_CHECKING:
    from vkllm import LLM


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Loading", show_default=False, **more)


@dataclass(frozen=True)
class PlacementFlags:
    """Options of the commands that load a model, whatever its context: where its parts go, how they are cached."""

    gpu_layers: Annotated[
        str | None,
        _option("-ngl", "--n-gpu-layers", metavar="N|all", help="How many layers to keep in the GPU's own memory."),
    ] = None
    device: DeviceName = None
    cache_type_k: Annotated[
        str,
        _option(
            "-ctk",
            "--cache-type-k",
            metavar="f16|q8_0",
            help="Data type of the cached keys.",
            autocompletion=lambda: ["f16", "q8_0"],
        ),
    ] = "f16"
    cache_type_v: Annotated[
        str,
        _option(
            "-ctv",
            "--cache-type-v",
            metavar="f16|q8_0",
            help="Data type of the cached values.",
            autocompletion=lambda: ["f16", "q8_0"],
        ),
    ] = "f16"
    vram_limit: Annotated[
        str | None,
        _option("--vram-limit", metavar="SIZE", help="Use at most this much of the GPU's own memory, such as 16GiB."),
    ] = None
    ram_limit: Annotated[
        str | None,
        _option("--ram-limit", metavar="SIZE", help="Use at most this much of the system's memory, such as 500MiB."),
    ] = None

    override_tensor: Annotated[
        list[str] | None,
        _option(
            "-ot",
            "--override-tensor",
            metavar="EXPR=CPU,...",
            help="Keep tensors whose names match in system memory (=CPU), or let them leave it (=GPU).",
        ),
    ] = None
    n_cpu_moe: Annotated[
        int | None,
        _option("-ncmoe", "--n-cpu-moe", metavar="N", min=0, help="Keep the experts of N layers in system memory."),
    ] = None
    n_parallel: Annotated[
        int | None,
        _option("-np", "--parallel", metavar="N", min=-1, help="How many requests run at once; -1 is the default."),
    ] = None
    split_mode: Annotated[
        str | None,
        _option(
            "-sm",
            "--split-mode",
            metavar="none|layer|tensor",
            help="How to split the model over several GPUs; row is tensor.",
            autocompletion=lambda: ["none", "layer", "tensor"],
        ),
    ] = None
    tensor_split: Annotated[
        str | None,
        _option("-ts", "--tensor-split", metavar="3,1", help="Share of each GPU of the model."),
    ] = None
    main_gpu: Annotated[
        int,
        _option("-mg", "--main-gpu", metavar="N", min=0, help="Which of the GPUs runs all of it, with -sm none."),
    ] = 0
    num_shards: Annotated[
        int | None,
        _option("--num-shards", metavar="N", min=1, help="Over how many GPUs to split the model."),
    ] = None
    cpu_moe: Annotated[bool, _option("-cmoe", "--cpu-moe", help="Keep all experts in system memory.")] = False
    spec: Annotated[
        str,
        _option(
            "--spec",
            metavar="auto|off|ngram|mtp",
            help="How to draft tokens, which one step then verifies: from earlier text (ngram), by a head (mtp).",
            autocompletion=lambda: ["auto", "off", "ngram", "mtp"],
        ),
    ] = "auto"

    def arguments(self) -> dict[str, Any]:
        """Arguments of `LLM` by name. Raises InvalidParameter."""
        return {
            "device": devices_named(self.device),
            "type_k": self.cache_type_k,
            "type_v": self.cache_type_v,
            "n_gpu_layers": layers(self.gpu_layers),
            "vram_limit": _size(self.vram_limit, "--vram-limit"),
            "ram_limit": _size(self.ram_limit, "--ram-limit"),
            "override_tensor": placed(self.override_tensor or (), self.n_cpu_moe, is_all=self.cpu_moe),
            "n_parallel": None if self.n_parallel in (None, -1) else self.n_parallel,
            "spec": self.spec,
            "split_mode": self.split_mode,
            "tensor_split": shares(self.tensor_split),
            "main_gpu": self.main_gpu,
            "num_shards": self.num_shards,
        }


@dataclass(frozen=True)
class LoadingFlags(PlacementFlags):
    """The same, and the context."""

    ctx_size: Annotated[
        int | None,
        _option(
            "-c",
            "--ctx-size",
            help="Context size: tokens of prompt and answer together; 0 is the longest that costs no speed.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of `LLM` by name. Raises InvalidParameter."""
        return {"n_ctx": self.ctx_size, **super().arguments()}


def _size(text: str | None, option: str) -> int | None:
    from vkllm.gpu.device.probe import memory_bytes

    return None if text is None else memory_bytes(text, option)


def devices_named(text: str | None) -> str | tuple[str, ...] | None:
    """The device of -dev, or several. Raises InvalidParameter."""
    if text == "none":
        raise InvalidParameter("-dev none is not in vkllm: it runs on Vulkan; -dev llvmpipe is the driver on the CPU")
    names = named_devices("-dev", text)
    return names if len(names) > 1 else next(iter(names), None)


def shares(text: str | None) -> tuple[float, ...] | None:
    """The shares of -ts, such as 3,1 or 3/1. Raises InvalidParameter."""
    if text is None:
        return None
    try:
        return tuple(float(share) for share in re.split("[,/]", text))
    except ValueError:
        raise InvalidParameter(f"-ts takes shares such as 3,1, one for each GPU, not {text!r}") from None


def layers(text: str | None) -> int | None:
    """The number of -ngl; "all", "auto" and -1 are all layers."""
    if text is None or text.strip().lower() in ("all", "auto", "-1", "-2"):
        return None
    if not text.strip().isdecimal():
        raise InvalidParameter(f"-ngl takes a number of layers or all, not {text!r}")
    return int(text)


def placed(override_tensor: Sequence[str], n_cpu_moe: int | None, *, is_all: bool = False) -> str | None:
    """What -ot, which may be given several times, -ncmoe and -cmoe say together, as -ot has it.

    Raises InvalidParameter.
    """
    from vkllm.model.memory.overrides import experts_in_system_memory, overrides

    parts = list(override_tensor)
    if is_all or n_cpu_moe:
        parts.append(experts_in_system_memory(None if is_all else n_cpu_moe))
    text = ",".join(parts) or None
    overrides(text)
    return text


def tell_of_memory(llm: LLM) -> None:
    """Says on standard error if a part of the model lies in memory that makes it slower."""
    from vkllm.sizes import size

    fastest, *others = llm.plan.tiers
    slow = [tier for tier in others if tier.bytes_per_s < fastest.bytes_per_s]
    if n_bytes := sum(tier.weights_bytes + tier.cache_bytes for tier in slow):
        complain("note", f"{size(n_bytes)} of the model lie in system memory, which is slower; see `vkllm plan`")
    if llm.moved_bytes:
        complain("warning", f"the driver refused {size(llm.moved_bytes)}, which now lie in slower memory")
