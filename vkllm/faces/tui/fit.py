"""Whether and where a model fits into a device's memory, in a few words or in a sentence. It knows no widgets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vkllm.faces.terminal import size
from vkllm.model.memory.limits import DeviceKind


@dataclass(frozen=True)
class ModelToFit:
    """A model that is looked at. path: of its file, None if it would have to be fetched.

    n_bytes: of its files. memory_bytes: what the catalogue says that it needs; both are used only without a path.
    """

    name: str
    path: str | None
    n_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class FitQuestion:
    """What the worker is asked. loading: arguments of LLM by name, n_ctx and device among them.

    held_bytes: by tier, what the model that is open holds there: it is closed before another one is opened.
    """

    models: list[ModelToFit]
    loading: dict[str, Any] = field(default_factory=dict)
    held_bytes: dict[str, int] = field(default_factory=dict)


def read_question(text: str) -> FitQuestion:
    """What `write_question` wrote."""
    fields = json.loads(text)
    return FitQuestion([ModelToFit(**model) for model in fields.pop("models")], **fields)


def write_question(question: FitQuestion) -> str:
    """As a line of JSON."""
    return json.dumps(asdict(question))


@dataclass(frozen=True)
class Fit:
    """Bytes that a model needs and how many of them lie in the fastest memory; and what there is of that and in all.

    tokens_per_s: what to expect, 0 if that is not known yet. problem: why there is no plan, "" if there is one;
    advice: what would fit instead.
    """

    kind: DeviceKind
    needed_bytes: int = 0
    fast_bytes: int = 0
    fast_available_bytes: int = 0
    available_bytes: int = 0
    tokens_per_s: float = 0.0
    problem: str = ""
    advice: str = ""

    @property
    def is_fitting(self) -> bool:
        """Whether it can be loaded."""
        return not self.problem and self.needed_bytes <= self.available_bytes

    @property
    def slow_bytes(self) -> int:
        """What lies in memory that makes it slower."""
        return self.needed_bytes - self.fast_bytes if self.kind == "discrete" else 0

    @property
    def style(self) -> str:
        """Of the theme: for what runs well, for what runs slowly, for what does not run."""
        return "$text-error" if not self.is_fitting else "$text-warning" if self.slow_bytes else "$text-success"

    @property
    def in_short(self) -> str:
        """At most 25 characters."""
        if self.problem:
            return "cannot run"
        if not self.is_fitting:
            return f"too large: {size(self.needed_bytes)}"
        where = f"+{size(self.slow_bytes)} RAM" if self.slow_bytes else "fits"
        return f"{where} · {_speed(self.tokens_per_s)}" if self.tokens_per_s else where

    @property
    def in_words(self) -> str:
        """Part of a sentence: where it lies and how fast it is to be, or why it cannot run."""
        if self.problem:
            return self.problem
        needed, available = size(self.needed_bytes), size(self.available_bytes)
        if not self.is_fitting:
            return f"does not fit: needs {needed}, {available} there"
        if self.slow_bytes:
            where = f"fits · {size(self.slow_bytes)} in RAM"
        elif self.kind == "discrete":
            where = f"fits · {needed} of {size(self.fast_available_bytes)} VRAM"
        else:
            where = f"fits · {needed} of {available}"
        return f"{where}, about {_speed(self.tokens_per_s)}" if self.tokens_per_s else where


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f} tok/s" if tokens_per_s >= 9.5 else f"{max(tokens_per_s, 0.1):.1f} tok/s"
