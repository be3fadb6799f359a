"""The model that the chat talks to: which one is open, which is being opened, and what can be told of both.

It knows the public API, servers and jobs, not widgets or chats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vkllm.faces.chat.model_check import held_bytes
from vkllm.faces.remote import Server
from vkllm.faces.remote_model import RemoteModel, listed_models
from vkllm.faces.terminal import file_title
from vkllm.faces.tui.fit import ModelToFit
from vkllm.faces.tui.fits import Fits
from vkllm.faces.tui.jobs import CheckModel, LoadJob, Model, OpenedModel, OpenModel
from vkllm.store import FoundModel, installed
from vkllm.store.catalog import catalog

MIN_N_CTX = 256  # a context shorter than this is not offered as a way out of an error
_ABANDON_S = 0.8  # for a download to tidy up when the program ends


@dataclass(frozen=True)
class KnownModel:
    """A model that can be chosen. name: what `LLM` takes. n_bytes: of its files.

    path: of its file, None if it would have to be fetched. memory_bytes: what the catalogue says that it needs.
    status: of a model on a server, as that says it; None for others.
    """

    name: str
    description: str
    n_bytes: int
    path: str | None = None
    memory_bytes: int = 0
    status: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it need not be fetched."""
        return self.path is not None

    @property
    def state(self) -> str:
        """Where it is, in a word or two."""
        if self.status is not None:
            return self.status
        return "here" if self.is_here else "to fetch"

    @property
    def to_fit(self) -> ModelToFit:
        """What a plan is to be made for."""
        return ModelToFit(self.name, self.path, self.n_bytes, self.memory_bytes)


def known_models(recent: list[str]) -> list[KnownModel]:
    """Models on this machine first, then those of the catalogue that would have to be fetched.

    recent: names and paths that were used before. Reads folders, which may take a moment.
    """
    here = installed()
    models = [
        KnownModel(model.name, model.entry.description if model.entry else "", model.n_bytes, str(model.paths[0]))
        for model in here
    ]
    shown = {model.name for model in here} | {str(path) for model in here for path in model.paths}
    for path in map(Path, recent):
        if str(path) not in shown and path.is_file():
            models.append(KnownModel(str(path), str(path.parent), path.stat().st_size, str(path)))
    return models + [
        KnownModel(entry.name, entry.description, entry.n_bytes, None, entry.memory_bytes)
        for entry in catalog()
        if entry.name not in shown
    ]


def model_title(llm: Model) -> str:
    """What to call an open model."""
    return llm.name if isinstance(llm, RemoteModel) else file_title(llm).removesuffix(".gguf")


class Session:
    """At most one open model. n_ctx: tokens of context to ask for, None for the model's own choice.

    fits: how models fit, for the list of models; None where that is nobody's concern here. check: is asked before the
    open model is closed for another one. server: where the models are, if they are not on this machine.
    """

    def __init__(
        self,
        open_model: OpenModel,
        fits: Fits | None,
        *,
        n_ctx: int | None = None,
        device: str | None = None,
        check: CheckModel | None = None,
        server: Server | None = None,
    ) -> None:
        self.model: str | None = None
        self.llm: Model | None = None
        self.loading: LoadJob | None = None
        self.n_ctx = n_ctx
        self.fits = fits
        self.server = server
        self._open_model = open_model
        self._device = device
        self._check = check
        self._opened_n_ctx = n_ctx

    @property
    def name(self) -> str:
        """What to call the model on the screen."""
        if self.llm is not None:
            return model_title(self.llm)
        return "no model" if not self.model else Path(self.model).stem if "/" in self.model else self.model

    @property
    def held_bytes(self) -> dict[str, int]:
        """By tier, what the open model holds, and gives back before another one is opened."""
        return {} if isinstance(self.llm, RemoteModel) else held_bytes(self.llm)

    def known_models(self, recent: list[str]) -> list[KnownModel]:
        """The models that can be chosen, as `known_models` has it. Raises VkllmError where a server does not tell."""
        if self.server is None:
            return known_models(recent)
        where = f"on {self.server.name}"
        return [
            KnownModel(model.name, where, model.n_bytes, status=model.status) for model in listed_models(self.server)
        ]

    def load(self, model: str, found: FoundModel | None = None) -> None:
        """Begins to open a model in place of the one that is open; call `finish_loading` once `loading.is_over`.

        found: what the name was found to stand for, if it was looked up already.
        """
        assert self.loading is None
        previous = None
        if self.llm is not None and self.model is not None:
            previous = OpenedModel(self.model, self._opened_n_ctx, self.llm)
        self.model, self.llm = model, None
        self.loading = LoadJob(
            self._open_model,
            model,
            found,
            n_ctx=self.n_ctx,
            device=self._device,
            previous=previous,
            check=self._check,
        )

    def finish_loading(self) -> LoadJob:
        """Takes over what a load that is over brought, or forgets one that is stuck.

        If the model before it was kept, `model` and `n_ctx` are that one's again.
        """
        assert self.loading is not None and (self.loading.is_over or self.loading.is_stuck)
        job, self.loading = self.loading, None
        job.leave()
        self.llm = job.llm
        if job.kept is not None:
            self.model, self.n_ctx = job.kept.model, job.kept.n_ctx
        elif isinstance(self.llm, RemoteModel):
            self.model = self.llm.name  # which the server may have chosen
        self._opened_n_ctx = self.n_ctx
        return job

    def close(self) -> None:
        """Ends all that runs. A load is given up; should it hang, its process is ended when Python exits."""
        if self.fits is not None:
            self.fits.close()
        if self.loading is not None:
            self.loading.cancel()
            self.loading.join(_ABANDON_S)
            self.llm = self.loading.llm
        if self.llm is not None:
            self.llm.close()
