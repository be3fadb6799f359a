"""Texts in so many cells, letters of two cells too."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from vkllm.faces.tui.cells import at_both_ends, cut, padded


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("abc", 0, ""),
    ],
)
def test_a_text_is_cut_to_its_cells(text: str, width: int, expected: str) -> None:
    assert cut(text, width) == expected


@pytest.mark.parametrize("text", ["", "a", "日本語日本語", "👩‍👩‍👧 family", "שלום"])
@pytest.mark.parametrize("width", [0, 1, 2, 7, 20])
def test_a_padded_text_takes_all_its_cells(text: str, width: int) -> None:
    assert cell_len(padded(text, width)) == width


@pytest.mark.parametrize("width", [6, 10, 24, 80])
def test_two_texts_share_a_line(width: int) -> None:
    line = at_both_ends("a long title of a chat 日本", "model", width)
    assert cell_len(line) == width
    assert line.endswith("model") or width < 10


def test_the_right_text_may_take_what_the_left_one_leaves() -> None:
    assert at_both_ends("ab", "a long model name", 21) == "ab  a long model name"
