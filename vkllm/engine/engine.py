"""The engine: a model on a device, and what it does for requests: answers, measurements, tuning, saved states.

A plain object that tests use in process and `engine/process/worker.py` runs in a child. Which requests run when, and
what becomes of their steps, is `engine/batching.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import chain

from vkllm.engine.batching import Batching
from vkllm.engine.blocks import n_blocks_of
from vkllm.engine.chunks import CHUNK_WIDTHS, ChunkLengths, longest_submit_s
from vkllm.engine.constraint import Vocabulary
from vkllm.engine.events import DeviceReport, Event, Failed, Finished, StateAnswer
from vkllm.engine.load_times import LoadTimes
from vkllm.engine.opening import opened, telling, told
from vkllm.engine.params import SamplingParams
from vkllm.engine.prefix_cache import Held, PrefixCache
from vkllm.engine.progress import Progress
from vkllm.engine.prompt_rows import PromptRows
from vkllm.engine.requests import EngineConfig, Request, StateQuery, TokenTexts
from vkllm.engine.sampler import Sampler
from vkllm.engine.saved_state import SavedStates
from vkllm.engine.speculation.drafter import Speculation
from vkllm.errors import ContextOverflow, DeviceLost, DeviceTimeout, InvalidParameter, VkllmError, counted
from vkllm.gpu.measure.arithmetic import product_rate
from vkllm.gpu.measure.bandwidth import read_bandwidth
from vkllm.gpu.measure.kernel_times import step_times
from vkllm.gpu.measure.step_times import StepTimes
from vkllm.gpu.program.cached_blocks import CachePlace
from vkllm.gpu.program.kernels import MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, WIDTHS, Part, Result
from vkllm.gpu.tuning.search import Trial
from vkllm.gpu.tuning.tuner import TuningReport, tune
from vkllm.model.pooling import Projection

LONG_PROMPT = CHUNK_WIDTHS[1]
"""Tokens of a prompt that is one step of several rows, recorded when it is needed."""

TIMED = "timing"
"""The origin of what is run to time kernels."""


class Engine:
    """A loaded model and its requests."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Loads the model; on_progress is called with bytes done and bytes in all. Raises any VkllmError."""
        progress = Progress(sum(info.n_bytes for info in config.tensors.values()), on_progress)
        self.load_times = LoadTimes()
        self._lengths = ChunkLengths(longest_submit_s())
        with ExitStack() as undo:
            self._opened = undo.enter_context(closing(opened(config, progress.add, self.load_times)))
            self.device_name = self._opened.name
            self._device = self._opened.devices[0]
            self._program = self._opened.program
            self.slow_paths = self._opened.slow_paths
            self.plan = self._program.plan
            self.moved_bytes = self._program.moved_bytes
            self.is_cpu_device = self._opened.has_cpu_device
            self._projection = Projection(config.path, config.spec, config.tensors)
            self._prompt_rows = PromptRows(self._program.heads, self._projection)
            self._saved_states = SavedStates(config, self._program)
            self._vocabulary = Vocabulary()
            self._product_rate: float | None = None
            self._n_ctx = self.plan.n_ctx
            self._config = config
            has_lookup, has_head = config.options.spec in ("auto", "ngram"), self.plan.n_predictors > 0
            drafts = config.spec.is_causal and (has_lookup or has_head)
            self._speculation = Speculation(WIDTHS, has_lookup=has_lookup, has_head=has_head) if drafts else None
            self._forget()
            with self._telling(f"loading {config.path.name}"):
                self._warm_up()
            self.load_times.ended("first steps")
            undo.pop_all()

    def _forget(self) -> None:
        """Begins with an empty cache. No request may be open."""
        program, config = self._program, self._config
        plan = program.plan
        self._cache = PrefixCache(program.n_blocks, plan.n_window_blocks, program.window, plan.n_state_slots)
        self._batching = Batching(
            program,
            self._cache,
            self._lengths,
            self._vocabulary,
            self._prompt_rows,
            self._move_state,
            n_ctx=self._n_ctx,
            n_sequences=program.n_sequences,
            n_queue=config.queue,
            longest_text=program.longest_text,
            rows_apart=program.rows_apart,
            speculation=self._speculation,
            n_in_turn=program.n_in_turn,
            clock=lambda: time.perf_counter(),
        )

    def _warm_up(self) -> None:
        """Compiles and records what every request needs before the first one: steps of one token and a short chunk of a
        prompt, which is timed. `prepare` does the rest."""
        program, self.is_prepared, self._has_wider_steps = self._program, False, False
        self.has_narrow_steps = False
        drawn = Result(Sampler(SamplingParams(), ()).draw(0))
        n_rows = min(CHUNK_WIDTHS[0], self._n_ctx - 1)
        blocks = list(range(n_blocks_of(n_rows + 1)))
        program.wait(program.submit([Part(0, [0] * n_rows, 0, blocks, blocks, results=[drawn])], is_prompt=True))
        program.wait(program.submit([Part(0, [None], n_rows, blocks, blocks, results=LIKELIEST)]))
        program.prepare(WIDTHS[0])
        if not self.is_cpu_device:
            program.prepare(CHUNK_WIDTHS[0])
        self._narrow = self._narrow_steps()
        self._preparing = chain(self._wider_steps(), self._narrow)
        self.prepare()
        self._opened.save_pipelines()

    def _wider_steps(self) -> Iterator[int]:
        """Records and times wider and wider chunks of a prompt, and yields their widths. Those that would take long, or
        the place of what is cached, are left to the first prompts that need them."""
        lengths = self._lengths
        while (width := lengths.n_rows()) not in lengths.took_s and width <= self._n_ctx:
            if lengths.n_submits(width) > 2 or not self._cache.has_empty_room(width):
                break
            held = self._cache.begin(TIMED, [0] * width, 0)
            self._run_chunk(held, [0] * width, 0)
            self._cache.end(held, (), is_kept=False)
            yield width
        self._program.prepare(WIDTHS[1])
        self._opened.save_pipelines()
        self._has_wider_steps = True

    def _narrow_steps(self) -> Iterator[int]:
        """Records steps of several sequences, or of drafts, where there may be any, and yields their widths. A driver
        may take seconds for the first pipelines of a width. On a CPU, a step takes longer than all of that."""
        are_wanted = self._program.n_sequences > 1 or self._speculation is not None
        for width in (w for w in WIDTHS if are_wanted and 1 < w <= MAX_NARROW and not self.is_cpu_device):
            self._program.prepare(width, width)
            self._opened.save_pipelines()
            yield width
        self.has_narrow_steps = True

    def prepare(self, *, is_narrow: bool = False) -> None:
        """Gets one more thing ready that longer prompts or several sequences need, if there is any. No request may be
        open. is_narrow: of steps of several sequences, which takes no place of what is cached. Raises DeviceError."""
        with self._telling("preparing for longer prompts"):
            if next(self._narrow if is_narrow else self._preparing, None) is None and not is_narrow:
                self.is_prepared = True

    def learn(self, texts: TokenTexts) -> None:
        """Takes the texts of the model's tokens, without which no answer can have a grammar."""
        self._vocabulary.learn(texts.token_bytes, texts.end_ids)

    def submit(self, request: Request | StateQuery) -> None:
        """Queues a request. Its events come from `step`. Raises QueueFull.

        A long prompt makes an idle engine get ready for such ones first.
        """
        is_long = isinstance(request, Request) and len(request.prompt_token_ids) > LONG_PROMPT
        while is_long and not (self._has_wider_steps or self.has_work):
            self.prepare()
        self._batching.submit(request)

    def cancel(self, request_id: int) -> None:
        """Ends a request at the next step, with what it has; unknown ids are ignored."""
        self._batching.cancel(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self._batching.has_work

    def step(self) -> list[Event]:
        """Does a little work, at most one step of each request, and returns the events of it. Raises DeviceError."""
        try:
            events = self._batching.step()
        except (DeviceLost, DeviceTimeout) as error:
            raise told(error, self.device_name, self._batching.doing) from error
        if any(isinstance(event, Finished) for event in events):
            self._opened.save_pipelines()  # a killed process would save nothing
        return events

    def measure_device(self) -> DeviceReport:
        """Times how fast the device reads memory, a second at most. Raises DeviceError."""
        with self._telling("measuring how fast it reads memory"):
            return DeviceReport(self._device.info, read_bandwidth(self._device, self.plan.tiers[0].free_bytes))

    def tune(
        self, budget_s: float, on_trial: Callable[[Trial], None], is_interrupted: Callable[[], bool]
    ) -> TuningReport:
        """Finds the best choices for the device, uses and keeps them. budget_s: about how long it may take.

        Raises InvalidParameter while a request is open and when is_interrupted; DeviceError.
        """
        if self.has_work:
            raise InvalidParameter("the model is answering a request; tune when it is idle")
        program = self._on_one_device("tuned")
        self._prompt_rows, self._product_rate = PromptRows(self._program.heads, self._projection), None
        self._forget()  # what is cached is overwritten
        try:
            with self._telling("tuning"):
                report = tune(program, budget_s, on_trial=on_trial, is_interrupted=is_interrupted)
        finally:
            self._lengths.forget()
        self._warm_up()
        while not self.is_prepared:
            self.prepare()
        return report

    def measure_kernels(self, n_rows: int, n_depth: int) -> StepTimes:
        """Times the kernels of a step of n_rows with n_depth tokens cached, which takes seconds.

        Raises InvalidParameter, ContextOverflow, DeviceError.
        """
        if self.has_work:
            raise InvalidParameter("the model is answering a request; time kernels when it is idle")
        program = self._on_one_device("timed kernel by kernel")
        if not (0 < n_rows <= MAX_ROWS and n_depth >= 0):
            raise InvalidParameter(
                f"there is no step of {counted(n_rows, 'row')} at depth {n_depth}; take 1 to {MAX_ROWS} rows"
            )
        if n_depth + n_rows > self._n_ctx:
            raise ContextOverflow(
                f"a step of {counted(n_rows, 'row')} at depth {n_depth} is longer than the context of {self._n_ctx} "
                "tokens; load the model with a larger one"
            )
        token_ids = [i % program.spec.n_vocab for i in range(n_depth)]
        held = self._filled(token_ids, n_depth + n_rows)
        if self._product_rate is None:
            self._product_rate = product_rate(self._device, program.operations, by_matrices=program.tuning.has_matmul)
        with self._telling("timing kernels"):
            made = step_times(program, n_rows, n_depth, held.blocks, self._product_rate)
        self._cache.end(held, token_ids)
        if program.states:
            self._forget()  # the timed steps have overwritten some
        return made

    def _on_one_device(self, done: str) -> Program:
        """The program, if it is on one device. done: what is to be done with it. Raises InvalidParameter."""
        if isinstance(self._program, Program):
            return self._program
        raise InvalidParameter(f"a model on several devices cannot be {done}; load it on one device (-dev)")

    def close(self) -> None:
        """Releases the device. Safe to call twice."""
        self._batching.close()
        self._opened.close()

    def _run_chunk(self, held: Held, token_ids: Sequence[int], start: int) -> None:
        """Runs the tokens of a sequence that nothing runs beside, from `start` on, and waits for them."""
        end, states = len(token_ids), self._cache.states
        self._cache.grow(held, start, end)
        stored = states.store(held.chain, start, end - start, is_prompt=True, needed_from=start)
        slot = states.slot(held.chain, start)
        part = Part(0, token_ids[start:], start, held.blocks, held.window_blocks, slot, stored)
        with self._telling(f"running {counted(end - start, 'token')} of a prompt from position {start} on"):
            step = self._program.submit([part], is_prompt=True, n_submits=self._lengths.n_submits(end - start))
            self._program.wait(step)
        self._lengths.measured(end - start, time.perf_counter() - step.submitted_s)
        self._cache.known(held, token_ids, end)

    def _filled(self, token_ids: Sequence[int], n_tokens: int) -> Held:
        """Holds a sequence of these tokens, which are run as far as they are not cached, with room for n_tokens."""
        held = self._cache.begin(TIMED, token_ids, len(token_ids))
        start = held.n_cached
        while start < len(token_ids):
            end = min(start + self._lengths.n_rows(), len(token_ids))
            self._run_chunk(held, token_ids[:end], start)
            start = end
        self._cache.grow(held, start, n_tokens)
        return held

    def _move_state(self, query: StateQuery) -> StateAnswer | Failed:
        """Saves what was cached last of an origin, or caches for it what a file holds."""
        try:
            token_ids = self._save(query) if query.action == "save" else self._load(query)
        except (DeviceLost, DeviceTimeout):
            raise
        except VkllmError as error:
            return Failed(query.id, error)
        return StateAnswer(query.id, tuple(token_ids))

    def _save(self, query: StateQuery) -> Sequence[int]:
        token_ids = self._batching.last_tokens.get(query.origin, [])
        held = self._cache.begin(query.origin, token_ids, len(token_ids))
        token_ids = token_ids[: held.n_cached]
        try:
            self._saved_states.save(query.path, token_ids, self._place(held, len(token_ids)))
        finally:
            self._cache.end(held, token_ids)
        return token_ids

    def _load(self, query: StateQuery) -> Sequence[int]:
        held: Held | None = None
        token_ids: list[int] = []

        def place(token_ids: Sequence[int]) -> CachePlace:
            nonlocal held
            held = self._batching.scheduler.restored(query.origin, len(token_ids))
            return self._place(held, len(token_ids))

        try:
            token_ids = self._saved_states.load(query.path, place)
        finally:
            if held is not None:
                self._cache.end(held, token_ids, is_kept=bool(token_ids))
        self._batching.remember(query.origin, token_ids)
        return token_ids

    def _place(self, held: Held, n_tokens: int) -> CachePlace:
        return CachePlace(held.blocks, held.window_blocks, self._cache.states.slot(held.chain, n_tokens))

    def _telling(self, doing: str) -> AbstractContextManager[None]:
        """Around what the devices do."""
        return telling(self.device_name, doing)
