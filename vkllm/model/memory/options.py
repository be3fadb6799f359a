"""What a user may ask of a plan, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.model.memory.needs import CACHE_TYPES
from vkllm.model.memory.overrides import overrides
from vkllm.model.memory.sequences import MOST_SEQUENCES
from vkllm.parameters import number, whole_number

SPECULATION = ("auto", "off", "ngram", "mtp")
"""How tokens may be drafted: copied from texts that were there before ("ngram"), or by a head that the file has for
that ("mtp", multi-token prediction); "auto" is both, where they pay."""

SPLITS = ("none", "layer", "tensor")
"""How a model may be split over devices: not at all, by layers, or every matrix; "row" is "tensor"."""

MOST_DEVICES = 8


@dataclass(frozen=True)
class PlanOptions:
    """What a user may ask of a plan.

    type_k, type_v: of the cache, "f16" or "q8_0". n_gpu_layers: layers, counted from the last, whose weights may
    lie in a card's own memory; one more than the model has includes the vocabulary projection and the embedding;
    None or -1 is all. It has no effect on unified memory. vram_limit, ram_limit: bytes that the plan may take of a
    card's own and of system memory, or, where memory is unified, of all of it. override_tensor: where tensors may
    lie, as llama.cpp's -ot has it: "EXPRESSION=CPU,EXPRESSION=GPU". Of a tensor, the first expression decides that
    is found in its name: CPU keeps its matrix out of a card's own memory, GPU lets it lie there whatever
    n_gpu_layers says. Matrices that are stacked stay together. It has no effect on unified memory. n_parallel:
    sequences that run at once, at most; None: as many as cost the first one nothing (`for_many` in `plan.py`). spec:
    how tokens are drafted (`SPECULATION`): "mtp" loads the file's head for further tokens, "auto" does where it costs
    no context and no speed, "off" and "ngram" do not.
    devices: index or part of the name of each device that a model is split over, in order; none: the best ones.
    num_shards: how many of them; None: all that are named, else one. split_mode: how (`SPLITS`); None: the plan's
    choice. tensor_split: the share of each device, such as (3, 1); none: by speed and room. main_gpu: which of the
    devices has all with split_mode "none".
    """

    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int | None = None
    vram_limit: int | None = None
    ram_limit: int | None = None
    override_tensor: str | None = None
    n_parallel: int | None = None
    spec: str = "auto"
    devices: tuple[str, ...] = ()
    num_shards: int | None = None
    split_mode: str | None = None
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidParameter for options that no device could meet."""
        overrides(self.override_tensor)
        if self.spec not in SPECULATION:
            raise InvalidParameter(f"spec (--spec) must be one of {', '.join(SPECULATION)}, not {self.spec!r}")
        for name, option, cache_type in (("type_k", "-ctk", self.type_k), ("type_v", "-ctv", self.type_v)):
            if not isinstance(cache_type, str) or cache_type not in CACHE_TYPES:
                raise InvalidParameter(f"{name} ({option}) must be {' or '.join(CACHE_TYPES)}, not {cache_type!r}")
        for name, option in (("n_gpu_layers", "-ngl"), ("vram_limit", "--vram-limit"), ("ram_limit", "--ram-limit")):
            if (value := getattr(self, name)) is not None:
                is_all = name == "n_gpu_layers" and isinstance(value, int | float) and value == -1
                also = ", or -1 for all" if name == "n_gpu_layers" else ""
                checked = None if is_all else whole_number(f"{name} ({option})", value, 0, also=also)
                object.__setattr__(self, name, checked)
        if self.n_parallel is not None:
            most = whole_number("n_parallel (-np)", self.n_parallel, 1, MOST_SEQUENCES)
            object.__setattr__(self, "n_parallel", most)
        self._check_split()

    def _check_split(self) -> None:
        mode = self.split_mode.lower() if isinstance(self.split_mode, str) else self.split_mode
        mode = "tensor" if mode == "row" else mode
        if mode is not None and mode not in SPLITS:
            raise InvalidParameter(
                f"split_mode (-sm) must be one of {', '.join(SPLITS)} or row, which is tensor, not {self.split_mode!r}"
            )
        object.__setattr__(self, "split_mode", mode)
        object.__setattr__(self, "tensor_split", _shares(self.tensor_split))
        object.__setattr__(self, "main_gpu", whole_number("main_gpu (-mg)", self.main_gpu, 0))
        if self.num_shards is not None:
            shards = whole_number("num_shards (--num-shards)", self.num_shards, 1, MOST_DEVICES)
            object.__setattr__(self, "num_shards", shards)
        if len(self.devices) > MOST_DEVICES:
            raise InvalidParameter(
                f"device (-dev) names {len(self.devices)} devices; a model runs on {MOST_DEVICES} at most"
            )


def _shares(given: Any) -> tuple[float, ...]:
    """The shares of -ts as numbers. Raises InvalidParameter."""
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidParameter(f"tensor_split (-ts) must be shares such as (3, 1), one for each device, not {given!r}")
    shares = tuple(number("each share of tensor_split (-ts)", share, 0, 1e9) for share in given)
    if shares and not any(shares):
        raise InvalidParameter("tensor_split (-ts) must have a share above 0")
    return shares
