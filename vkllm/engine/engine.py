"""The engine: requests wait, their prompts run in chunks, their tokens come one by one.

A plain object that tests use in process and `engine/process/worker.py` runs in a child. One sequence at a time.
Where the GPU itself can choose the token (no penalties, no log-probabilities, top-k within what it keeps), the next
step is submitted before the last token is read, unless a grammar must see that first; otherwise each step's logits come
to the CPU and the sampler chooses.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from vkllm.engine.chunks import ChunkLengths, longest_submit_s
from vkllm.engine.constraint import Vocabulary
from vkllm.engine.events import DeviceReport, Event, Failed, Finished, RunStats, StateAnswer, Token
from vkllm.engine.kvcache import KVCache, shifted
from vkllm.engine.params import SamplingParams
from vkllm.engine.prompt_rows import PromptRows, wanted_rows
from vkllm.engine.requests import EngineConfig, Request, StateQuery
from vkllm.engine.running import Run, refusal
from vkllm.engine.sampler import Sampler, logprobs
from vkllm.engine.saved_state import SavedStates
from vkllm.errors import ContextOverflow, DeviceLost, DeviceTimeout, InvalidParameter, VkllmError, counted
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.measure.arithmetic import product_rate
from vkllm.gpu.measure.bandwidth import read_bandwidth
from vkllm.gpu.measure.kernel_times import step_times
from vkllm.gpu.measure.step_times import StepTimes
from vkllm.gpu.program.cached_blocks import CachePlace
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_ROWS
from vkllm.gpu.program.program import WIDTHS, Program
from vkllm.gpu.program.self_check import check_kernels
from vkllm.gpu.program.step import LIKELIEST, Part, Result
from vkllm.gpu.tuning.cache import kept_choice
from vkllm.gpu.tuning.search import Trial
from vkllm.gpu.tuning.space import model_kind
from vkllm.gpu.tuning.tuner import TuningReport, tune

IN_FLIGHT = 3
"""Decode steps that may be submitted before their input token was read."""


class Engine:
    """A loaded model and its requests."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Loads the model; on_progress is called with bytes done and bytes in all. Raises any VkllmError."""
        total = sum(info.n_bytes for info in config.tensors.values())
        done = 0

        def on_bytes(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            if on_progress is not None:
                on_progress(min(done, total), total)

        self._lengths = ChunkLengths(longest_submit_s())
        self._device = Device(config.device)
        self.device_name = self._device.info.name
        with ExitStack() as undo, self._told(f"loading {config.path.name}"):
            undo.callback(self._device.close)
            self.slow_paths = check_kernels(self._device)
            self._program = Program(
                self._device,
                config.spec,
                config.path,
                config.tensors,
                config.n_ctx,
                on_bytes,
                config.options,
                kept_choice(self._device.info, model_kind(config.spec, config.tensors)),
            )
            self.plan = self._program.plan
            self.moved_bytes = self._program.moved_bytes
            self.is_cpu_device = self._device.info.type == "cpu"
            self._prompt_rows = PromptRows(self._program)
            self._saved_states = SavedStates(config, self._program)
            self._vocabulary = Vocabulary(config.token_bytes, config.end_ids)
            self._product_rate: float | None = None
            self._n_ctx = self.plan.n_ctx
            self._cache = self._empty_cache()
            self._waiting: deque[tuple[Request | StateQuery, float]] = deque()
            self._run: Run | None = None
            self._cancelled: set[int] = set()
            self._warm_up()
            undo.pop_all()

    def _empty_cache(self) -> KVCache:
        program = self._program
        n_slots = program.plan.n_state_slots
        return KVCache(program.n_blocks, KV_BLOCK, program.window, program.ring_tokens, n_slots)

    def _warm_up(self) -> None:
        """Compiles and records what every request needs, and finds how wide a chunk may be, before the first one."""
        drawn = Result(Sampler(SamplingParams(), ()).next_draw())
        n_rows = min(WIDTHS[1], self._n_ctx - 1)
        table = self._cache.block_table(n_rows + 1)
        self._program.wait(self._program.submit([Part(0, [0] * n_rows, 0, table, results=[drawn])], is_prompt=True))
        self._program.wait(self._program.submit([Part(0, [None], n_rows, table, results=LIKELIEST)]))
        self._program.prepare()
        # wider chunks are timed by the first prompts, so that slow devices do not start later
        lengths = self._lengths
        while (width := lengths.n_rows()) not in lengths.took_s and width <= self._n_ctx:
            if lengths.n_submits(width) > 2:
                break
            self._run_chunk([0] * width, 0)
        self._device.save_pipelines()

    def submit(self, request: Request | StateQuery) -> None:
        """Queues a request. Its events come from `step`."""
        self._waiting.append((request, time.perf_counter()))

    def cancel(self, request_id: int) -> None:
        """Ends a request at the next step, with what it has; unknown ids are ignored."""
        is_open = any(request.id == request_id for request, _ in self._waiting)
        if is_open or (self._run is not None and self._run.request.id == request_id):
            self._cancelled.add(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self._run is not None or bool(self._waiting)

    def step(self) -> list[Event]:
        """Does a little work, at most one chunk or token, and returns the events of it. Raises DeviceError."""
        with self._told(self._doing):
            if self._cancelled:
                return self._drop_cancelled()
            if self._run is None:
                return self._start() if self._waiting else []
            if not self._run.request.is_answered:
                return self._read(self._run)
            try:
                return self._decode(self._run) if self._run.in_flight else self._prefill(self._run)
            except InvalidParameter as error:  # the answer cannot follow its grammar
                return [self._fail(self._run, error)]

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Around what the device does: if it is lost or hangs, the error says what it was doing."""
        self._doing = doing
        try:
            yield
        except (DeviceLost, DeviceTimeout) as error:
            raise type(error)(f"{self.device_name}, {self._doing}: {error}") from error

    def measure_device(self) -> DeviceReport:
        """Times how fast the device reads memory, a second at most. Raises DeviceError."""
        with self._told("measuring how fast it reads memory"):
            return DeviceReport(self._device.info, read_bandwidth(self._device, self.plan.tiers[0].free_bytes))

    def tune(
        self, budget_s: float, on_trial: Callable[[Trial], None], is_interrupted: Callable[[], bool]
    ) -> TuningReport:
        """Finds the best choices for the device, uses and keeps them. budget_s: about how long it may take.

        Raises InvalidParameter while a request is open and when is_interrupted; DeviceError.
        """
        if self.has_work:
            raise InvalidParameter("the model is answering a request; tune when it is idle")
        self._cache = self._empty_cache()  # its content is overwritten
        self._prompt_rows, self._product_rate = PromptRows(self._program), None
        try:
            with self._told("tuning"):
                report = tune(self._program, budget_s, on_trial=on_trial, is_interrupted=is_interrupted)
        finally:
            self._lengths.forget()
        self._warm_up()
        return report

    def measure_kernels(self, n_rows: int, n_depth: int) -> StepTimes:
        """Times the kernels of a step of n_rows with n_depth tokens cached, which takes seconds.

        Raises InvalidParameter, ContextOverflow, DeviceError.
        """
        if self.has_work:
            raise InvalidParameter("the model is answering a request; time kernels when it is idle")
        if not (0 < n_rows <= MAX_ROWS and n_depth >= 0):
            raise InvalidParameter(
                f"there is no step of {counted(n_rows, 'row')} at depth {n_depth}; take 1 to {MAX_ROWS} rows"
            )
        if n_depth + n_rows > self._n_ctx:
            raise ContextOverflow(
                f"a step of {counted(n_rows, 'row')} at depth {n_depth} is longer than the context of {self._n_ctx} "
                "tokens; load the model with a larger one"
            )
        program = self._program
        token_ids = [i % program.spec.n_vocab for i in range(n_depth)]
        self._cache.reuse([*token_ids, 0])
        while (start := len(self._cache.tokens)) < n_depth:
            chunk = token_ids[start : start + self._lengths.n_rows()]
            self._run_chunk(chunk, start)
            self._cache.tokens += chunk
        if self._product_rate is None:
            self._product_rate = product_rate(self._device, program.operations, by_matrices=program.tuning.has_matmul)
        table = self._cache.block_table(n_depth + n_rows)
        with self._told("timing kernels"):
            made = step_times(program, n_rows, n_depth, table, self._product_rate)
        if program.states:
            self._cache.reuse(())  # the timed steps have overwritten some
        return made

    def close(self) -> None:
        """Releases the device. Safe to call twice."""
        self._device.close()

    def _drop_cancelled(self) -> list[Event]:
        """Ends what was cancelled, running or waiting."""
        events: list[Event] = []
        if self._run is not None and self._run.request.id in self._cancelled:
            events.append(self._finish(self._run, "cancelled"))
        for request, _ in self._waiting:
            if request.id in self._cancelled:
                n_prompt = len(request.prompt_token_ids) if isinstance(request, Request) else 0
                events.append(Finished(request.id, "cancelled", RunStats(n_prompt, 0, 0, 0.0, 0.0, 0.0)))
        self._waiting = deque(entry for entry in self._waiting if entry[0].id not in self._cancelled)
        self._cancelled.clear()
        return events

    def _start(self) -> list[Event]:
        request, submitted_s = self._waiting.popleft()
        if isinstance(request, StateQuery):
            return [self._move_state(request)]
        prompt, is_causal = request.prompt_token_ids, self._program.spec.is_causal
        if (problem := refusal(request, self._n_ctx, is_causal=is_causal)) is not None:
            return [Failed(request.id, problem)]
        self._cache.belong_to(request.origin)
        n_cached = self._cache.reuse(prompt[: wanted_rows(request).start + 1] if is_causal else ())
        sampler = Sampler(request.params, prompt)
        self._run = Run(request, sampler, submitted_s, time.perf_counter(), n_cached, list(prompt))
        try:
            if request.grammar is not None:
                self._run.constraint = self._vocabulary.constraint(request.grammar)
        except InvalidParameter as error:
            return [self._fail(self._run, error)]
        return []

    def _prefill(self, run: Run) -> list[Event]:
        """Runs the next chunk of what is not cached; the last one also asks for the next token."""
        start = len(self._cache.tokens)
        end = self._cache.chunk_end(min(start + self._lengths.n_rows(), len(run.sequence)))
        chunk = run.sequence[start:end]
        if start + len(chunk) == len(run.sequence):
            self._submit(run, chunk, is_prompt=True)
        else:
            self._run_chunk(chunk, start)
        self._cache.tokens += chunk
        return []

    def _run_chunk(self, token_ids: Sequence[int], start: int) -> None:
        """Runs tokens of a prompt that choose none, and waits for them."""
        self._doing = f"running {counted(len(token_ids), 'token')} of a prompt from position {start} on"
        part = self._part(token_ids, start, (), is_prompt=True)
        step = self._program.submit([part], is_prompt=True, n_submits=self._lengths.n_submits(len(token_ids)))
        self._program.wait(step)
        self._lengths.measured(len(token_ids), time.perf_counter() - step.submitted_s)

    def _part(self, token_ids: Sequence[int | None], start: int, results: Sequence[Result], *, is_prompt: bool) -> Part:
        """A step of tokens behind `start` others. is_prompt: with results, it ends the prompt."""
        table, states = self._cache.block_table(start + len(token_ids)), self._cache.states
        stored = states.store(start, len(token_ids), is_prompt=is_prompt, is_end=is_prompt and bool(results))
        return Part(0, token_ids, start, table, state_slot=states.slot(start), stored=stored, results=results)

    def _read(self, run: Run) -> list[Event]:
        """Runs the next chunk of a prompt without an answer, and reports the results of its rows."""
        prompt, start = run.request.prompt_token_ids, len(self._cache.tokens)
        n_wanted = wanted_rows(run.request).stop
        end = len(prompt)
        if self._program.spec.is_causal:
            end = self._cache.chunk_end(min(start + self._lengths.n_rows(), n_wanted))
        self._run_chunk(prompt[start:end], start)
        self._cache.tokens += prompt[start:end]
        events = self._prompt_rows.events(run, start, end)
        run.last_token_s = run.first_token_s = time.perf_counter()
        return [*events, self._finish(run, "length")] if end == n_wanted else events

    def _place(self, n_tokens: int, state_slot: int | None) -> CachePlace:
        """Where the first tokens of the sequence lie."""
        blocks = self._cache.block_table(n_tokens)
        return CachePlace(blocks, self._program.blocks_in_turn(len(blocks)) if self._program.window else (), state_slot)

    def _move_state(self, query: StateQuery) -> StateAnswer | Failed:
        """Saves or restores the cache; after a failure to restore it is empty."""
        self._doing = f"{'saving' if query.action == 'save' else 'loading'} a state"
        try:
            if query.action == "save":
                tokens = self._cache.tokens if self._cache.origin == query.origin else []
                self._saved_states.save(
                    query.path, tokens, self._place(len(tokens), self._cache.states.slot(len(tokens)))
                )
                return StateAnswer(query.id, tuple(tokens))
            self._cache.reuse(())
            self._cache.belong_to(query.origin)
            tokens = self._saved_states.load(query.path, lambda tokens: self._place(len(tokens), 0))
            self._cache.restored(tokens)
        except (DeviceLost, DeviceTimeout):
            raise
        except VkllmError as error:
            return Failed(query.id, error)
        return StateAnswer(query.id, tuple(self._cache.tokens))

    def _submit(self, run: Run, token_ids: Sequence[int | None], *, is_prompt: bool = False) -> None:
        """Submits a step that continues the sequence and chooses a token."""
        start = len(self._cache.tokens) + max(len(run.in_flight) - 1, 0)
        what = f"the end of a prompt ({counted(len(token_ids), 'token')})" if is_prompt else "a token of an answer"
        self._doing = f"running {what} at position {start}"
        n_submits = self._lengths.n_submits(len(token_ids)) if is_prompt else 1
        part = self._part(token_ids, start, [run.next_result()], is_prompt=is_prompt)
        run.in_flight.append(self._program.submit([part], is_prompt=is_prompt, n_submits=n_submits))

    def _decode(self, run: Run) -> list[Event]:
        """Reads the next token."""
        params = run.request.params
        n_left = self._n_ctx - len(run.sequence)
        if params.max_tokens is not None:
            n_left = min(n_left, params.max_tokens - run.n_generated)
        while len(run.in_flight) < min(IN_FLIGHT if run.can_run_ahead else 1, n_left):
            self._submit(run, [None])
        step = run.in_flight.popleft()
        if not run.wants_logits:
            (token_id,) = self._program.tokens(step)
            if run.in_flight:
                self._cache.tokens.append(token_id)
            token = Token(run.request.id, token_id)
        else:
            logits = self._program.logits(step)
            token_id = run.sampler.choose(logits, None if run.constraint is None else run.constraint.mask())
            token = Token(run.request.id, token_id)
            if params.logprobs is not None:
                token = Token(run.request.id, token_id, *logprobs(logits, token_id, params.logprobs))

        run.last_token_s = time.perf_counter()
        run.first_token_s = run.first_token_s or run.last_token_s
        run.n_generated += 1
        run.sequence.append(token_id)
        is_eos = token_id in run.request.stop_token_ids and not params.ignore_eos
        if run.constraint is not None:
            run.constraint.accept(token_id)
            is_eos |= run.constraint.is_complete
        if is_eos or token_id in params.stop_token_ids:
            return [token, self._finish(run, "stop")]
        if run.n_generated == params.max_tokens or (n_left == 1 and not params.context_shift):
            return [token, self._finish(run, "length")]
        if n_left == 1:
            self._shift(run)
        elif not run.can_run_ahead:
            self._submit(run, [token_id])
            self._cache.tokens.append(token_id)
        return [token]

    def _shift(self, run: Run) -> None:
        """Makes room in a full context. What is left has new positions, so its keys must be computed again: it runs as
        a prompt does."""
        run.sequence = shifted(run.sequence, run.request.n_keep)
        self._cache.reuse(run.sequence)
        run.n_shifts += 1

    def _fail(self, run: Run, error: InvalidParameter) -> Failed:
        self._run = None
        return Failed(run.request.id, error)

    def _finish(self, run: Run, reason: Literal["stop", "length", "cancelled"]) -> Finished:
        self._run = None
        self._device.save_pipelines()  # a killed process would save nothing
        return Finished(run.request.id, reason, run.stats())
