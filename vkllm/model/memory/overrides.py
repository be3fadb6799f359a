"""Where a user wants tensors to lie: llama.cpp's -ot and --n-cpu-moe.

Knows names of tensors, not what they are or whether there is room.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from vkllm.errors import InvalidParameter

Place = Literal["CPU", "GPU"]

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of the tensors of experts, as llama.cpp's --cpu-moe has it."""

_MANY_LAYERS = 1000
"""More than any model has: people write 999 for all."""


def overrides(text: str | None) -> tuple[tuple[re.Pattern[str], Place], ...]:
    """Expressions and places of "EXPRESSION=CPU,EXPRESSION=GPU". llama.cpp's names of GPUs, such as Vulkan0 or CUDA0,
    are GPU too. Raises InvalidParameter."""
    if text is not None and not isinstance(text, str):
        raise InvalidParameter(f"override_tensor (-ot) must be a text such as 'exps=CPU', not {text!r}")
    return tuple(map(_override, text.split(","))) if text else ()


def place_of(tensor: str, places: Sequence[tuple[re.Pattern[str], Place]]) -> Place | None:
    """Where a tensor is wanted; None if nothing says so."""
    return next((place for expression, place in places if expression.search(tensor)), None)


def experts_in_system_memory(n_layers: int | None) -> str:
    """The override that keeps the experts of the first n_layers layers, or of all, out of a card's own memory."""
    if n_layers is None:
        return f"{EXPERTS}=CPU"
    numbers = "|".join(map(str, range(min(n_layers, _MANY_LAYERS))))
    return rf"blk\.({numbers}){EXPERTS}=CPU"


def _override(text: str) -> tuple[re.Pattern[str], Place]:
    expression, equals, place = text.rpartition("=")
    if not equals or not expression.strip():
        raise InvalidParameter(f"override_tensor (-ot) takes EXPRESSION=CPU or EXPRESSION=GPU, not {text!r}")
    wanted = place.strip()
    is_gpu = re.fullmatch(r"(GPU|Vulkan|CUDA|ROCm|Metal|SYCL)\d*", wanted, re.IGNORECASE) is not None
    if not is_gpu and wanted.upper() not in ("CPU", "VULKAN_HOST"):
        raise InvalidParameter(f"override_tensor (-ot) knows the places CPU and GPU, not {wanted!r} (in {text!r})")
    try:
        compiled = re.compile(expression.strip())
    except re.error as error:
        raise InvalidParameter(f"override_tensor (-ot): {expression!r} is no regular expression: {error}") from error
    return compiled, "GPU" if is_gpu else "CPU"
