"""An engine without a model or a device: it says its script's tokens, one a step, and can be told to misbehave.

Its behaviour is chosen by the config's device name and by the prompt, both of which reach the child process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from vkllm.engine.events import (
    DeviceReport,
    Embedded,
    Event,
    Failed,
    Finished,
    PromptProgress,
    RunStats,
    Scores,
    StateAnswer,
    Token,
    TokenLogprob,
)
from vkllm.engine.load_times import LoadTimes
from vkllm.engine.requests import EngineConfig, Request, StateQuery, TokenTexts
from vkllm.errors import (
    ContextOverflow,
    DeviceLost,
    InvalidParameter,
    NoDevice,
    OutOfDeviceMemory,
    QueueFull,
    StateFileError,
)
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.measure.step_times import KernelTime, KernelWork, StepTimes
from vkllm.gpu.program.choices import GPU
from vkllm.gpu.tuning.cache import TokenSpeeds, tuning_key
from vkllm.gpu.tuning.search import Trial
from vkllm.gpu.tuning.space import ModelKind
from vkllm.gpu.tuning.tuner import TuningReport
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.plan import MemoryPlan, TierPlan

STEP_S = 0.002
HANG_S = 600  # longer than a test may take: who waits for the end fails
DIE = 1  # a prompt that starts with this id makes the engine kill its own process after three tokens
FAIL = 2  # ... with this one: the device is lost after three tokens
REFUSE = 3  # ... with this one: the engine refuses the request
CRASH = 4  # ... with this one: the engine has a mistake of its own
SLOW = 5  # ... with this one: a step takes 50 ms
SEED = 6  # ... with this one: every token is the request's seed, or 0 without one
HANG = 7  # ... with this one: the first step never ends, and a polite signal does not end it
TEXTS = 9  # ... with this one: every token is how many token texts the engine was told
ENDLESS = 8  # ... with this one: nothing ends the request but a cancel, and others wait until then


READ_BYTES_PER_S = 4e6
DEVICE = DeviceInfo(
    index=0,
    name="fake device",
    type="other",
    vendor_id=0,
    device_id=0,
    driver_name="fake driver",
    driver_version="1.2",
    api_version=(1, 3, 0),
    heaps=(),
    max_binding_bytes=2**27,
    max_allocation_bytes=2**27,
    max_workgroup_invocations=256,
    max_shared_bytes=2**15,
    subgroup_size=8,
    min_subgroup_size=8,
    max_subgroup_size=8,
    features=frozenset({"fp16", "int8"}),
)

TRIALS = (
    Trial("decode.size", 512, 0.008, 0.01, True),
    Trial("decode.groups", 1024, 0.0123, 0.008, False),
    Trial("decode.rows", 4, None, 0.008, False, "fake device: its logits are wrong (error 1.0e+00)"),
)


class FakeEngine:
    """Answers a prompt with the prompt's own ids from the second on, over and over; scores token n with -n / 100, and
    embeds a text as the direction of (number of tokens, last token).

    Like the real one it keeps the last prompt and says how much of it the next one repeats; its states are these ids.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None) -> None:
        print("driver noise", file=sys.stderr, flush=True)
        device = config.device or next(iter(config.options.devices or ()), None)
        match device:
            case "none" | "missing":
                raise NoDevice("no Vulkan device was found; install a driver")
            case "crash":
                raise RuntimeError("a mistake in loading")
            case "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "slow start":
                time.sleep(HANG_S)
        assert on_progress is not None
        for done in (0, 50, 100):
            on_progress(done, 100)
        self.device_name = "fake device"
        self.is_cpu_device = device == "cpu"
        tier = TierPlan(Tier.LOCAL, 2**30, 0, 0, 0, 0, 1e9)
        self.plan = MemoryPlan(config.n_ctx or 256, {}, (), Tier.LOCAL, (tier,), 0.0)
        self.moved_bytes = 0
        self.slow_paths: tuple[str, ...] = ("dot products", "matrices") if device == "wrong" else ()
        self.load_times = LoadTimes()
        self.load_times.ended("device")
        self.is_prepared = self.has_narrow_steps = True
        self._queue = config.queue
        self._texts = TokenTexts((), frozenset())
        self._requests: list[Request | StateQuery] = []
        self._n_generated = 0
        self._cancelled: set[int] = set()
        self._cached: tuple[int, ...] = ()
        self._origin = ""
        self._has_memory = device != "full"
        self._close_s = 0.5 if device == "slow close" else 0.0
        self._never_ends = device == "no end"  # of answers: only who stops them goes on
        self._is_slow = device == "slow steps"

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def prepare(self, *, is_narrow: bool = False) -> None:
        raise AssertionError("it is prepared")

    def learn(self, texts: TokenTexts) -> None:
        self._texts = texts

    def submit(self, request: Request | StateQuery) -> None:
        if isinstance(request, Request) and request.prompt_token_ids[0] == REFUSE:
            raise ContextOverflow("refused")
        if self._queue is not None and len(self._requests) > self._queue:
            raise QueueFull(f"{len(self._requests) - 1} requests wait already and the queue holds no more")
        self._requests.append(request)

    def cancel(self, request_id: int) -> None:
        self._cancelled.add(request_id)

    def step(self) -> list[Event]:
        request = self._requests[0]
        if isinstance(request, StateQuery):
            return [self._move_state(request)]
        if request.id in self._cancelled:
            return [self._finish("cancelled")]
        kind, *script = request.prompt_token_ids
        time.sleep(0.05 if kind in (SLOW, ENDLESS) or self._is_slow or self._never_ends else STEP_S)
        if kind == HANG:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(HANG_S)
        if request.score_from is not None:
            scored = request.prompt_token_ids[request.score_from :]
            return [Scores(request.id, tuple(-token_id / 100 for token_id in scored)), self._finish("length")]
        if kind == ENDLESS and request.pooling is not None:
            return []
        if request.pooling is not None:
            n, last = len(request.prompt_token_ids), request.prompt_token_ids[-1]
            vector = (n / math.hypot(n, last), last / math.hypot(n, last))
            return [Embedded(request.id, vector), self._finish("length")]
        if self._n_generated == 3:
            if kind == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == FAIL:
                return [Failed(request.id, DeviceLost("the fake device was lost"))]
            if kind == CRASH:
                raise RuntimeError("a mistake in the engine")
        token_id = script[self._n_generated % len(script)] if script else kind
        if kind == TEXTS:
            token_id = len(self._texts.token_bytes)
        if kind == SEED:
            token_id = request.params.seed or 0
        if self._never_ends and token_id in request.stop_token_ids:
            return []
        self._n_generated += 1
        top = tuple(TokenLogprob(token_id + i, -0.5 - i) for i in range(request.params.logprobs or 0))
        logprob = None if request.params.logprobs is None else -0.5
        events: list[Event] = []
        if request.tells_progress and self._n_generated == 1:
            n = len(request.prompt_token_ids)
            told = ((min(1, n), 0.0), (n, 0.25))  # its first token was cached, it says
            events += [PromptProgress(request.id, n, min(1, n), done, run_s) for done, run_s in told]
        events.append(Token(request.id, token_id, logprob, top))
        if token_id in request.stop_token_ids:
            events.append(self._finish("stop"))
        elif kind != ENDLESS and self._n_generated == request.params.max_tokens:
            events.append(self._finish("length"))
        return events

    def measure_device(self) -> DeviceReport:
        if not self._has_memory:
            raise OutOfDeviceMemory("no room to measure")
        return DeviceReport(DEVICE, READ_BYTES_PER_S)

    def measure_kernels(self, n_rows: int, n_depth: int) -> StepTimes:
        """10 ms a row for a step of one product and what chooses its token."""
        if not self._has_memory:
            raise OutOfDeviceMemory("no room to measure")
        time.sleep(60 if self._is_slow else 0)
        product = KernelWork("product", "Q4_0", "200 x 100", n_rows, 20_000, 40_000 * n_rows)
        times = (KernelTime(product, 2, 0.004 * n_rows), KernelTime(KernelWork("choice"), 0, 0.001))
        return StepTimes(n_rows, n_depth, times, 0.01 * n_rows, 1e8)

    def tune(
        self, budget_s: float, on_trial: Callable[[Trial], None], is_interrupted: Callable[[], bool]
    ) -> TuningReport:
        if self.has_work:
            raise InvalidParameter("the model is answering a request; tune when it is idle")
        for trial in TRIALS:
            on_trial(trial)
            time.sleep(0.05 if self._is_slow else 0)
        while self._is_slow:
            if is_interrupted():
                raise InvalidParameter("the tuning was interrupted by another request")
            time.sleep(0.01)
        key = tuning_key(DEVICE, ModelKind("F32", 2, 16))
        choice = replace(GPU, decode=replace(GPU.decode, size=512))
        before, after = TokenSpeeds({0: 100.0, 192: 50.0}, {64: 800.0}), TokenSpeeds({0: 125.0, 192: 55.0}, {64: 800.0})
        return TuningReport("fake device", key, GPU, choice, before, after, TRIALS, budget_s / 2, self._has_memory)

    def close(self) -> None:
        time.sleep(self._close_s)

    def _move_state(self, query: StateQuery) -> Event:
        self._requests.pop(0)
        if query.action == "save":
            query.path.write_text(json.dumps(self._cached))
        elif query.path.exists():
            self._cached = tuple(json.loads(query.path.read_text()))
        else:
            return Failed(query.id, StateFileError(f"{query.path}: no such state"))
        return StateAnswer(query.id, self._cached)

    def _finish(self, reason: str) -> Finished:
        request = self._requests.pop(0)
        n_generated, self._n_generated = self._n_generated, 0
        prompt = request.prompt_token_ids
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self._cached, prompt[:-1], strict=False))
        n_cached = len(list(same)) if request.origin == self._origin else 0
        stats = RunStats(len(prompt), n_cached, n_generated, 0.1, 0.1, 0.5)
        self._cached, self._origin = prompt, request.origin
        return Finished(request.id, reason, stats)  # type: ignore[arg-type]
