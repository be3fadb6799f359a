"""The line of figures above the keys: speed, context, device, memory. It draws what it is told."""

from __future__ import annotations

from rich.cells import cell_len
from textual.widgets import Static

from vkllm.faces.terminal import size
from vkllm.faces.tui.jobs import AnswerJob
from vkllm.faces.tui.session import Session


class StatusBar(Static):
    """What the model does on the left, where it runs on the right."""

    def __init__(self) -> None:
        super().__init__(id="status", markup=False)

    def show(self, session: Session, answer: AnswerJob | None, speed: str, n_used: int) -> None:
        """speed: of the last answer. n_used: tokens of the context that it took, 0 where there was none."""
        left = [_activity(session, answer, speed)]
        right = []
        if session.llm is not None:
            is_estimate = answer is not None
            n_tokens = answer.n_prompt + answer.n_generated if answer is not None else n_used
            n_ctx = session.llm.n_ctx
            left.append(f"context {'~' * is_estimate}{n_tokens}/{n_ctx} ({100 * n_tokens / n_ctx:.0f} %)")
            right = [f"weights {size(session.llm.n_bytes)}", session.llm.device_name.split(" (")[0]]
        line, end = " · ".join(part for part in left if part), " · ".join(right)
        room = max(0, self.size.width - 2 - cell_len(line) - 3)
        if cell_len(end) > room:
            end = end[: room - 1] + "…" if room > 10 else ""
        self.update(line + " " * max(3, self.size.width - 2 - cell_len(line) - cell_len(end)) + end)


def _activity(session: Session, answer: AnswerJob | None, speed: str) -> str:
    if session.loading is not None:
        return "loading"
    if answer is None:
        return speed or ("ready" if session.llm is not None else "no model is loaded")
    if answer.first_s is None:
        return f"reading {answer.n_prompt} tokens"
    return f"{answer.generate_per_s:.1f} tok/s"
