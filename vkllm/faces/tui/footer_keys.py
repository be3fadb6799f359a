"""Which keys the footer shows where there is not room for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from rich.cells import cell_len
from textual.binding import ActiveBinding, Binding

NARROW = 76
"""Cells of a terminal below which the keys stand closer together."""


def that_fit(
    active: Mapping[str, ActiveBinding],
    room: int,
    display: Callable[[Binding], str],
    *,
    always: Collection[str],
    never: Collection[str] = (),
) -> dict[str, ActiveBinding]:
    """The same keys; of those that would be shown, the last ones are hidden until the rest fits.

    room: cells. display: how a key is written. always, never: actions that are shown, or hidden, in any case.
    """
    shown: dict[str, Binding] = {}
    for one in active.values():
        if one.binding.show:
            shown.setdefault(one.binding.action, one.binding)
    actions = [action for action in shown if action not in never]
    spaces = 2 if room < NARROW else 3  # around and between a key and its name

    def width() -> int:
        return sum(
            cell_len(display(shown[action])) + cell_len(shown[action].description) + spaces for action in actions
        )

    while width() > room and (droppable := [action for action in actions if action not in always]):
        actions.remove(droppable[-1])
    return {
        key: one if one.binding.action in actions else one._replace(binding=replace(one.binding, show=False))
        for key, one in active.items()
    }
