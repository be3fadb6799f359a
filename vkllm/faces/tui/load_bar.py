"""The line that shows how far a model is fetched and loaded."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ProgressBar, Static

from vkllm.faces.terminal import size
from vkllm.faces.tui.cells import at_both_ends
from vkllm.faces.tui.jobs import Progress

_ESTIMATE_AFTER_S = 3.0  # before, the speed is anybody's guess


class LoadBar(Horizontal):
    """Hidden unless a model is being loaded."""

    def __init__(self) -> None:
        super().__init__(id="load-bar")
        self.display = False
        self._what = ""
        self._begun_s = 0.0
        self._begun_at = 0

    def compose(self) -> ComposeResult:
        """What is being done, and a bar once it is known how much of it there is."""
        yield Static("", markup=False)
        yield ProgressBar(show_eta=False)

    def show(self, progress: Progress | None) -> None:
        """Draws how far it is; None hides the line."""
        self.display = progress is not None
        if progress is None:
            self._what = ""
            return
        if progress.what != self._what:
            self._what, self._begun_s, self._begun_at = progress.what, time.monotonic(), progress.n_done
        bar, text = self.query_one(ProgressBar), self.query_one(Static)
        bar.display = progress.n_total > 0
        figures = ""
        if progress.n_total > 0:
            done, total = size(progress.n_done), size(progress.n_total)
            done = done.removesuffix(total[total.index(" ") :])  # one unit said once leaves room for the time
            figures = f"{done} of {total}{self._time_left(progress)}"
            if progress.n_done >= progress.n_total and progress.what.startswith("loading"):
                figures = f"{size(progress.n_total)}, starting"
            bar.update(total=progress.n_total, progress=progress.n_done)
        width = text.size.width or self.app.size.width // 2  # it has none before it is drawn
        text.update(at_both_ends(progress.what, figures, width - 1), layout=False)

    def _time_left(self, progress: Progress) -> str:
        passed_s, n_done = time.monotonic() - self._begun_s, progress.n_done - self._begun_at
        if passed_s < _ESTIMATE_AFTER_S or n_done <= 0:
            return ""
        left_s = passed_s * (progress.n_total - progress.n_done) / n_done
        return f", {left_s / 60:.0f} min left" if left_s > 90 else f", {left_s:.0f} s left"
