"""An engine without a model or a device: it says its script's tokens, one a step, and can be told to misbehave.

Its behaviour is chosen by the config's device name and by the prompt, both of which reach the child process.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable

from vkllm.engine.request import (
    DeviceReport,
    EngineConfig,
    Event,
    Failed,
    Finished,
    Request,
    RunStats,
    Scores,
    Token,
    TokenLogprob,
)
from vkllm.errors import ContextOverflow, DeviceLost, NoDevice, OutOfDeviceMemory
from vkllm.gpu.probe import DeviceInfo
from vkllm.model.limits import Tier
from vkllm.model.plan import MemoryPlan, TierPlan

STEP_S = 0.002
DIE = 1  # a prompt that starts with this id makes the engine kill its own process after three tokens
FAIL = 2  # ... with this one: the device is lost after three tokens
REFUSE = 3  # ... with this one: the engine refuses the request
CRASH = 4  # ... with this one: the engine has a mistake of its own
SLOW = 5  # ... with this one: a step takes 50 ms
SEED = 6  # ... with this one: every token is the request's seed, or 0 without one
HANG = 7  # ... with this one: the first step never ends, and a polite signal does not end it


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


class FakeEngine:
    """Answers a prompt with the prompt's own ids from the second on, over and over; scores token n with -n / 100.

    Like the real one it keeps the last prompt and says how much of it the next one repeats.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None) -> None:
        print("driver noise", file=sys.stderr, flush=True)
        match config.device:
            case "none":
                raise NoDevice("no Vulkan device was found; install a driver")
            case "crash":
                raise RuntimeError("a mistake in loading")
            case "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "slow start":
                time.sleep(60)
        assert on_progress is not None
        for done in (0, 50, 100):
            on_progress(done, 100)
        self.device_name = "fake device"
        self.is_cpu_device = config.device == "cpu"
        tier = TierPlan(Tier.LOCAL, 2**30, 0, 0, 0, 0, 1e9)
        self.plan = MemoryPlan(config.n_ctx or 256, {}, (), Tier.LOCAL, (tier,), 0.0)
        self.moved_bytes = 0
        self._requests: list[Request] = []
        self._n_generated = 0
        self._cancelled: set[int] = set()
        self._cached: tuple[int, ...] = ()
        self._has_memory = config.device != "full"
        self._close_s = 0.5 if config.device == "slow close" else 0.0
        self._is_slow = config.device == "slow steps"

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def submit(self, request: Request) -> None:
        if request.prompt_token_ids[0] == REFUSE:
            raise ContextOverflow("refused")
        self._requests.append(request)

    def cancel(self, request_id: int) -> None:
        self._cancelled.add(request_id)

    def step(self) -> list[Event]:
        request = self._requests[0]
        kind, *script = request.prompt_token_ids
        time.sleep(0.05 if kind == SLOW or self._is_slow else STEP_S)
        if kind == HANG:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        if request.id in self._cancelled:
            return [self._finish("cancelled")]
        if request.score_from is not None:
            scored = request.prompt_token_ids[request.score_from :]
            return [Scores(request.id, tuple(-token_id / 100 for token_id in scored)), self._finish("length")]
        if self._n_generated == 3:
            if kind == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == FAIL:
                return [Failed(request.id, DeviceLost("the fake device was lost"))]
            if kind == CRASH:
                raise RuntimeError("a mistake in the engine")
        token_id = script[self._n_generated % len(script)] if script else kind
        if kind == SEED:
            token_id = request.params.seed or 0
        self._n_generated += 1
        top = tuple(TokenLogprob(token_id + i, -0.5 - i) for i in range(request.params.logprobs or 0))
        logprob = None if request.params.logprobs is None else -0.5
        events: list[Event] = [Token(request.id, token_id, logprob, top)]
        if token_id in request.stop_token_ids:
            events.append(self._finish("stop"))
        elif self._n_generated == request.params.max_tokens:
            events.append(self._finish("length"))
        return events

    def measure_device(self) -> DeviceReport:
        if not self._has_memory:
            raise OutOfDeviceMemory("no room to measure")
        return DeviceReport(DEVICE, READ_BYTES_PER_S)

    def close(self) -> None:
        time.sleep(self._close_s)

    def _finish(self, reason: str) -> Finished:
        request = self._requests.pop(0)
        n_generated, self._n_generated = self._n_generated, 0
        prompt = request.prompt_token_ids
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self._cached, prompt[:-1], strict=False))
        stats = RunStats(len(prompt), len(list(same)), n_generated, 0.1, 0.1, 0.5)
        self._cached = prompt
        return Finished(request.id, reason, stats)  # type: ignore[arg-type]
