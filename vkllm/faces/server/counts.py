"""What the server counts of its own: answers, and how long they took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vkllm.engine.events import EngineStats

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass
class Histogram:
    """How many durations were at most so long."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BUCKETS_S))
    n: int = 0
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.n += 1
        self.sum_s += seconds
        for place, bound in enumerate(BUCKETS_S):
            self.counts[place] += seconds <= bound


@dataclass
class Counts:
    """What the server counts of its own: answers by path and status, and how long they and their beginnings took.

    told: what the models had counted when somebody last asked for it.
    """

    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    n_open: int = 0
    started_s: int = field(default_factory=lambda: int(time.time()))
    answer_s: Histogram = field(default_factory=Histogram)
    first_token_s: Histogram = field(default_factory=Histogram)
    told: EngineStats = field(default_factory=EngineStats)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer. path: one of the server's own, because others are without number."""
        self.answers[path, status] = self.answers.get((path, status), 0) + 1
        self.answer_s.add(seconds)
