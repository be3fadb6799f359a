"""Loads a model: finds its file, reads what it holds, starts its engine. Another thread can cancel that.

It knows files and the options of loading; not what is asked of a loaded model.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from vkllm.api.prompts import Prompts, checked_variables
from vkllm.engine.file_sampling import file_sampling
from vkllm.engine.load_times import LoadTimes
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, TokenTexts
from vkllm.errors import DeviceLost, InvalidParameter, ModelFileError
from vkllm.formats.gguf import Metadata, ModelFile, TensorInfo, main_format
from vkllm.model.architectures import model_spec
from vkllm.model.memory.plan import PlanOptions, chosen_context
from vkllm.model.pooling import d_embedding, named_pooling, pooling
from vkllm.model.spec import ModelSpec
from vkllm.parameters import named_devices, whole_number
from vkllm.store import FoundModel, find_model, look_up
from vkllm.store.downloads.files import OnProgress
from vkllm.text.chat import ChatTemplate
from vkllm.text.messages import plain_value
from vkllm.text.tokenizer import Tokenizer, check_kind


class PlacingOptions(TypedDict, total=False):
    """The options that decide where a model lies; those of `plan_model`."""

    n_ctx: int | None
    device: str | int | Sequence[str | int] | None
    type_k: str
    type_v: str
    n_gpu_layers: int | None
    vram_limit: int | None
    ram_limit: int | None
    override_tensor: str | None
    n_parallel: int | None
    spec: str
    num_shards: int | None
    split_mode: str | None
    tensor_split: Sequence[float] | None
    main_gpu: int


class LoadOptions(PlacingOptions, total=False):
    """The options of `LLM`."""

    queue: int | None
    chat_template: str | None
    pooling: str | None
    variables: Mapping[str, Any] | None
    sampling: Mapping[str, Any] | None
    seed: int | None
    on_progress: OnProgress | None


@dataclass(frozen=True)
class LoadedModel:
    """A model whose engine runs: what its file holds, what makes requests, what takes them.

    load_s: seconds of loading, as `LLM.load_times` describes them.
    """

    path: Path
    name: str
    spec: ModelSpec
    tensors: dict[str, TensorInfo]
    tokenizer: Tokenizer
    template: ChatTemplate
    prompts: Prompts
    engine: EngineProcess
    load_s: Mapping[str, float]

    def __repr__(self) -> str:
        """Says what it is in one line."""
        if self.engine.is_closed:
            state = "closed"
        else:
            state = f"{self.engine.ready.plan.n_ctx} tokens of context on {self.engine.ready.device_name}"
        return f"{self.name} in {main_format(self.tensors)}, {state}"


_PLANNED = tuple(field.name for field in fields(PlanOptions) if field.name != "devices")


def plan_options(given: Mapping[str, Any]) -> PlanOptions:
    """What is asked of a plan by options of `LLM`, of which others are left out. Raises InvalidParameter."""
    devices = named_devices("device", given.get("device"))
    return PlanOptions(devices=devices, **{name: given[name] for name in _PLANNED if name in given})


def read_text(path: Path, metadata: Metadata, spec: ModelSpec) -> tuple[Tokenizer, ChatTemplate]:
    """What a model's file says of text. Raises ModelFileError, UnsupportedModel."""
    checked_n_vocab(path, metadata, spec)
    tokenizer = Tokenizer.from_gguf(metadata)
    return tokenizer, ChatTemplate.from_gguf(metadata, tokenizer)


def checked_n_vocab(path: Path, metadata: Metadata, spec: ModelSpec) -> int:
    """How many tokens a model's file has. Raises UnsupportedModel for a tokenizer of a kind not known here,
    ModelFileError."""
    check_kind(metadata)
    n_vocab = metadata.length("tokenizer.ggml.tokens")
    if n_vocab > spec.n_vocab:
        raise ModelFileError(
            f"{path}: the vocabulary has {n_vocab} tokens, but the embedding only {spec.n_vocab} rows; "
            "the file is damaged"
        )
    return n_vocab


class Loading:
    """The loading of one model. Raises InvalidParameter for options that are wrong whatever the model."""

    def __init__(self, model: str | Path | FoundModel, **options: Unpack[LoadOptions]) -> None:
        on_progress, chat_template = options.get("on_progress"), options.get("chat_template")
        sampling, queue = options.get("sampling"), options.get("queue")
        if not isinstance(model, str | Path | FoundModel):
            raise InvalidParameter(f"model must be a name or a path, not {model!r}")
        if on_progress is not None and not callable(on_progress):
            raise InvalidParameter(f"on_progress must be a function, not {on_progress!r}")
        self._model = str(model) if isinstance(model, Path) else model
        self._n_ctx = options.get("n_ctx")
        self._options = plan_options(options)
        if not isinstance(chat_template, str | None):
            raise InvalidParameter(f"chat_template must be the text of a Jinja template, not {chat_template!r:.60}")
        if not isinstance(sampling, Mapping | None):
            raise InvalidParameter(f"sampling must map parameters to values, not be {sampling!r:.60}")
        if queue is not None:
            whole_number("queue", queue, 0, 10**6)
        self._queue = queue
        self._chat_template = chat_template
        self._pooling = named_pooling(options.get("pooling"))
        self._variables: dict[str, Any] = plain_value(checked_variables(options.get("variables")), "a variable")
        self._sampling = dict(sampling or {})
        self._defaults = replace(SamplingParams(seed=options.get("seed")), **self._sampling)  # wrong ones are found now
        self._tell = on_progress
        self._is_cancelled = threading.Event()
        self._engine: EngineProcess | None = None

    def run(self) -> LoadedModel:
        """Loads the model. Raises what `LLM` raises, and DeviceLost if another thread has cancelled it."""
        times = LoadTimes()
        found = look_up(self._model)
        path = find_model(found, on_progress=self._on_progress)
        name = path.stem if found.source is None else found.name
        file = found.file or ModelFile.open(path)
        spec = model_spec(file.metadata, file.tensors)
        config = EngineConfig(
            path=path,
            tensors=file.tensors,
            spec=replace(spec, n_vocab=checked_n_vocab(path, file.metadata, spec)),  # rows beyond it are padding
            n_ctx=chosen_context(self._n_ctx, spec.n_ctx_train),
            options=self._options,
            queue=self._queue,
        )
        what = f"loading {path.name}"
        engine = self._engine = EngineProcess(config, lambda done, total: self._on_progress(what, done, total))
        if self._is_cancelled.is_set():  # when there was no engine to close
            engine.close()
        times.ended("file")
        engine.begin()
        try:  # a tokenizer is made while the engine loads: both take about a second
            tokenizer, template = read_text(path, file.metadata, spec)
            if self._chat_template is not None:
                template = ChatTemplate.of_text(self._chat_template, tokenizer)
        except BaseException:  # Ctrl-C too
            engine.close()
            raise
        template.variables = self._variables
        engine.learn(TokenTexts(tokenizer.answer_bytes(), tokenizer.stop_ids))
        times.ended("text")
        engine.start()
        file_s, text_s = times.seconds["file"], times.seconds["text"]
        prompts = Prompts(
            tokenizer,
            template,
            replace(self._defaults, **{**file_sampling(file.metadata).values, **self._sampling}),
            itertools.count(1),
            model=name,
            pooling=self._pooling or pooling(file.metadata),
            n_ctx=engine.ready.plan.n_ctx,
            n_ctx_train=spec.n_ctx_train,
            d_embedding=d_embedding(spec, file.tensors),
        )
        load_s = {"file": file_s, **engine.ready.load_s, "text": text_s}
        return LoadedModel(path, name, spec, file.tensors, tokenizer, template, prompts, engine, load_s)

    def cancel(self) -> None:
        """Ends the loading, or closes what was loaded."""
        self._is_cancelled.set()
        if self._engine is not None:
            self._engine.close()

    def _on_progress(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if self._is_cancelled.is_set():
            raise DeviceLost("the model was closed while it was loaded; open it again")
        if self._tell is not None:
            self._tell(what, done_bytes, total_bytes)
