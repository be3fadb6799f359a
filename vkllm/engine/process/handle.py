"""The caller's side of the engine's process: starts it, passes requests to it, distributes its events, ends it.

It knows processes, pipes and threads, not models, devices or text. If the process dies, each of its open requests
fails with a typed error, and the next request starts a new one. The pipe carries pickles: the process isolates crashes
of drivers, and is no security boundary.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self

from vkllm.engine.events import Answer, EngineStats, Event, Failed, Finished
from vkllm.engine.process.child import ENGINE, ending, started
from vkllm.engine.process.messages import Cancel, EngineFailed, Load, LoadProgress, Ready, Stop
from vkllm.engine.requests import EngineConfig, Query, Request, TokenTexts
from vkllm.errors import DeviceLost, RequestError, VkllmError, counted

_STOP_S = 5.0  # for a step to end and the device to be given back
_KILL_S = 2.0  # for the operating system to end a process that was told to
_OUTPUT_BYTES = 8192
_OUTPUT_LINES_IN_MESSAGE = 4

OnBytes = Callable[[int, int], None]
OnEvent = Callable[[Event], object]


class EngineProcess:
    """One engine in a process of its own. Safe to use from several threads.

    on_progress(bytes done, bytes total) is called in the thread that starts the process.
    factory: "module:callable" of the engine; tests put theirs here.
    """

    def __init__(self, config: EngineConfig, on_progress: OnBytes | None = None, *, factory: str = ENGINE) -> None:
        self._config = config
        self._on_progress = on_progress
        self._factory = factory
        self._tally = _Tally()
        self._start_lock = threading.Lock()
        self._child: _Child | None = None
        self._texts: TokenTexts | None = None
        self._ready: Ready | None = None
        self._stop_child: Callable[[], object] = lambda: None
        self._is_closed = False
        self._owner_pid = os.getpid()

    def begin(self) -> None:
        """Starts the process unless it runs, and returns while it loads the model: `start` waits for that, and says
        what has become of it. Raises DeviceLost if there can be no process."""
        with self._start_lock:
            self._begun_child()

    def learn(self, texts: TokenTexts) -> None:
        """Tells the engine the texts of the model's tokens: this process's, and those that follow it."""
        with self._start_lock:
            self._texts = texts
            if self._child is not None:
                self._child.outbox.put(texts)

    def start(self) -> None:
        """Starts the process unless it runs, and waits until the model is loaded.

        Raises what loading raised (ModelFileError, NoDevice, OutOfDeviceMemory...), or DeviceLost if the process died.
        """
        self._running_child()

    @property
    def is_alive(self) -> bool:
        """Whether its process takes requests; if not, the next request starts another."""
        return self._child is not None and self._child.is_alive

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def __reduce__(self) -> NoReturn:
        raise not_copied("an engine's process")

    def check_owner(self) -> None:
        """Raises RequestError in a fork of the process that made this: no thread there would ever deliver an event."""
        if (pid := os.getpid()) != self._owner_pid:
            raise RequestError(
                f"the model was opened in process {self._owner_pid} and this is its fork {pid}, which cannot use it; "
                "open the model in each process that uses it"
            )

    @property
    def ready(self) -> Ready:
        """What the last successful start reported: the device, the memory plan. There must have been one."""
        assert self._ready is not None
        return self._ready

    @property
    def pid(self) -> int | None:
        """The process's id, or None before the first start."""
        return self._child.pid if self._child else None

    @property
    def stats(self) -> EngineStats:
        """Sums over the requests that ended until now, in all processes."""
        return self._tally.stats

    def submit(self, request: Request | Query) -> SimpleQueue[Event]:
        """The queue that gets the request's events; the last one is `Finished`, an `Answer` or `Failed`.

        Starts a new process if the last one died, and raises what `start` raises.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        self.send(request, events.put)
        return events

    def send(self, request: Request | Query, on_event: OnEvent) -> None:
        """Like `submit`, but calls on_event with each event, in a thread of its own: it must not block or raise."""
        while not self._running_child().send(request, on_event):
            pass  # it died between the two calls

    def wait(self, events: SimpleQueue[Event]) -> Event:
        """The next event of a queue that `submit` returned. Raises RequestError in a forked process."""
        self.check_owner()
        return events.get()

    def cancel(self, request_id: int) -> None:
        """Asks the engine to end a request; its queue still gets `Finished` last. Unknown ids are ignored."""
        if self._child is not None:
            self._child.outbox.put(Cancel(request_id))

    def close(self) -> None:
        """Asks the process to end, and forces it after some seconds; about ten at most. Open requests fail."""
        self._is_closed = True
        self._stop_child()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _running_child(self) -> _Child:
        self.check_owner()  # before the lock, which another thread may have held when this process was forked
        with self._start_lock:
            child = self._begun_child()
            if child is not None and child.ready is None and not self._is_closed:
                child.load(self._on_progress)
                self._ready = child.ready
            if child is None or self._is_closed:  # close() may have come in between, and it waits for no lock
                self.close()
                raise DeviceLost("the engine was closed; open the model again")
            return child

    def _begun_child(self) -> _Child | None:
        """The process, a new one if there is none or if it has died since it was loaded; None after close()."""
        if self._is_closed or (self._child is not None and not self._child.has_ended):
            return self._child
        if self._child is not None:
            self._child.join()  # its device memory must be free before the next one plans
        child = self._child = _Child(self._config, self._factory, self._tally)
        # Scripts that forget close() still end the process, when this object goes or Python exits.
        self._stop_child = weakref.finalize(self, child.stop)
        if self._texts is not None:
            child.outbox.put(self._texts)
        return child


def not_copied(what: str) -> RequestError:
    """The error for an object that cannot be pickled, as for another process."""
    return RequestError(
        f"{what} cannot be pickled or copied, because its engine belongs to this process; "
        "open the model in each process that uses it"
    )


class _Tally:
    """Counts what requests did. It is read and replaced whole, so that only writers need the lock."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self._lock = threading.Lock()

    def add(self, finished: Finished) -> None:
        with self._lock:
            self.stats = self.stats.plus(finished.stats)


class _Child:
    """One life of the process. Three daemon threads serve it: events in, messages out, printed output."""

    def __init__(self, config: EngineConfig, factory: str, tally: _Tally) -> None:
        self._tally = tally
        self.ready: Ready | None = None
        # A queue whose put() never blocks and may be called anywhere, so that a garbage-collected stream can cancel.
        self.outbox: SimpleQueue[object] = SimpleQueue()
        self._owner_pid = os.getpid()
        self._work = f"loading {config.path.name}"
        self._is_stopping = False
        self._lock = threading.Lock()  # guards the next three
        self._error: VkllmError | None = None
        self._receivers: dict[int, OnEvent] = {}
        self._requests: dict[int, Request] = {}
        self._output = b""
        try:
            self._connection, self._process = started(factory)
        except OSError as error:
            raise DeviceLost(f"the engine's process could not be started: {error}") from error
        self._threads = [
            threading.Thread(target=target, name=f"vkllm-{target.__name__.strip('_')}", daemon=True)
            for target in (self._read_output, self._send_messages, self._read_events)
        ]
        self._threads[0].start()
        self._threads[1].start()
        self.outbox.put(Load(config, time.perf_counter()))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._error is None and self._process.poll() is None

    @property
    def has_ended(self) -> bool:
        """Whether it takes none any more; while it loads, `load` says so."""
        return self._error is not None or (self.ready is not None and not self.is_alive)

    def load(self, on_progress: OnBytes | None) -> None:
        """Waits until the model is loaded; ends the process and raises if that fails."""
        try:
            while True:
                match self._receive():
                    case LoadProgress(done_bytes, total_bytes):
                        if on_progress is not None:
                            on_progress(done_bytes, total_bytes)
                    case Ready() as ready:
                        self.ready = ready
                        break
                    case EngineFailed(error):
                        raise error
                    case None:
                        raise self._death()
        except VkllmError as error:  # the process is ending by itself
            self._error = error
            self.join()
            raise
        except BaseException:  # Ctrl-C, or an error in on_progress
            self._error = DeviceLost("the engine's start was interrupted; try again")
            self.stop()
            raise
        self._threads[2].start()

    def send(self, request: Request | Query, on_event: OnEvent) -> bool:
        """Hands a request over; False if the process has died."""
        with self._lock:
            if self._error is not None:
                return False
            self._receivers[request.id] = on_event
            if isinstance(request, Request):
                self._requests[request.id] = request
        self.outbox.put(request)
        return True

    def stop(self) -> None:
        """Asks the process to end and waits for it; does nothing in a forked copy of this process."""
        if os.getpid() == self._owner_pid:
            self._is_stopping = True
            # While it loads, it reads no messages and holds nothing that needs an orderly release.
            self.join(_STOP_S if self.ready else 0)

    def join(self, patience_s: float = _STOP_S) -> None:
        """Waits until a process that is ending has ended, forces it if need be, and joins its threads."""
        self.outbox.put(Stop())
        self._end_process(patience_s)
        for thread in self._threads:
            # A stop may come from the garbage collector in any thread, these included.
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_KILL_S)

    def _end_process(self, patience_s: float) -> None:
        """Waits for the process to end, and forces it if it does not."""
        for wait_s, force in ((patience_s, self._process.terminate), (_KILL_S, self._process.kill)):
            try:
                self._process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                force()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)

    def _receive(self) -> Any:
        """The process's next message, or None when there will be no more."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def _read_events(self) -> None:
        error: VkllmError | None = None
        try:
            while error is None and (message := self._receive()) is not None:
                if isinstance(message, EngineFailed):
                    error = message.error
                else:
                    for event in message:
                        self._deliver(event)
        finally:  # whatever happened, nobody must wait for ever
            self._fail_open_requests(error or self._death())
            self.outbox.put(Stop())  # ends the thread that sends
            self._end_process(_STOP_S)
            self._connection.close()

    def _fail_open_requests(self, error: VkllmError) -> None:
        with self._lock:
            self._error = error
            receivers, self._receivers = self._receivers, {}
        for request_id, on_event in receivers.items():
            on_event(Failed(request_id, error))

    def _deliver(self, event: Event) -> None:
        is_last = isinstance(event, Finished | Failed | Answer)
        if isinstance(event, Finished):
            self._tally.add(event)
        with self._lock:
            on_event = self._receivers.get(event.request_id)
            if is_last:
                self._receivers.pop(event.request_id, None)
                self._requests.pop(event.request_id, None)
        if on_event is not None:
            on_event(event)

    def _send_messages(self) -> None:
        with contextlib.suppress(OSError):  # the reading side notices a broken pipe, and reports it
            while True:
                message = self.outbox.get()
                self._connection.send(message)
                if isinstance(message, Stop):
                    return

    def _read_output(self) -> None:
        """Keeps the end of what drivers, the layer and Python print, for the message if the process dies."""
        stream = self._process.stdout
        assert stream is not None
        with stream:
            while chunk := os.read(stream.fileno(), _OUTPUT_BYTES):
                self._output = (self._output + chunk)[-_OUTPUT_BYTES:]

    def _death(self) -> DeviceLost:
        """The error for a process that ended without saying why."""
        if self._is_stopping:
            return DeviceLost("the engine was closed; open the model again")
        self._end_process(0.5)
        self._threads[0].join(0.2)
        with self._lock:
            n_prompt_tokens = [len(request.prompt_token_ids) for request in self._requests.values()]
        if self.ready:
            prompts = ", ".join(str(n) for n in n_prompt_tokens)
            answering = f"answering {counted(len(n_prompt_tokens), 'request')} (prompt tokens: {prompts})"
            self._work = f"{answering if n_prompt_tokens else 'idle'} on {self.ready.device_name}"
        message = f"the engine's process {ending(self._process.returncode)} while {self._work}"
        last_words = self._output.decode(errors="replace").strip()
        if last_words:
            lines = [line.strip() for line in last_words.splitlines() if line.strip()]
            message += f"; it last printed: {' | '.join(lines[-_OUTPUT_LINES_IN_MESSAGE:])}"
        error = DeviceLost(f"{message}; try again to start a new one")
        if last_words:
            error.add_note(last_words)
        return error
