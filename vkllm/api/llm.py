"""A model to talk to from Python: opens the file, starts the engine, turns text into requests.

It knows prompts, templates and limits; it does not know devices, kernels or how tokens are chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from vkllm.api.answer import Generation, OnToken, SamplingOptions
from vkllm.api.chat import Chat
from vkllm.api.embedding import embeddings
from vkllm.api.measuring import Measuring
from vkllm.api.prompts import Message as Message
from vkllm.api.prompts import Prompts, as_batch
from vkllm.api.stream import Stream, results
from vkllm.engine.events import RunStats, StateAnswer
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, StateQuery
from vkllm.errors import ContextOverflow, InvalidParameter, ModelFileError
from vkllm.formats.gguf import ModelFile, main_format
from vkllm.model.architectures import model_spec, pooling
from vkllm.model.memory.plan import MemoryPlan, PlanOptions
from vkllm.store import find_model
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vkllm.api.openai.create import Completions, Embeddings

DEFAULT_N_CTX = 4096


class LLM(Measuring):
    """A loaded model. Safe to use from several threads; `close()` or a `with` block releases it.

    model: a name from `vkllm list`, a path to a .gguf file, or a folder with one.
    n_ctx: tokens of prompt and answer together; 0 takes the longest that costs no speed; the default is what the model
    was trained for, at most 4096.
    device: index or part of the name of a GPU (`vkllm devices`); the default is the best one.
    type_k, type_v: how keys and values are cached, "f16" or "q8_0", which takes a little over half the memory.
    n_gpu_layers: layers, counted from the last, whose weights may lie in a card's own memory; None or -1 is all.
    vram_limit, ram_limit: bytes that may be taken of a card's own and of system memory (`plan_model`).
    seed: for requests that name none; without it each answer is drawn anew.
    on_progress(what, bytes done, bytes total) is called while the model is downloaded and loaded.

    Raises ModelNotFound, ModelFileError, UnsupportedModel before it touches a device, then NoDevice,
    OutOfDeviceMemory, DeviceLost.

    >>> with LLM("smollm2", n_ctx=512) as small:
    ...     print(small.generate("The capital of France is", max_tokens=1, temperature=0).text)
     Paris
    """

    def __init__(
        self,
        model: str | Path = "smollm2",
        *,
        n_ctx: int | None = None,
        device: str | int | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        n_gpu_layers: int | None = None,
        vram_limit: int | None = None,
        ram_limit: int | None = None,
        seed: int | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.path = find_model(str(model), on_progress=on_progress)
        self.name = self.path.stem if Path(model).exists() else str(model)
        file = ModelFile.open(self.path)
        self.spec = model_spec(file.metadata, file.tensors)
        self.tokenizer = Tokenizer.from_gguf(file.metadata)
        if self.tokenizer.n_vocab > self.spec.n_vocab:
            raise ModelFileError(
                f"{self.path}: the vocabulary has {self.tokenizer.n_vocab} tokens, but the embedding only "
                f"{self.spec.n_vocab} rows; the file is damaged"
            )
        self.tensors = file.tensors
        self.quantization = main_format(file.tensors)
        self._template = ChatTemplate.from_gguf(file.metadata, self.tokenizer)
        self._request_ids = itertools.count(1)
        self._engine = EngineProcess(
            EngineConfig(
                path=self.path,
                tensors=file.tensors,
                spec=replace(self.spec, n_vocab=self.tokenizer.n_vocab),  # rows beyond it are padding
                n_ctx=_context(n_ctx, self.spec.n_ctx_train),
                device=None if device is None else str(device),
                options=PlanOptions(
                    type_k, type_v, None if n_gpu_layers == -1 else n_gpu_layers, vram_limit, ram_limit
                ),
                token_bytes=self.tokenizer.answer_bytes(),
                end_ids=self.tokenizer.stop_ids,
            ),
            None if on_progress is None else lambda done, total: on_progress(f"loading {self.path.name}", done, total),
        )
        self._engine.start()
        self.n_ctx = self._engine.ready.plan.n_ctx
        self._prompts = Prompts(
            self.tokenizer,
            self._template,
            SamplingParams(seed=seed),
            self._request_ids,
            model=self.name,
            pooling=pooling(file.metadata),
            n_ctx=self.n_ctx,
            n_ctx_train=self.spec.n_ctx_train,
        )

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
        """Where the parts of the model lie."""
        return self._engine.ready.plan

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
        """Whether the file says how to chat with the model; base models do not, and `chat` guesses (ChatML)."""
        return not self._template.is_fallback

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
        A list of texts or of lists of token ids is a batch: all its requests are sent at once, and the answers come as
        a list in the same order; an error in one, or Ctrl-C, cancels all.

        on_token is called with each `Piece` as it comes; an exception in it cancels the request and is raised.
        options are the fields of `SamplingParams`; they override those of `params`. max_tokens is cut to the room
        that the prompt leaves, unless context_shift lets the answer go on: then a full context keeps the beginning of
        sequence and the newer half of the rest. Raises InvalidParameter, ContextOverflow, DeviceLost.

        >>> llm.generate("The capital of France is", max_tokens=1, temperature=0).text
        ' Paris'
        >>> both = llm.generate(["The capital of France is", "The capital of Italy is"], max_tokens=1, temperature=0)
        >>> [answer.text for answer in both]
        [' Paris', ' Rome']
        >>> answer = llm.generate("The capital of France is", max_tokens=2, temperature=0, on_token=print)
         Paris
        .
        """
        prompts, is_batch = as_batch(prompt, on_token)
        answers = [self._prompts.of_text(each, params, options) for each in prompts]
        return results(self._engine, answers) if is_batch else Stream(self._engine, answers[0]).consume(on_token)

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """Like `generate`, but returns the pieces as they come: `for piece in llm.stream(...): print(piece, end="")`.

        The stream's `result()` is the whole answer with its stats.
        """
        return Stream(self._engine, self._prompts.of_text(prompt, params, options))

    @property
    def chat(self) -> Chat:
        """`chat(messages, ...)` answers a conversation; `chat.completions.create(...)` does so in OpenAI's shape.

        >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
        >>> llm.chat(messages, max_tokens=7, temperature=0).text
        'The capital of France is Paris.'
        """
        return Chat(self._engine, self._prompts)

    @property
    def completions(self) -> Completions:
        """`completions.create(prompt=...)` takes and returns what OpenAI's API for plain text does."""
        from vkllm.api.openai.create import Completions  # with pydantic, which takes 0.2 s to import

        return Completions(self._engine, self._prompts)

    @property
    def embeddings(self) -> Embeddings:
        """`embeddings.create(input=...)` takes and returns what OpenAI's API does."""
        from vkllm.api.openai.create import Embeddings

        return Embeddings(self._engine, self._prompts)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a text, as `generate` makes them.

        add_special: put around it what the model wants there, such as a beginning of sequence. parse_special: take
        control tokens written in the text, such as <|im_end|>, as those tokens. Raises InvalidParameter.

        >>> llm.tokenize("Hello, world!<|im_end|>")
        [19556, 28, 905, 17, 2]
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no whole character become U+FFFD. Raises InvalidParameter.

        skip_special: leave control tokens out.

        >>> llm.detokenize([19556, 28, 905, 17, 2])
        'Hello, world!'
        """
        return self.tokenizer.decode(self._prompts.checked_tokens(token_ids), skip_special=skip_special)

    def count_tokens(self, prompt: str | Sequence[Message], *, tools: Sequence[Message] | None = None) -> int:
        """How many tokens of the context a text takes, or a conversation with all that the template adds to it.

        Raises InvalidParameter.

        >>> llm.count_tokens("What is the capital of France?")
        7
        >>> llm.count_tokens([{"role": "user", "content": "What is the capital of France?"}])
        37
        """
        return self._prompts.count_tokens(prompt, tools)

    @overload
    def embed(self, text: str | Sequence[int]) -> list[float]: ...

    @overload
    def embed(self, text: list[str] | list[list[int]]) -> list[list[float]]: ...

    def embed(self, text: str | Sequence[int] | list[str] | list[list[int]]) -> list[float] | list[list[float]]:
        """The embedding of a text, or of each in a list: d_model numbers, whose squares add up to 1.

        Texts are given as strings or as token ids. Their hidden states after the final norm are pooled as the model's
        file says, and as their mean where it says nothing; the dot product of two embeddings is their similarity. A
        text may be as long as the context; it takes the place of what was cached. All requests are sent at once; an
        error in one, or Ctrl-C, cancels all. Raises InvalidParameter for an empty text, ContextOverflow,
        UnsupportedModel for a model that is made for ranks, DeviceLost.

        >>> cat, kitten = llm.embed(["The cat sleeps.", "A kitten is asleep."])
        >>> similarity = sum(a * b for a, b in zip(cat, kitten))
        """
        texts, is_batch = as_batch(text)
        vectors = [found.vector for found in embeddings(self._engine, self._prompts.of_embeddings(texts))]
        return vectors if is_batch else vectors[0]

    def save_state(self, path: str | Path) -> None:
        """Saves what is cached now, after an answer the whole conversation: a later process need not run it again.

        It waits for the requests before it. The file is an .npz that holds the token ids and, uncompressed, their keys
        and values; a file that is there is replaced when the new one is whole. Raises InvalidParameter if nothing is
        cached, StateFileError if the file cannot be written, DeviceLost.

        >>> answer = llm.generate("Once upon a time", max_tokens=4)
        >>> llm.save_state("story.npz")
        """
        self._state("save", path)

    def load_state(self, path: str | Path) -> list[int]:
        """Caches again what `save_state` has saved, and returns the token ids: a prompt that begins with them, or a
        conversation that goes on from there, starts at once.

        The last token of an answer may not be among them, because nothing was computed with it. What was cached before
        is gone. Raises StateFileError if the file is damaged or was saved with another model or other cache types,
        ContextOverflow if it is longer than the context, DeviceLost; then nothing is cached, and requests run their
        whole prompts.

        >>> answer = llm.generate("Once upon a time", max_tokens=4)
        >>> llm.save_state("story.npz")
        >>> token_ids = llm.load_state("story.npz")
        >>> answer = llm.generate(token_ids + llm.tokenize(" there"), max_tokens=4)
        """
        return list(self._state("load", path))

    def _state(self, action: Literal["save", "load"], path: str | Path) -> tuple[int, ...]:
        # the engine's process may have started in another folder
        query = StateQuery(next(self._request_ids), action, Path(path).expanduser().absolute())
        for event in self._events(query):
            if isinstance(event, StateAnswer):
                return event.token_ids
        raise AssertionError("the engine did not answer")

    def benchmark_generate(self, prompt: str | Sequence[int], generate_length: int) -> RunStats:
        """Runs a prompt and generates exactly so many tokens, greedily; returns how fast both were.

        Times are the engine's: neither tokenizing nor the way of tokens to here counts. Prompt tokens that were
        cached do not count as run. Raises InvalidParameter, ContextOverflow, DeviceLost.
        """
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if len(token_ids) + generate_length > self.n_ctx:
            raise ContextOverflow(
                f"{len(token_ids)} prompt tokens and {generate_length} more do not fit into the context of "
                f"{self.n_ctx}; load the model with a larger one"
            )
        answer = self.generate(token_ids, max_tokens=generate_length, temperature=0, ignore_eos=True)
        return answer.stats

    def close(self) -> None:
        """Ends the engine and releases the device; open streams fail. The second call does nothing."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _context(n_ctx: int | None, n_ctx_train: int) -> int:
    if n_ctx is None:
        return min(n_ctx_train, DEFAULT_N_CTX)
    if n_ctx and not 1 < n_ctx <= n_ctx_train:
        raise InvalidParameter(
            f"a context of {n_ctx} tokens is not possible; the model was trained for 2 to {n_ctx_train}, "
            "and 0 takes the longest that fits"
        )
    return n_ctx
