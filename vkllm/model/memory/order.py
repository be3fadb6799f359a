"""In which order a model's matrices are placed, and which of them a card keeps in system memory in any case.

Knows what users may ask (-ngl, -ot), not how much room there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from vkllm.model.memory.needs import Needs
from vkllm.model.memory.overrides import overrides, place_of

Weights = tuple[str, ...]
"""The weights of an operation: a matrix."""


@dataclass(frozen=True)
class Order:
    """Matrices that may lie in a card's own memory, in order; those that -ngl or -ot keep out of it; and tables that
    would only take room there, because a token reads a row of them."""

    fast: tuple[Weights, ...]
    slow: tuple[Weights, ...] = ()
    tables: tuple[Weights, ...] = ()


def order_on_card(needs: Needs, n_gpu_layers: int | None, override_tensor: str | None) -> Order:
    """The order for a card with memory of its own; options as in PlanOptions."""
    first_layer = -1 if n_gpu_layers is None else needs.spec.n_layers - n_gpu_layers
    places = overrides(override_tensor)
    fast, slow, tables = [], [], []
    for weights in needs.matrices():
        wanted = {place for name in weights if (place := place_of(name, places)) is not None}
        if "CPU" in wanted or ("GPU" not in wanted and _layer(weights[0]) < first_layer):
            slow.append(weights)
        elif "GPU" not in wanted and needs.read_share(weights) == 0 and weights != ("token_embd.weight",):
            tables.append(weights)
        else:
            fast.append(weights)
    return Order(tuple(fast), tuple(slow), tuple(tables))


def _layer(tensor: str) -> int:
    """The layer of a tensor; -1 outside the layers."""
    return int(tensor.split(".")[1]) if tensor.startswith("blk.") else -1
