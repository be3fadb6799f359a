"""A model to talk to from Python: what can be asked of it, each a call or two of the parts beside this file.

It knows requests and answers; it does not know devices, kernels or how tokens are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack, overload

from vkllm.api import benchmark, queries
from vkllm.api.answer import Generation, OnToken, SamplingOptions
from vkllm.api.benchmark import BatchTimes
from vkllm.api.chat import SyncChat, sync_chat
from vkllm.api.embedding import embeddings
from vkllm.api.loading import LoadedModel, Loading, LoadOptions
from vkllm.api.prompts import Message as Message
from vkllm.api.prompts import as_batch, checked_origin
from vkllm.api.stream import Stream, all_answers
from vkllm.engine.events import DeviceReport, EngineStats, RunStats
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import not_copied
from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import main_format
from vkllm.model.memory.plan import MemoryPlan
from vkllm.parameters import checks_names
from vkllm.store import FoundModel

if TYPE_CHECKING:
    from vkllm.api.openai.create import SyncCompletions, SyncEmbeddings
    from vkllm.gpu.measure.step_times import StepTimes
    from vkllm.gpu.tuning.search import Trial
    from vkllm.gpu.tuning.tuner import TuningReport


class LLM:
    """A loaded model. Safe to use from several threads; `close()` or a `with` block releases it.

    model: a name from `vkllm list`, a path to a .gguf file, or a folder with one.
    n_ctx: tokens of prompt and answer; 0 takes the longest that costs no speed; by default the model's own, up to 4096.
    device: index or part of the name of a GPU (`vkllm devices`), or of several: "0,1"; the default is the best one.
    num_shards, split_mode, tensor_split, main_gpu: how a model is split over several (docs/several_gpus.md).
    type_k, type_v: how keys and values are cached, "f16" or "q8_0", which takes a little over half the memory.
    n_gpu_layers: layers, counted from the last, whose weights may lie in a card's own memory; None or -1 is all.
    vram_limit, ram_limit: bytes that may be taken of a card's own and of system memory (`plan_model`).
    override_tensor: where tensors lie, as llama.cpp's -ot has it: "exps=CPU" (docs/configuration.md).
    n_parallel: requests that run at once, others wait; the default is as many as cost one alone nothing, at most 32.
    queue: requests that may wait, or QueueFull is raised; the default is any number.
    spec: how tokens are drafted that one step verifies: "ngram" (earlier text), "mtp" (the file's head), "auto", "off".
    chat_template: Jinja in place of the file's. variables: what it is given in chats that do not give it themselves.
    pooling: of which tokens an embedding is made, "mean" (of all), "cls" (the first) or "last", in place of the file's.
    sampling: values of `SamplingParams` for requests that name none; seed: of these, else random. on_progress(what,
    bytes done, bytes total) is called while it loads.

    Raises InvalidParameter, ModelNotFound, ModelFileError, UnsupportedModel before it touches a device, then NoDevice,
    OutOfDeviceMemory, DeviceLost. It belongs to the process that made it: it can neither be pickled nor used in a fork.

    >>> with LLM("smollm2", n_ctx=512) as small:
    ...     print(small.generate("The capital of France is", max_tokens=1, temperature=0).text)
     Paris
    """

    @checks_names(LoadOptions)
    def __init__(
        self, model: str | Path | FoundModel | LoadedModel = "smollm2", **options: Unpack[LoadOptions]
    ) -> None:
        if not isinstance(model, LoadedModel):  # which AsyncLLM passes
            model = Loading(model, **options).run()
        self._model, self._engine, self._prompts = model, model.engine, model.prompts
        self.path, self.name, self.spec = model.path, model.name, model.spec
        self.tokenizer, self.tensors = model.tokenizer, model.tensors
        self.quantization, self.n_ctx = main_format(model.tensors), model.prompts.n_ctx

    def __repr__(self) -> str:
        return f"<LLM {self._model!r}>" if hasattr(self, "_model") else "<LLM, not loaded>"

    def __reduce__(self) -> NoReturn:
        raise not_copied("an LLM")

    @property
    def device_name(self) -> str:
        """The device that the model runs on."""
        return self._engine.ready.device_name

    @property
    def is_cpu_device(self) -> bool:
        """Whether that device is a Vulkan driver on the CPU, which is slow."""
        return self._engine.ready.is_cpu_device

    @property
    def plan(self) -> MemoryPlan:
        """Where its parts lie."""
        return self._engine.ready.plan

    @property
    def load_times(self) -> dict[str, float]:
        """Seconds of loading by what took them, one after the other: "file" (finding it and reading its header),
        "process" (the engine's start), "device", "weights", "first steps"; and "text", for the tokenizer and the
        template, beside those behind the first."""
        return dict(self._model.load_s)

    @property
    def moved_bytes(self) -> int:
        """Bytes that lie in slower memory than planned, because the driver refused them."""
        return self._engine.ready.moved_bytes

    @property
    def slow_paths(self) -> tuple[str, ...]:
        """What the driver computes wrongly, so that slower kernels do it: "dot products", "matrices", "subgroups"."""
        return self._engine.ready.slow_paths

    @property
    def n_params(self) -> int:
        """Numbers in all tensors of the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def has_chat_template(self) -> bool:
        """Whether the file says how to chat with the model; base models do not, and `chat` guesses."""
        return not self._model.template.is_fallback

    @property
    def default_params(self) -> SamplingParams:
        """The parameters of requests without `params`: those that the model's file recommends, else vkllm's own."""
        return self._prompts.defaults

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]: ...

    @checks_names(SamplingOptions)
    def generate(
        self,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        on_token: OnToken | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """Continues a prompt, given as text or as token ids, and returns the whole answer.

        Special tokens written in the text, such as <|im_end|>, are those tokens; in messages of `chat` they are text.
        A list of texts or of lists of token ids is a batch: as many run at once as `n_parallel` allows, and the answers
        come as a list in the same order; an error in one, or Ctrl-C, cancels all. It may be empty.

        on_token is called with each `Piece` as it comes; an exception in it cancels the request and is raised. options
        are the fields of `SamplingParams`; they override those of `params`. max_tokens is cut to the room that the
        prompt leaves, unless context_shift lets the answer go on: then a full context keeps the beginning of sequence
        and the newer half of the rest. Raises InvalidParameter, ContextOverflow, DeviceLost.

        >>> llm.generate("The capital of France is", max_tokens=1, temperature=0).text
        ' Paris'
        >>> both = llm.generate(["The capital of France is", "The capital of Italy is"], max_tokens=1, temperature=0)
        >>> [answer.text for answer in both]
        [' Paris', ' Rome']
        """
        prompts, is_batch = as_batch(prompt, on_token)
        answers = [self._prompts.of_text(each, params, options) for each in prompts]
        return all_answers(self._engine, answers) if is_batch else Stream(self._engine, answers[0]).consume(on_token)

    @checks_names(SamplingOptions)
    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """Like `generate`, but returns the pieces as they come: `for piece in llm.stream(...): print(piece, end="")`.

        The stream's `result()` is the whole answer with its stats.
        """
        return Stream(self._engine, self._prompts.of_text(prompt, params, options))

    @property
    def chat(self) -> SyncChat:
        """`chat(messages, ...)` answers a conversation; `chat.completions.create(...)` does so in OpenAI's shape.

        >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
        >>> llm.chat(messages, max_tokens=7, temperature=0).text
        'The capital of France is Paris.'
        """
        return sync_chat(self._engine, self._prompts)

    @property
    def completions(self) -> SyncCompletions:
        """`completions.create(prompt=...)` takes and returns what OpenAI's API for plain text does."""
        from vkllm.api.openai.create import Completions, in_thread  # with pydantic, which takes 0.2 s to import

        return Completions(in_thread(self._engine, self._prompts))

    @property
    def embeddings(self) -> SyncEmbeddings:
        """`embeddings.create(input=...)` takes and returns what OpenAI's API does."""
        from vkllm.api.openai.create import Embeddings, embed_in_thread

        return Embeddings(embed_in_thread(self._engine, self._prompts))

    @checks_names()
    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a text, as `generate` makes them.

        add_special: put around it what the model wants there, such as a beginning of sequence. parse_special: take
        control tokens written in the text, such as <|im_end|>, as those tokens. Raises InvalidParameter.

        >>> llm.tokenize("Hello, world!<|im_end|>")
        [19556, 28, 905, 17, 2]
        """
        if not isinstance(text, str):
            raise InvalidParameter(f"text must be a string, not of type {type(text).__name__}")
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    @checks_names()
    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids, by default without control tokens; bytes of no character become U+FFFD.

        >>> llm.detokenize([19556, 28, 905, 17, 2])
        'Hello, world!'
        """
        return self.tokenizer.decode(self._prompts.checked_tokens(token_ids), skip_special=skip_special)

    @checks_names()
    def count_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> int:
        """How many tokens a text takes, or a conversation with all of its template. Raises InvalidParameter.

        >>> llm.count_tokens("What is the capital of France?")
        7
        >>> llm.count_tokens([{"role": "user", "content": "What is the capital of France?"}])
        37
        """
        return self._prompts.count_tokens(prompt, tools, variables)

    @overload
    def embed(self, text: str | Sequence[int], *, origin: str = "") -> list[float]: ...

    @overload
    def embed(self, text: list[str] | list[list[int]], *, origin: str = "") -> list[list[float]]: ...

    @checks_names()
    def embed(
        self, text: str | Sequence[int] | list[str] | list[list[int]], *, origin: str = ""
    ) -> list[float] | list[list[float]]:
        """The embedding of a text, or of each in a list: d_model numbers, whose squares add up to 1.

        Texts are given as strings or as token ids. Their hidden states after the final norm are pooled as the model's
        file says, and as their mean where it says nothing; the dot product of two embeddings is their similarity. A
        text may be as long as the context. Raises InvalidParameter for an empty text, ContextOverflow, UnsupportedModel
        for a model that is made for ranks, DeviceLost.

        >>> cat, kitten = llm.embed(["The cat sleeps.", "A kitten is asleep."])
        >>> similarity = sum(a * b for a, b in zip(cat, kitten))
        """
        texts, is_batch = as_batch(text)
        vectors = [found.vector for found in embeddings(self._engine, self._prompts.of_embeddings(texts, origin))]
        return vectors if is_batch else vectors[0]

    @checks_names()
    def save_state(self, path: str | Path, *, origin: str = "") -> None:
        """Saves what is cached now, after an answer the whole conversation: a later process need not run it again.

        It waits for the requests before it, and saves nothing that is of another origin. The file is an .npz that holds
        the token ids and, uncompressed, their keys and values; a file that is there is replaced when the new one is
        whole. Raises InvalidParameter if nothing is cached, StateFileError if the file cannot be written, DeviceLost.

        >>> answer = llm.generate("Once upon a time", max_tokens=4)
        >>> llm.save_state("story.npz")
        """
        queries.move_state(self._engine, self._prompts, "save", path, checked_origin(origin))

    @checks_names()
    def load_state(self, path: str | Path, *, origin: str = "") -> list[int]:
        """Caches again what `save_state` has saved, and returns the token ids: a prompt that begins with them, or a
        conversation that goes on from there, starts at once.

        Only requests of the same origin use it. A state can make the model answer anything, so load only those of
        people that you trust. The last token of an answer may not be among them, because nothing was computed with it.
        Raises StateFileError if the file is damaged or was saved with another model or
        other cache types, ContextOverflow if it is longer than the context, DeviceLost; then all is as before.

        >>> answer = llm.generate("Once upon a time", max_tokens=4)
        >>> llm.save_state("story.npz")
        >>> token_ids = llm.load_state("story.npz")
        >>> answer = llm.generate(token_ids + llm.tokenize(" there"), max_tokens=4)
        """
        return list(queries.move_state(self._engine, self._prompts, "load", path, checked_origin(origin)))

    @checks_names()
    def score(self, text: str | Sequence[int], *, first: int = 1, origin: str = "") -> list[float]:
        """How likely the model finds a text: the natural logarithm of each token's probability after those before it.

        The text may be given as token ids. The list begins with token number `first`, at least 1: nothing comes before
        token 0. A text may be as long as the context. Raises InvalidParameter, ContextOverflow, DeviceLost.

        >>> logprobs = llm.score("The capital of France is Paris")
        >>> len(logprobs), round(logprobs[-1], 1)
        (5, -0.3)
        """
        return queries.score(self._engine, self._prompts.of_scores(text, first, origin))

    def stats(self) -> EngineStats:
        """Counts and seconds of all requests that ended since the model was loaded, and of the last one."""
        return self._engine.stats

    def measure_device(self) -> DeviceReport:
        """The device with its driver and limits, and how fast it reads memory, which takes a second to measure.

        Raises OutOfDeviceMemory if there is no room for the measurement, DeviceLost.
        """
        return queries.measure_device(self._engine, self._prompts)

    @checks_names()
    def measure_kernels(self, n_rows: int = 1, n_depth: int = 0) -> StepTimes:
        """How long each kernel takes of a step of n_rows, up to 512, with n_depth tokens cached; 1 is decoding.

        It takes seconds. Raises InvalidParameter if requests are open, ContextOverflow, OutOfDeviceMemory, DeviceLost.
        """
        return queries.measure_kernels(self._engine, self._prompts, n_rows, n_depth)

    @checks_names()
    def tune(self, budget_s: float = 30.0, on_trial: Callable[[Trial], None] | None = None) -> TuningReport:
        """Finds by trying how this device runs models like this one fastest, uses that, and keeps it for later loads.

        budget_s: about how long. on_trial is called after each trial. Raises InvalidParameter if requests are open or
        come meanwhile, DeviceError.
        """
        return queries.tune(self._engine, self._prompts, budget_s, on_trial)

    @checks_names()
    def benchmark_generate(self, prompt: str | Sequence[int], generate_length: int) -> RunStats:
        """Runs a prompt and generates exactly this many tokens, greedily; returns how fast both were.

        Times are the engine's; cached prompt tokens do not count. Raises InvalidParameter, ContextOverflow, DeviceLost.
        """
        return benchmark.generate(self._engine, self._prompts, prompt, generate_length)

    @checks_names()
    def benchmark_batch(self, prompts: Sequence[str | Sequence[int]], generate_length: int) -> BatchTimes:
        """The same for several prompts that are sent at once. Raises InvalidParameter, ContextOverflow, DeviceLost."""
        return benchmark.generate_batch(self._engine, self._prompts, prompts, generate_length)

    def close(self) -> None:
        """Ends the engine and releases the device; open streams fail. The second call does nothing."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
