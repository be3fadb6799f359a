"""How long the steps of a prompt may be: the width of a chunk and the submits that it is cut into, by measured time.

It knows widths and seconds, nothing of requests or devices.
"""

from __future__ import annotations

import math
import os

from vkllm.errors import InvalidParameter
from vkllm.gpu.program import WIDTHS, step_width

CHUNK_S = 1.0
"""How long a chunk of a prompt may take: a cancel waits for its end."""

SUBMIT_S = 0.1
"""How long a submit may keep the GPU: longer ones get small GPUs reset and make a screen stutter. Chunks that take
longer are cut into several. VKLLM_SUBMIT_MS says otherwise. A step of one token is never cut, however long it takes."""

MOST_SUBMITS = 64


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


class ChunkLengths:
    """What chunks took so far, and how long the next ones should be. took_s: by width, of the last of each."""

    def __init__(self, longest_submit_s: float) -> None:
        self.took_s: dict[int, float] = {}
        self.longest_submit_s = longest_submit_s

    def n_rows(self) -> int:
        """Rows of the next chunk: the widest step that is known, or may be expected, to take CHUNK_S at most.

        Wider steps take less time a row, so one of twice that by a linear guess is tried. A step that took longer is
        not tried again, so the next chunks are shorter.
        """
        best = WIDTHS[1]
        for width in WIDTHS[2:]:
            expected = self.took_s[best] * width / best / 2 if best in self.took_s else math.inf
            if self.took_s.get(width, expected) > CHUNK_S:
                break
            best = width
        return best

    def n_submits(self, n_rows: int) -> int:
        """Submits that a chunk is cut into: a power of two, so that each takes about the longest submit at most."""
        width = step_width(n_rows, is_prompt=True)
        known = [w for w in WIDTHS[1:] if w <= width and w in self.took_s]
        expected_s = self.took_s[known[-1]] * width / known[-1] if known else 0.0
        n_submits = 1
        while expected_s / n_submits > self.longest_submit_s and n_submits < MOST_SUBMITS:
            n_submits *= 2
        return n_submits
