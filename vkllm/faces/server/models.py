"""The models of a server: loaded when they are asked for, as many as fit, the least recently used unloaded first.

It knows names, loading and memory; nothing of HTTP, nor of what is asked of a model.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from vkllm.api.async_llm import AsyncLLM
from vkllm.api.file_facts import file_facts
from vkllm.api.loading import LoadOptions
from vkllm.engine.events import EngineStats
from vkllm.errors import InvalidParameter, ModelNotFound, QueueFull, VkllmError
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.fitting import Fitting
from vkllm.faces.server.names import Known, KnownModels
from vkllm.store import FoundModel

_LOG = logging.getLogger("vkllm.server")

Status = Literal["unloaded", "loading", "loaded", "sleeping", "failed"]
"""sleeping: it was loaded, and unloaded because nobody used it for some time."""

DEFAULT_QUEUE = 512
MOST_OF_ONE = 2048
"""Sequences of one request that may wait: a list of texts is one request here, and as many as it has for the engine."""


def check_answers(n_prompts: int, n: int) -> None:
    """Raises InvalidParameter for more answers than one request may ask for. n: answers to each prompt."""
    if n_prompts * n > MOST_OF_ONE:
        raise InvalidParameter(
            f"prompt must be at most {MOST_OF_ONE // n} texts where each has {n} answers, not {n_prompts}; send the "
            "rest in other requests"
        )


def sum_of(one: EngineStats, other: EngineStats) -> EngineStats:
    """Counts of two models, or of two loads of one."""
    names = [each.name for each in fields(EngineStats) if each.name not in ("last", "n_longest")]
    sums = {name: getattr(one, name) + getattr(other, name) for name in names}
    return EngineStats(**sums, n_longest=max(one.n_longest, other.n_longest), last=other.last or one.last)


@dataclass(eq=False)
class ServedModel:
    """A model that the server answers with.

    name: its name in answers. aliases: other names. known: where its file lies. status: see `Status`. error: why it
    could not be loaded. llm: the model, while it is loaded. n_users: requests that use it or wait for it. used_s: when
    a request last ended (time.monotonic). keep_s: how long it stays loaded without requests; infinite is for ever.
    was_loaded: whether it has been loaded since the server's start.
    """

    name: str
    known: Known
    aliases: tuple[str, ...] = ()
    status: Status = "unloaded"
    error: VkllmError | None = None
    n_users: int = 0
    used_s: float = 0.0
    keep_s: float = math.inf
    n_ctx: int | None = None
    created_s: int = field(default_factory=lambda: int(time.time()))
    was_loaded: bool = False
    _llm: AsyncLLM | None = None
    _past: EngineStats = field(default_factory=EngineStats)
    _loading: asyncio.Task[None] | None = None
    _n_waiting: int = 0

    @property
    def llm(self) -> AsyncLLM:
        """The loaded model."""
        assert self._llm is not None
        return self._llm

    @property
    def stats(self) -> EngineStats:
        """Counts of all requests since the server was started, however often the model was loaded."""
        return self._past if self._llm is None else sum_of(self._past, self._llm.stats())

    @property
    def n_parallel(self) -> int:
        """How many requests it runs at a time, while it is loaded."""
        return 1 if self._llm is None else self._llm.llm.plan.n_sequences

    @property
    def is_loaded(self) -> bool:
        """Whether its engine holds memory."""
        return self._llm is not None

    @property
    def until_s(self) -> float:
        """When it will be unloaded if nobody uses it (time.monotonic)."""
        return self.used_s + self.keep_s


class Models:
    """All models of a server. For one event loop.

    only: the model to serve, whatever name a request gives, as llama-server does; without it any model on this machine
    is served by its name. aliases: other names of `only`, the first of which answers give. options: of `AsyncLLM`;
    the context is no longer than a model was trained for where there are several models.
    sleep_s: after how long without requests a model is unloaded. queue: requests that may wait for a model.
    most: models that may be loaded at a time; None is as many as fit. loads_on_request: whether a request for a model
    loads it; else only `load` does. on_change: called when a model's status changes.
    """

    def __init__(
        self,
        known: KnownModels,
        *,
        only: FoundModel | None = None,
        aliases: Sequence[str] = (),
        options: LoadOptions | None = None,
        sleep_s: float = math.inf,
        queue: int = DEFAULT_QUEUE,
        most: int | None = None,
        loads_on_request: bool = True,
        fitting: Fitting | None = None,
    ) -> None:
        self.options: LoadOptions = {"queue": queue + MOST_OF_ONE, **(options or {})}
        self.sleep_s = sleep_s
        self.queue = queue
        self.most = most
        self.loads_on_request = loads_on_request
        self.on_change: list[Callable[[ServedModel], object]] = []
        self.only: ServedModel | None = None
        self._known = known
        self._served: dict[str, ServedModel] = {}
        self._fitting = fitting or Fitting(self.options)
        self._loads = asyncio.Lock()  # one at a time, because each takes what memory the last one left
        self._idle = asyncio.Condition()
        self._is_closed = False
        if only is not None:
            found = known.of(only)
            names = tuple(aliases) or (found.name,)
            self.only = self._serve(ServedModel(names[0], found, names[1:], keep_s=sleep_s))

    @property
    def is_single(self) -> bool:
        """Whether there is one model, which answers to every name."""
        return self.only is not None

    @property
    def served(self) -> Iterable[ServedModel]:
        """The models that a request has named since the start."""
        return list(self._served.values())

    async def all(self) -> list[ServedModel]:
        """All models that can be named, loaded or not."""
        if self.only is not None:
            return [self.only]
        listed = [self._of(found) for found in await asyncio.to_thread(self._known.all)]
        return [*listed, *(model for model in self.served if model.is_loaded and model not in listed)]

    async def find(self, name: str | None) -> ServedModel:
        """The model of a name, loaded or not. Raises HttpError for a name of none, and where none is given."""
        if self.only is not None:
            return self.only
        if name is None or not name.strip():
            loaded = [model for model in self._served.values() if model.is_loaded]
            if len(loaded) == 1:
                return loaded[0]
            raise HttpError(400, "model is missing; /v1/models lists the models of this server", param="model")
        try:
            return self._of(await asyncio.to_thread(self._known.named, name))
        except ModelNotFound as error:
            raise HttpError(404, str(error), code="model_not_found", param="model") from None

    @asynccontextmanager
    async def use(
        self, name: str | None, *, n_ctx: int | None = None, keep_s: float | None = None
    ) -> AsyncIterator[ServedModel]:
        """A loaded model, which stays loaded until the block ends.

        n_ctx: tokens of context that it must have at least; it is loaded again if it has fewer. keep_s: how long it
        stays loaded after this, instead of the server's own time. Raises HttpError for unknown names, QueueFull, and
        what loading raises.
        """
        model = await self.find(name)
        if model.n_users >= self.queue + model.n_parallel:
            raise QueueFull(f"{model.name} has {model.n_users} requests, as many as may wait for it; try again later")
        if not (self.loads_on_request or model.is_loaded or model.status in ("loading", "sleeping")):
            raise HttpError(
                400, f"{model.name} is not loaded; this server loads a model when POST /models/load names it"
            )
        model.n_users += 1
        try:
            await self._load(model, n_ctx)
            if keep_s is not None:
                model.keep_s = keep_s
            yield model
        finally:
            model.n_users -= 1
            model.used_s = time.monotonic()
            async with self._idle:
                self._idle.notify_all()
            if model.n_users == 0 and model.keep_s <= 0:
                await self.unload(model)

    async def load(self, model: ServedModel) -> None:
        """Loads a model unless it is loaded. Raises what loading raises."""
        await self._load(model, None)

    async def unload(self, model: ServedModel, status: Status = "unloaded") -> None:
        """Unloads a model; requests that use it fail."""
        model._past = model.stats
        llm, model._llm = model._llm, None
        model.keep_s = self.sleep_s  # what a request said of it was about this load
        if llm is not None:
            await llm.close()
            self._change(model, status)
            async with self._idle:
                self._idle.notify_all()

    async def unload_idle(self) -> None:
        """Unloads what nobody has used for its time; runs until it is cancelled."""
        while True:
            now = time.monotonic()
            idle = [model for model in self._served.values() if model.is_loaded and model.n_users == 0]
            for model in idle:
                if model.until_s <= now:
                    _LOG.info("%s sleeps: nobody has used it for %.0f s", model.name, model.keep_s)
                    await self.unload(model, "sleeping")
            waits = [model.until_s - now for model in idle if model.is_loaded]
            await asyncio.sleep(min(max(min(waits, default=1.0), 0.02), 1.0))

    async def close(self) -> None:
        """Unloads all models."""
        self._is_closed = True
        loading = [task for model in self._served.values() if (task := model._loading) is not None]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*map(self.unload, self._served.values()))

    def _of(self, found: Known) -> ServedModel:
        key = str(found.path)
        if key not in self._served:
            return self._serve(ServedModel(found.name, found, found.aliases, keep_s=self.sleep_s))
        return self._served[key]

    def _serve(self, model: ServedModel) -> ServedModel:
        self._served[str(model.known.path)] = model
        return model

    async def _load(self, model: ServedModel, n_ctx: int | None) -> None:
        """Waits until a model is loaded; many that wait load it once."""
        while True:
            if model._loading is None:
                if model._llm is not None and not self._is_short(model, n_ctx):
                    return
                model._loading = asyncio.create_task(self._load_now(model, n_ctx))
                model._loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            model._n_waiting += 1
            try:
                await asyncio.shield(model._loading)
            finally:
                model._n_waiting -= 1

    def _is_short(self, model: ServedModel, n_ctx: int | None) -> bool:
        """Whether it must be loaded again for its context."""
        if n_ctx is None or self.options.get("n_ctx") is not None:
            return False
        return model.llm.llm.n_ctx < min(n_ctx, model.llm.llm.spec.n_ctx_train)

    async def _load_now(self, model: ServedModel, n_ctx: int | None) -> None:
        try:
            async with self._loads:
                _check_wanted(model)
                options: dict[str, Any] = {**self.options}
                if options.get("n_ctx") is None:
                    options["n_ctx"] = n_ctx
                if options["n_ctx"] and (n_ctx is not None or not self.is_single):
                    options["n_ctx"] = await asyncio.to_thread(_possible_context, model, options["n_ctx"])
                if model._llm is not None:
                    await self._until(lambda: model.n_users <= 1)
                    await self.unload(model)
                self._change(model, "loading")
                await self._make_room(model, options.get("n_ctx"))
                llm = AsyncLLM(model.known.found, **options)  # type: ignore[arg-type]
                try:
                    await llm.load()
                except BaseException:
                    await llm.close()
                    raise
                model._llm = llm
                model.used_s = time.monotonic()
                model.error, model.was_loaded = None, True
                self._change(model, "loaded")
        except VkllmError as error:
            model.error = error
            self._change(model, "failed")
            raise
        except asyncio.CancelledError:
            if not model.is_loaded:
                self._change(model, "unloaded")
            raise
        finally:
            model._loading = None

    async def _make_room(self, model: ServedModel, n_ctx: int | None) -> None:
        """Unloads others, the least recently used first, until the model fits beside those that stay."""
        if self.only is None and not any(other.is_loaded for other in self._served.values()):
            await asyncio.to_thread(self._fitting.look)
        while others := [other for other in self._served.values() if other.is_loaded and other is not model]:
            plans = [other.llm.llm.plan for other in others]
            is_too_many = self.most is not None and len(others) >= self.most
            if not is_too_many and await asyncio.to_thread(self._fitting.fits, model.known.found, n_ctx, plans):
                return
            await self._until(
                lambda: model._n_waiting == 0 or any(not other.is_loaded or other.n_users == 0 for other in others)
            )
            _check_wanted(model)
            idle = [other for other in others if other.is_loaded and other.n_users == 0]
            if idle:
                oldest = min(idle, key=lambda other: other.used_s)
                _LOG.info("%s is unloaded to make room for %s", oldest.name, model.name)
                await self.unload(oldest)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with self._idle:
            await self._idle.wait_for(is_so)

    def _change(self, model: ServedModel, status: Status) -> None:
        model.status = status
        for tell in [*self.on_change]:  # one may be there for the first change only
            tell(model)


def _check_wanted(model: ServedModel) -> None:
    """Ends its loading if all who wanted it have gone, so that no other model is unloaded for nobody."""
    if model._n_waiting == 0:
        raise asyncio.CancelledError


def _possible_context(model: ServedModel, n_ctx: int) -> int:
    """The context asked for, or the longest that the model was trained for."""
    return n_ctx if model.known.path is None else min(n_ctx, file_facts(model.known.path).n_ctx_train)
