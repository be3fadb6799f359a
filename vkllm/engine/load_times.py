"""What the loading of a model takes its time for."""

from __future__ import annotations

import time


class LoadTimes:
    """Seconds by what they went into, in order: each part begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def ended(self, part: str) -> None:
        """Counts the time since the last call, or since this was made, for a part of loading."""
        now_s = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s
