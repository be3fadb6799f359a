"""An engine without a model or a device: it says its script's tokens, one a step, and can be told to misbehave.

Its behaviour is chosen by the config's device name and by the prompt, both of which reach the child process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from vkllm.engine.request import EngineConfig, Event, Failed, Finished, Request, RunStats, Token, TokenLogprob
from vkllm.errors import ContextOverflow, DeviceLost, NoDevice

STEP_S = 0.002
DIE = 1  # a prompt that starts with this id makes the engine kill its own process after three tokens
FAIL = 2  # ... with this one: the device is lost after three tokens
REFUSE = 3  # ... with this one: the engine refuses the request
CRASH = 4  # ... with this one: the engine has a mistake of its own
SLOW = 5  # ... with this one: a step takes 50 ms
SEED = 6  # ... with this one: every token is the request's seed, or 0 without one
HANG = 7  # ... with this one: the first step never ends, and a polite signal does not end it


class FakeEngine:
    """Answers a prompt with the prompt's own ids from the second on, over and over."""

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
        self._requests: list[Request] = []
        self._n_generated = 0
        self._cancelled: set[int] = set()
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

    def close(self) -> None:
        time.sleep(self._close_s)

    def _finish(self, reason: str) -> Finished:
        request = self._requests.pop(0)
        n_generated, self._n_generated = self._n_generated, 0
        stats = RunStats(len(request.prompt_token_ids), 0, n_generated, 0.1, 0.1, 0.5)
        return Finished(request.id, reason, stats)  # type: ignore[arg-type]
