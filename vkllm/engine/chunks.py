"""How long the steps of a prompt may be: the width of a chunk and the submits that it is cut into, by measured time.

It knows widths and seconds, nothing of requests or devices.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from vkllm.errors import InvalidParameter
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.step import step_width

CHUNK_S = 1.0
"""How long a chunk of a prompt may take: a cancel waits for its end."""

BUSY_CHUNK_S = 0.1
"""How long a chunk may take while other sequences run, whose next tokens wait for its end."""

SUBMIT_S = 0.1
"""How long a submit may keep the GPU: longer ones get small GPUs reset and make a screen stutter. Chunks that take
longer are cut into several. VKLLM_SUBMIT_MS changes this. A step of one token is never cut, however long it takes."""

MOST_SUBMITS = 64

FIRST_RETRY_S, LAST_RETRY_S = 5.0, 640.0
"""Seconds until a width whose chunk took too long is tried again: the first wait, which
doubles each time up to the last. A chunk may have been slow because another program had the device, or the machine
slept."""


def longest_submit_s() -> float:
    """SUBMIT_S, or what VKLLM_SUBMIT_MS says. Raises InvalidParameter."""
    text = os.environ.get("VKLLM_SUBMIT_MS", "").strip()
    try:
        seconds = float(text) / 1000 if text else SUBMIT_S
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 10:
        raise InvalidParameter(f"VKLLM_SUBMIT_MS is {text!r}; give milliseconds from 1 to 10000, such as 100")
    return seconds


CHUNK_WIDTHS = (8, 64, 256, MAX_ROWS)
"""Widths of chunks."""


class ChunkLengths:
    """How long chunks took so far, and how many rows the next ones should have. took_s: by width, of the last chunk.

    clock: returns seconds, which go on while nothing runs.
    """

    def __init__(self, longest_submit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.took_s: dict[int, float] = {}
        self.longest_submit_s = longest_submit_s
        self._clock = clock
        # by limit and width, of those too slow for it: when to try again, and after what wait
        self._retries: dict[tuple[float, int], tuple[float, float]] = {}

    def measured(self, n_rows: int, seconds: float) -> None:
        """Records what a chunk took. Chunks that do not fill a width say little about it and are ignored."""
        if n_rows not in CHUNK_WIDTHS:
            return
        self.took_s[n_rows] = seconds
        for limit_s in (CHUNK_S, BUSY_CHUNK_S):
            key = limit_s, n_rows
            if seconds <= limit_s:
                self._retries.pop(key, None)
            elif key not in self._retries or self._clock() >= self._retries[key][0]:
                _, waited_s = self._retries.get(key, (0.0, FIRST_RETRY_S / 2))
                wait_s = min(2 * waited_s, LAST_RETRY_S)
                self._retries[key] = (self._clock() + wait_s, wait_s)

    def forget(self) -> None:
        """Forgets all recorded times."""
        self.took_s.clear()
        self._retries.clear()

    def n_rows(self, limit_s: float = CHUNK_S) -> int:
        """Rows of the next chunk: the widest step that is known, or may be expected, to take limit_s at most.

        limit_s: CHUNK_S or BUSY_CHUNK_S. Wider steps take less time per row, so a width is tried if a linear estimate
        is at most twice CHUNK_S; where others wait, the estimate itself must be short enough. A step that took longer
        is not tried again for a while, so the next chunks are shorter.
        """
        best, share = CHUNK_WIDTHS[0], 2 if limit_s == CHUNK_S else 1
        for width in CHUNK_WIDTHS[1:]:
            guess_s = self.took_s[best] * width / best / share if best in self.took_s else math.inf
            known_s = guess_s if self._may_retry(limit_s, width) else self.took_s.get(width, guess_s)
            if known_s > limit_s:
                break
            best = width
        return best

    def expected_s(self, n_rows: int) -> float:
        """About how long a chunk takes, as far as is known."""
        width = step_width(min(n_rows, MAX_ROWS), is_prompt=True)  # longer texts are several steps
        known = [w for w in CHUNK_WIDTHS if w <= width and w in self.took_s]
        return self.took_s[known[-1]] * width / known[-1] if known else 0.0

    def _may_retry(self, limit_s: float, width: int) -> bool:
        return (limit_s, width) in self._retries and self._clock() >= self._retries[limit_s, width][0]

    def n_submits(self, n_rows: int) -> int:
        """Submits that a chunk is cut into: a power of two, so that each takes about the longest submit at most."""
        expected_s = self.expected_s(n_rows)
        n_submits = 1
        while expected_s / n_submits > self.longest_submit_s and n_submits < MOST_SUBMITS:
            n_submits *= 2
        return n_submits
