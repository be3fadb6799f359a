"""A model to talk to from Python: opens the file, starts the engine, turns text into requests.

It knows prompts, templates and limits; it does not know devices, kernels or how tokens are chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from vkllm.engine.process import EngineProcess
from vkllm.engine.request import (
    Answer,
    DeviceAnswer,
    DeviceQuery,
    DeviceReport,
    EngineConfig,
    EngineStats,
    Event,
    Failed,
    Finished,
    KernelAnswer,
    KernelQuery,
    Query,
    Request,
    RunStats,
    SamplingParams,
    Scores,
    TuningAnswer,
    TuningQuery,
    TuningTrial,
)
from vkllm.errors import ContextOverflow, InvalidParameter, ModelFileError
from vkllm.formats.gguf import ModelFile, main_format
from vkllm.generation import Generation, SamplingOptions, Stream
from vkllm.model.plan import MemoryPlan, PlanOptions
from vkllm.model.spec import model_spec
from vkllm.store import find_model
from vkllm.text.chat import ChatTemplate
from vkllm.text.long_chat import n_tokens_of_system, shortened_chat
from vkllm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vkllm.gpu.step_times import StepTimes
    from vkllm.gpu.tuner import TuningReport
    from vkllm.gpu.tuning_search import Trial

DEFAULT_N_CTX = 4096

Message = Mapping[str, Any]


class LLM:
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
        self._defaults = SamplingParams(seed=seed)
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
            ),
            None if on_progress is None else lambda done, total: on_progress(f"loading {self.path.name}", done, total),
        )
        self._engine.start()
        self.n_ctx = self._engine.ready.plan.n_ctx

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

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Generation:
        """Continues a prompt, given as text or as token ids, and returns the whole answer.

        options are the fields of `SamplingParams`; they override those of `params`. max_tokens is cut to the room
        that the prompt leaves, unless context_shift lets the answer go on: then a full context keeps the beginning of
        sequence and the newer half of the rest. Raises InvalidParameter, ContextOverflow, DeviceLost.
        """
        with self.stream(prompt, params, **options) as stream:
            return stream.result()

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """Like `generate`, but returns the pieces as they come: `for piece in llm.stream(...): print(piece, end="")`.

        The stream's `result()` is the whole answer with its stats.
        """
        if isinstance(prompt, str):
            prompt_token_ids = self.tokenizer.encode(prompt)
        else:
            prompt_token_ids = [self._checked_token(token_id) for token_id in prompt]
        n_keep = int(prompt_token_ids[:1] == [self.tokenizer.bos_id])
        return self._submit(prompt_token_ids, self._params(params, options), n_keep, continues_text=True)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[False] = False,
        **options: Unpack[SamplingOptions],
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[True],
        **options: Unpack[SamplingOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Generation | Stream:
        """Answers a conversation: messages like {"role": "user", "content": "Hello"}, through the model's template.

        tools: function descriptions in OpenAI's form, for templates that know them. With stream=True it returns a
        `Stream`. With context_shift a conversation that is too long loses its oldest turns, and an answer that fills
        the context the middle of it; system messages stay. Raises what `generate` raises, and InvalidParameter for
        messages that the template refuses.
        """
        params = self._params(params, options)
        prompt_token_ids, n_keep = self._template.encode_chat(messages, tools=tools), 0
        if params.context_shift:
            n_keep = n_tokens_of_system(self._template, messages, prompt_token_ids, tools=tools)
            prompt_token_ids = shortened_chat(
                self._template, messages, prompt_token_ids, self.n_ctx, n_keep, tools=tools
            )
        answer = self._submit(prompt_token_ids, params, n_keep, continues_text=False)
        if stream:
            return answer
        with answer:
            return answer.result()

    def score(self, token_ids: Sequence[int], *, first: int = 1) -> list[float]:
        """How likely the model finds a text: the natural logarithm of each token's probability after those before it.

        The list begins with token_ids[first]. Token 0 has none, because nothing comes before it, so first is at least
        1. A text may be as long as the context. Raises InvalidParameter, ContextOverflow, DeviceLost.
        """
        if not 1 <= first < len(token_ids):
            raise InvalidParameter(
                f"token {first} of {len(token_ids)} cannot be scored; take one of the text that has tokens before it"
            )
        if len(token_ids) > self.n_ctx:
            raise ContextOverflow(
                f"the text has {len(token_ids)} tokens and the context holds {self.n_ctx}; "
                "score it in parts or load the model with a larger context"
            )
        prompt = tuple(self._checked_token(token_id) for token_id in token_ids)
        request = Request(next(self._request_ids), prompt, SamplingParams(), frozenset(), score_from=first)
        logprobs: list[float] = []
        for event in self._events(request):
            if isinstance(event, Scores):
                logprobs += event.logprobs
        return logprobs

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

    def stats(self) -> EngineStats:
        """Counts and seconds of all requests that ended since the model was loaded, and those of the last one."""
        return self._engine.stats

    def measure_device(self) -> DeviceReport:
        """The device with its driver and limits, and how fast it reads memory, which takes a second to measure.

        Raises OutOfDeviceMemory if there is no room for the measurement, DeviceLost.
        """
        for event in self._events(DeviceQuery(next(self._request_ids))):
            if isinstance(event, DeviceAnswer):
                return event.report
        raise AssertionError("the engine did not answer")

    def measure_kernels(self, n_rows: int = 1, n_depth: int = 0) -> StepTimes:
        """How long each kernel takes of a step of n_rows, up to 512, with n_depth tokens cached; 1 is decoding.

        It takes seconds, and no other request may run meanwhile. Raises InvalidParameter, ContextOverflow,
        OutOfDeviceMemory, DeviceLost.
        """
        for event in self._events(KernelQuery(next(self._request_ids), n_rows, n_depth)):
            if isinstance(event, KernelAnswer):
                return event.times
        raise AssertionError("the engine did not answer")

    def tune(self, budget_s: float = 30.0, on_trial: Callable[[Trial], None] | None = None) -> TuningReport:
        """Finds by trying how this device runs models like this one fastest, uses that, and keeps it for later loads.

        budget_s: how long it may take, roughly. on_trial is called after each trial. Raises InvalidParameter if
        requests are open or come meanwhile, DeviceError.
        """
        if not 1 <= budget_s <= 3600:
            raise InvalidParameter(f"a budget of {budget_s} seconds is not possible; give 1 to 3600")
        for event in self._events(TuningQuery(next(self._request_ids), budget_s)):
            if isinstance(event, TuningAnswer):
                return event.report
            if isinstance(event, TuningTrial) and on_trial is not None:
                on_trial(event.trial)
        raise AssertionError("the engine did not answer")

    def close(self) -> None:
        """Ends the engine and releases the device; open streams fail. The second call does nothing."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        n_keep: int,
        *,
        continues_text: bool,
    ) -> Stream:
        n_prompt = len(prompt_token_ids)
        if n_prompt == 0:
            raise InvalidParameter("the prompt is empty; give at least one token of it")
        room = self.n_ctx - n_prompt
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {n_prompt} tokens, but the context holds {self.n_ctx}, one of them for the answer; "
                f"shorten the prompt or ask for a larger context (the model's limit is {self.spec.n_ctx_train})"
            )
        if not params.context_shift:
            params = replace(params, max_tokens=room if params.max_tokens is None else min(params.max_tokens, room))
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self.tokenizer.stop_ids
        request = Request(next(self._request_ids), tuple(prompt_token_ids), params, stop_token_ids, n_keep=n_keep)
        detokenizer = self.tokenizer.detokenizer(continues=continues_text)
        return Stream(self._engine, request, self._engine.submit(request), detokenizer, self.tokenizer.token_text)

    def _events(self, request: Request | Query) -> Iterator[Event]:
        """Events of a request that makes no text, to its end. Raises what ends it early."""
        events = self._engine.submit(request)
        try:
            while True:
                event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Finished | Answer):
                    return
        except KeyboardInterrupt:
            self._engine.cancel(request.id)
            raise

    def _params(self, params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
        changes: dict[str, Any] = dict(options)
        if isinstance(stop := changes.get("stop"), str):
            changes["stop"] = (stop,)
        for name in ("stop", "stop_token_ids"):
            if name in changes:
                changes[name] = tuple(changes[name] or ())
        params = replace(params or self._defaults, **changes)
        if params.seed is None:
            params = replace(params, seed=self._defaults.seed)
        for token_id in params.stop_token_ids:
            self._checked_token(token_id)
        return params

    def _checked_token(self, token_id: int) -> int:
        if not 0 <= token_id < self.tokenizer.n_vocab:
            raise InvalidParameter(f"token id {token_id} is not in the vocabulary of {self.tokenizer.n_vocab} tokens")
        return int(token_id)


def _context(n_ctx: int | None, n_ctx_train: int) -> int:
    if n_ctx is None:
        return min(n_ctx_train, DEFAULT_N_CTX)
    if n_ctx and not 1 < n_ctx <= n_ctx_train:
        raise InvalidParameter(
            f"a context of {n_ctx} tokens is not possible; the model was trained for 2 to {n_ctx_train}, "
            "and 0 takes the longest that fits"
        )
    return n_ctx
