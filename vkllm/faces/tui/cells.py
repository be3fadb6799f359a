"""Text that is to take so many cells of the terminal."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from vkllm.faces.tui.printable import one_line


def cut(text: str, width: int) -> str:
    """The text on one line, or its beginning and an ellipsis, in at most so many cells."""
    text = one_line(text)
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 0 else ""


def speed(tokens_per_s: float) -> str:
    """Tokens a second; "" where nothing was measured."""
    if tokens_per_s <= 0:
        return ""
    return f"{tokens_per_s:.1f} tok/s" if tokens_per_s >= 0.05 else "less than 0.1 tok/s"


def padded(text: str, width: int) -> str:
    """The same in exactly so many."""
    return set_cell_size(cut(text, width), max(width, 0))


def at_both_ends(left: str, right: str, width: int) -> str:
    """A line with one text at its left and one at its right; what is too long is cut, the left one first."""
    left, right = one_line(left), one_line(right)
    right = cut(right, max(width // 2, width - cell_len(left) - 2))
    room = width - cell_len(right) - 2
    return padded(left, room) + "  " + right
