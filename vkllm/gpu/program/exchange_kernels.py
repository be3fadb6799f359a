"""Registry entries of the kernels that exchange numbers between devices (shaders/lib/exchange.glsl)."""

from __future__ import annotations

from typing import Final

from vkllm.gpu.device.kernel import KernelSpec

MOST_RANKS: Final = 8
"""Devices that exchange numbers, at most; `MOST_RANKS` in shaders/lib/exchange.glsl."""

_EXCHANGE: Final = ("n_ranks", "n_lines", "polls_in_place", "n_copies", "half_lines")

EXCHANGE_KERNELS: Final = (
    KernelSpec("move_rows", ("x", "host", "step"), ("local_size", "columns", "is_sent"), surplus="loops"),
    KernelSpec(
        "all_reduce",
        ("part", "add", "y", "step", "shared", "state", "told", "chain", "failure"),
        ("local_size", "columns", "adds", *_EXCHANGE, "is_scattered", "most_polls", "packs"),
        ("number", "first_line", "width", "own_rank", "link", "n_awaited"),
        surplus="loops",
    ),
    KernelSpec(
        "all_gather",
        ("largest", "gathered", "step", "shared", "state", "told"),
        ("local_size", "n_vocab", "most_lists", *_EXCHANGE),
        ("number", "first_line", "width", "own_rank", "first_token"),
        surplus="loops",
    ),
)
