"""Finds stop strings in text that comes in pieces.

It knows characters only. What may be the beginning of a stop string is held back until it is clear that it is
not, so that no piece of one is ever shown, wherever the text is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through until the first of `stops` is complete in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    @property
    def is_matched(self) -> bool:
        """Whether a stop string was found, which then is `matched`."""
        return self.matched is not None

    def push(self, text: str) -> str:
        """The text that can be shown now; empty once a stop string was found (`is_matched`)."""
        if self.is_matched:
            return ""
        self._held += text
        # The one that ends first counts, and of several that end there the longest, so that the
        # result is the same whether the text came character by character or all at once.
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            _, n_shown, self.matched = min(ends)
        else:
            n_shown = len(self._held) - self._n_held_back()
        shown, self._held = self._held[:n_shown], self._held[n_shown:]
        return shown

    def flush(self) -> str:
        """The text that is still held back, at the end of the answer."""
        shown, self._held = "" if self.is_matched else self._held, ""
        return shown

    def _n_held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
