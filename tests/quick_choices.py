"""Choices for lavapipe whose kernels compile quickly, in the place of those that compute quickly."""

from __future__ import annotations

from dataclasses import replace

from vkllm.gpu.program import choices

SHIPPED = choices.CPU
"""What lavapipe gets outside of tests; engines in processes of their own have it there too."""

QUICK = replace(
    SHIPPED,
    keys_at_once=2,
    tile_rows=2,
    tile_tokens=2,
    decode=replace(SHIPPED.decode, rows=2, keys_at_once=2),
)


def use_quick_choices() -> None:
    """From now on programs of this process that run on the CPU have the quick choices, unless a test says others."""
    choices.CPU = QUICK
