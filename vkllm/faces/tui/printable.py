"""Keeps control characters away from the terminal, whoever wrote them: models, files, titles, errors.

`PrintableLines` looks at each line as it is drawn, so no widget has to think of them.
"""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

# C0 and C1, ESC and CSI among them, and marks that would turn the direction of the rest of the line.
_CODES = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_CONTROLS: dict[int, str | None] = {code: None for code in _CODES}
_BREAKS: dict[int, str | None] = {code: " " for code in map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")}


def one_line(text: str) -> str:
    """The text without control characters, a blank in the place of tabs and line breaks."""
    return text if text.isprintable() else text.translate(_CONTROLS | _BREAKS)


def without_controls(text: str) -> str:
    """The text without control characters other than tabs and line feeds."""
    return text.translate({code: None for code in _CONTROLS if code not in (9, 10)})


class PrintableLines(LineFilter):
    """Takes control characters out of lines. They have no width, so nothing else moves."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments without them. background: of the line; it does not matter here."""
        if all(text.isprintable() for text, _, _ in segments):
            return segments
        return [Segment(text.translate(_CONTROLS), style, control) for text, style, control in segments]
