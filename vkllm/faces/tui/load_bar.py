"""The line that shows how far a model is fetched and loaded."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ProgressBar, Static

from vkllm.faces.terminal import size
from vkllm.faces.tui.jobs import Progress


class LoadBar(Horizontal):
    """Hidden unless a model is being loaded."""

    def __init__(self) -> None:
        super().__init__(id="load-bar")
        self.display = False

    def compose(self) -> ComposeResult:
        """What is being done, and a bar once it is known how much of it there is."""
        yield Static("", markup=False)
        yield ProgressBar(show_eta=False)

    def show(self, progress: Progress | None) -> None:
        """Draws how far it is; None hides the line."""
        self.display = progress is not None
        if progress is None:
            return
        bar = self.query_one(ProgressBar)
        bar.display = progress.n_total > 0
        text = progress.what
        if progress.n_total > 0:
            text += f" {size(progress.n_done)} of {size(progress.n_total)}"
            bar.update(total=progress.n_total, progress=progress.n_done)
        self.query_one(Static).update(text)
