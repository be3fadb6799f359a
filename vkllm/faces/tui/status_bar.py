"""The line of figures above the keys: speed, context, memory, device. It draws what it is told."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.widgets import Static

from vkllm.faces.remote_model import RemoteModel
from vkllm.faces.terminal import size
from vkllm.faces.tui.jobs import AnswerJob, Model
from vkllm.faces.tui.session import Session
from vkllm.model.memory.limits import Tier


@dataclass(frozen=True)
class ContextUsed:
    """Tokens in the context. n_shifts: how often it was full and lost its older half. is_estimate: nobody counted."""

    n_tokens: int = 0
    n_shifts: int = 0
    is_estimate: bool = False

    @classmethod
    def estimate(cls, n_tokens: int, n_ctx: int) -> ContextUsed:
        """What is left in the context of so many tokens that went through it."""
        n_shifts = 0
        while n_tokens > n_ctx > 0:
            n_tokens -= max(n_ctx // 2, 1)
            n_shifts += 1
        return cls(n_tokens, n_shifts, is_estimate=True)

    def texts(self, n_ctx: int) -> list[str]:
        """The longest text first."""
        if not n_ctx:  # a server that does not say
            return [f"context {'~' * self.is_estimate}{self.n_tokens}"]
        figure = f"context {'~' * self.is_estimate}{min(self.n_tokens, n_ctx)}/{n_ctx}"
        share = f"{figure} ({100 * min(self.n_tokens, n_ctx) / n_ctx:.0f} %)"
        return [f"{share}, shifted {self.n_shifts}×", share, figure] if self.n_shifts else [share, figure]


class StatusBar(Static):
    """What the model does on the left, where it runs on the right."""

    def __init__(self) -> None:
        super().__init__(id="status", markup=False)
        self._shown = ""

    def show(self, session: Session, answer: AnswerJob | None, speed: str, used: ContextUsed) -> None:
        """speed: of the last answer. used: the context after it."""
        activity = _activity(session, answer, speed)
        lefts, rights = [activity], [""]
        if session.llm is not None:
            n_ctx = session.llm.n_ctx
            if answer is not None:
                used = ContextUsed.estimate(answer.n_prompt + answer.n_generated, n_ctx)
            lefts = [f"{activity} · {text}" for text in used.texts(n_ctx)]
            memory, device = memory_in_use(session), _place(session.llm)
            rights = [f"{text} · {device}" for text in memory] + (memory or [device]) + [""]
        # Memory is said before the device's name, and both before all of the context's figures.
        room = self.size.width - 2
        pairs = [(left, right) for left in lefts for right in rights if right or left is lefts[-1]]
        fitting = [(left, right) for left, right in pairs if cell_len(left) + cell_len(right) + 3 <= room]
        left, right = fitting[0] if fitting else (lefts[-1], "")
        text = left + " " * (room - cell_len(left) - cell_len(right)) + right
        if text != self._shown:
            self._shown = text
            self.update(text, layout=False)


def memory_in_use(session: Session) -> list[str]:
    """What the open model holds of the device's own memory and of the system's that it shares; the longest text first.

    All of it is taken when the model is loaded: the cache for the whole context too.
    """
    llm, held = session.llm, session.held_bytes
    if llm is None or isinstance(llm, RemoteModel):
        return []
    own, total = held.get(Tier.LOCAL, 0), sum(held.values())
    if llm.is_cpu_device:
        return [f"RAM {size(total)}"]
    shared = f" · shared {size(total - own)}" if total > own else ""
    available = sum(tier.available_bytes for tier in llm.plan.tiers if tier.tier is Tier.LOCAL)
    return [f"VRAM {size(own)} of {size(available)}{shared}", f"VRAM {size(own)}{shared}"]


def _place(llm: Model) -> str:
    """Where the model runs."""
    return llm.server.name if isinstance(llm, RemoteModel) else llm.device_name.split(" (")[0]


def _activity(session: Session, answer: AnswerJob | None, speed: str) -> str:
    if session.loading is not None:
        return "loading"
    if answer is None:
        return speed or ("ready" if session.llm is not None else "no model is loaded")
    return answer.activity
