"""A plain chat with a model that is loaded here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vkllm import LLM, ModelNotFound, SamplingParams, VkllmError
from vkllm.engine.file_sampling import file_sampling
from vkllm.faces.chat.model_check import OnProgress, check_model
from vkllm.faces.cli.line_state import PlainChat
from vkllm.faces.cli.loading import tell_of_memory
from vkllm.faces.cli.model_facts import fields_of_file, lines_of
from vkllm.faces.cli.modelfile import modelfile
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.cli.opening import RunOptions, open_model
from vkllm.faces.terminal import counted, file_title, loading_bar, print_stats, say, show
from vkllm.faces.thoughts import kept_text
from vkllm.formats.gguf import ModelFile
from vkllm.store import FoundModel, look_up

_LOADING = {"num_ctx": "n_ctx", "num_gpu": "n_gpu_layers"}
"""ollama's parameters -> ours of loading."""


class LineChat(PlainChat):
    """A plain chat that holds its model."""

    def __init__(self, options: RunOptions, sampling: dict[str, Any]) -> None:
        """Opens the model. Raises any VkllmError."""
        super().__init__(sampling, options.system or "", options.thoughts, wants_stats=options.wants_stats)
        self.model = look_up(options.model)
        self.loading = options.loading
        self._llm: LLM | None = open_model(self.model, self.loading)

    @property
    def llm(self) -> LLM:
        """The open model. Raises ModelNotFound if there is none, because the last one could not be opened again."""
        if self._llm is None:
            raise ModelNotFound("no model is open; `/load MODEL` opens one")
        return self._llm

    @property
    def title(self) -> str:
        """The open model and its device."""
        return f"{file_title(self.llm).removesuffix('.gguf')} on {self.llm.device_name}"

    @property
    def n_ctx(self) -> int:
        """Tokens of context."""
        return self.llm.n_ctx

    @property
    def defaults(self) -> SamplingParams:
        """How answers are made where nothing was set."""
        return self.llm.default_params

    def answer(self) -> str:
        """Prints the answer to the conversation as it comes, and returns it as it is kept. Raises any VkllmError."""
        answer = self.llm.chat(self.prompt_messages, stream=True, **self.sampling)
        show(answer, self.thoughts)
        generation = answer.result()
        if self.wants_stats:
            print_stats(self.llm, generation.stats)
        return kept_text(generation)

    def open_named(self, name: str) -> None:
        """Opens another model. Raises any VkllmError, and then the last one is still open."""
        self.open(look_up(name), self.loading)

    def open_with(self, name: str, value: int) -> None:
        """Loads the model again with another context, or with other layers on the GPU."""
        self.open(self.model, self.loading | {_LOADING[name]: value})

    def open(self, model: FoundModel, loading: dict[str, Any]) -> None:
        """Opens another model, or this one in another way. Raises any VkllmError, and then the last one is still open.

        All that can be checked is checked first. Then the last one is closed, because two may not fit; if the other
        fails even so, the last one is opened again. Where that fails too, the error says so and no model is open.
        """
        model = ensure_here(model)
        with loading_bar() as on_progress:
            model = check_model(model, loading, self._llm, on_progress)
            last, self._llm = self._llm, None
            if last is not None:
                last.close()
            try:
                self._llm = LLM(model, **loading, on_progress=on_progress)
            except (VkllmError, KeyboardInterrupt) as error:
                if last is not None:
                    self._open_again(error, on_progress)
                raise
        self.model, self.loading = replace(model, file=None), loading
        tell_of_memory(self.llm)
        say(f"{self.title}, context of {counted(self.n_ctx, 'token')}.")

    def _open_again(self, error: VkllmError | KeyboardInterrupt, on_progress: OnProgress | None) -> None:
        """Opens the last model, which was closed for one that could not be opened."""
        try:
            self._llm = LLM(self.model, **self.loading, on_progress=on_progress)
        except VkllmError as second:
            first = "it was stopped" if isinstance(error, KeyboardInterrupt) else str(error).rstrip(".")
            raise type(second)(
                f"{first}; and {self.model.name}, which was open before, could not be opened again "
                f"({str(second).rstrip('.')}), so no model is open; `/load MODEL` opens one"
            ) from error

    def facts(self, what: str) -> str:
        """What the model's file says, and what was set."""
        metadata = ModelFile.open(self.llm.path).metadata
        if what == "info":
            facts = lines_of(fields_of_file(self.model.name, ModelFile.open(self.llm.path), self.model.entry))
            return "\n".join(f"{key:14}{text}" for key, text in facts)
        if what == "modelfile":
            sampling = file_sampling(metadata).values | self.sampling
            return modelfile(self.llm.path, self.n_ctx, self.loading, sampling, self.system)
        if what == "template":
            template = metadata.string("tokenizer.chat_template", None)
            return template or "The file has no chat template; one is guessed."
        entry = self.model.entry
        names = [metadata.string(f"general.license{end}", None) for end in ("", ".name", ".link")]
        return "\n".join(filter(None, names)) or (entry.licence if entry else "The file names no licence.")

    def close(self) -> None:
        """Ends the engine."""
        if self._llm is not None:
            self._llm.close()
