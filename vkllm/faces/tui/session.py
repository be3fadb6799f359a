"""The model that the chat talks to: which one is open, which is being opened, and what can be told of both.

It knows the public API and jobs, not widgets or chats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vkllm import LLM
from vkllm.faces.tui.jobs import LoadJob, OpenModel
from vkllm.resources import catalog
from vkllm.store import installed

MIN_N_CTX = 256  # a context shorter than this is not offered as a way out of an error
_ABANDON_S = 1.0  # for a download to tidy up when the program ends


@dataclass(frozen=True)
class KnownModel:
    """A model that can be chosen. name: what `LLM` takes. n_bytes: of its files. is_here: it need not be fetched."""

    name: str
    description: str
    n_bytes: int
    is_here: bool


def known_models(recent: list[str]) -> list[KnownModel]:
    """Models on this machine first, then those of the catalogue that would have to be fetched.

    recent: names and paths that were used before. Reads folders, which may take a moment.
    """
    here = installed()
    models = [
        KnownModel(model.name, model.entry.description if model.entry else "", model.n_bytes, True) for model in here
    ]
    shown = {model.name for model in here} | {str(path) for model in here for path in model.paths}
    for path in map(Path, recent):
        if str(path) not in shown and path.is_file():
            models.append(KnownModel(str(path), str(path.parent), path.stat().st_size, True))
    return models + [
        KnownModel(entry.name, entry.description, entry.n_bytes, False)
        for entry in catalog()
        if entry.name not in shown
    ]


def where_it_fits(model: KnownModel) -> str:
    """Whether the model fits into the device's memory and where, in a few words; "" as long as no plan tells."""
    return ""


class Session:
    """At most one open model. n_ctx: tokens of context to ask for, None for the model's own choice."""

    def __init__(self, open_model: OpenModel, *, n_ctx: int | None = None, device: str | None = None) -> None:
        self.model: str | None = None
        self.llm: LLM | None = None
        self.loading: LoadJob | None = None
        self.n_ctx = n_ctx
        self._open_model = open_model
        self._device = device

    @property
    def name(self) -> str:
        """What to call the model on the screen."""
        if self.llm is not None:
            return self.llm.path.stem
        return "no model" if self.model is None else Path(self.model).stem if "/" in self.model else self.model

    def load(self, model: str) -> None:
        """Begins to open a model in place of the one that is open; call `finish_loading` once `loading.is_over`."""
        assert self.loading is None
        previous, self.llm = self.llm, None
        self.model = model
        self.loading = LoadJob(self._open_model, model, n_ctx=self.n_ctx, device=self._device, previous=previous)

    def finish_loading(self) -> LoadJob:
        """Takes over what a load that is over brought."""
        assert self.loading is not None and self.loading.is_over
        job, self.loading = self.loading, None
        self.llm = job.llm
        return job

    def close(self) -> None:
        """Ends the engine. A load is given up; should it hang, its process is ended when Python exits."""
        if self.loading is not None:
            self.loading.cancel()
            self.loading.join(_ABANDON_S)
            self.llm = self.loading.llm
        if self.llm is not None:
            self.llm.close()
