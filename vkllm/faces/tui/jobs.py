"""Work that takes long, in threads: a model is loaded, a question is answered.

A job knows the public API and nothing of widgets. The screen looks at it a few times a second, so however fast pieces
come, it is drawn no more often than that, and no thread ever waits for the screen. The threads are daemons: what hangs
in one does not keep the program from ending.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vkllm import LLM, Generation, Stream, VkllmError
from vkllm.api.llm import Message
from vkllm.errors import counted
from vkllm.faces.remote import Ended, RemoteAnswer
from vkllm.faces.remote_model import RemoteModel
from vkllm.faces.thoughts import KeptText
from vkllm.faces.tui.cells import speed
from vkllm.store import FoundModel

_PATIENCE_S = 2.0  # with a load that was cancelled

Model = LLM | RemoteModel
"""What a chat talks to."""

OpenModel = Callable[..., Model]
"""Opens a model as `LLM` does: (model, n_ctx=, device=, on_progress=)."""

CheckModel = Callable[[str | FoundModel, int | None, Model, Callable[[str, int, int], None]], FoundModel]
"""Raises VkllmError for what can be known to be wrong before a model is opened, and returns what is to be opened:
(model, n_ctx, the model that is open, on_progress)."""


class OpenedModel(NamedTuple):
    """A model that is open. model, n_ctx: what it was opened with."""

    model: str
    n_ctx: int | None
    llm: Model


class Progress(NamedTuple):
    """What is being done, and bytes of it; n_total is 0 as long as it is not known."""

    what: str
    n_done: int
    n_total: int


class _Abandoned(BaseException):
    """Ends a load from within its progress callback. No Exception: downloads turn those into errors of their own."""


class LoadJob:
    """Checks a model, closes the one that was open, then loads the new one.

    Once `is_over`, `llm` is the model that is open now: the new one, or the one before with `kept`, if `error` came up
    before that was closed or it could be opened again; None if there is none, also after a load that was cancelled.
    """

    def __init__(
        self,
        open_model: OpenModel,
        model: str,
        found: FoundModel | None = None,
        *,
        n_ctx: int | None,
        device: str | None,
        previous: OpenedModel | None,
        check: CheckModel | None = None,
    ) -> None:
        self.model = model
        self.progress = Progress(f"opening {model}", 0, 0)
        self.llm: Model | None = None
        self.error: VkllmError | None = None
        self.is_over = False
        self.kept: OpenedModel | None = None
        self._found = found
        self._check = check
        self._is_previous_open = previous is not None
        self._is_cancelled = False
        self._cancelled_s = 0.0
        self._open_model = open_model
        self._n_ctx = n_ctx
        self._device = device
        self._previous = previous
        self._thread = threading.Thread(target=self._run, name="vkllm-load", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Gives the load up at its next progress; the new model, should it be there already, is closed."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._cancelled_s = time.monotonic()

    @property
    def is_stuck(self) -> bool:
        """Whether it was cancelled a while ago and still waits, mostly for a network; nobody need wait with it."""
        return self._is_cancelled and time.monotonic() - self._cancelled_s > _PATIENCE_S

    def leave(self) -> None:
        """After a load that is stuck: the model before it is kept if it is open."""
        if not self.is_over and self._previous is not None and self._is_previous_open:
            self.llm, self.kept = self._previous.llm, self._previous

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end, but no longer than so many seconds."""
        self._thread.join(timeout_s)

    def _on_progress(self, what: str, n_done: int, n_total: int) -> None:
        if self._is_cancelled and not self.is_over:
            raise _Abandoned
        self.progress = Progress(what, n_done, n_total)

    def _run(self) -> None:
        try:
            model = self._found or self.model
            if self._previous is not None:
                if self._check is not None:
                    model = self._check(model, self._n_ctx, self._previous.llm, self._on_progress)
                self._on_progress(f"opening {self.model}", 0, 0)
                self._is_previous_open = False
                self._previous.llm.close()
            llm = self._open(model, self._n_ctx)
            if self._is_cancelled:
                llm.close()
            else:
                _leave_to_rest()
                self.llm = llm
        except _Abandoned:
            pass
        except Exception as error:  # a screen that waits for ever would hide the mistake
            self.error = _as_vkllm_error(error)
            if self._previous is not None and not self._is_previous_open:
                self._open_again(self._previous)
        finally:
            self.leave()
            self.is_over = True

    def _open(self, model: str | FoundModel, n_ctx: int | None) -> Model:
        return self._open_model(model, n_ctx=n_ctx, device=self._device, on_progress=self._on_progress)

    def _open_again(self, previous: OpenedModel) -> None:
        """Opens the model that was closed for one that could not be loaded; what that one lacked has been told."""
        with contextlib.suppress(_Abandoned, Exception):
            llm = self._open(previous.model, previous.n_ctx)
            self.llm, self.kept = llm, previous._replace(llm=llm)


class AnswerJob:
    """Answers a conversation. messages and sampling: as for `LLM.chat`.

    `take()` is what came since the last call. Once `is_over`: `ended`, or `error`, or neither if it was stopped
    before it began. n_prompt: of all messages, also of those that a context shift leaves out.
    """

    def __init__(self, llm: Model, messages: Sequence[Message], sampling: dict[str, Any]) -> None:
        self.n_prompt = 0
        self.n_generated = 0
        self.begun_s = time.monotonic()
        self.first_s: float | None = None
        self.ended: Generation | Ended | None = None
        self.error: VkllmError | None = None
        self.is_over = False
        self._llm = llm
        self._messages = messages
        self._sampling = sampling
        self._lock = threading.Lock()  # guards the next three
        self._pieces: list[str] = []
        self._stream: Stream | RemoteAnswer | None = None
        self._is_stopped = False
        threading.Thread(target=self._run, name="vkllm-answer", daemon=True).start()

    def take(self) -> str:
        """The text that came since the last call."""
        with self._lock:
            pieces, self._pieces = self._pieces, []
        return "".join(pieces)

    def stop(self) -> None:
        """Cancels the request; returns at once."""
        with self._lock:
            self._is_stopped = True
            if self._stream is not None:
                self._stream.close()

    @property
    def activity(self) -> str:
        """What it does, until the first token, then how fast."""
        if self.first_s is None:
            tokens = f" {counted(self.n_prompt, 'token')}" if self.n_prompt else ""
            return f"reading{tokens}, {time.monotonic() - self.begun_s:.0f} s"
        return speed(self.generate_per_s) or "writing"

    @property
    def generate_per_s(self) -> float:
        """Tokens a second since the first one, as seen from here."""
        seconds = 0.0 if self.first_s is None else time.monotonic() - self.first_s
        return (self.n_generated - 1) / seconds if seconds > 0 and self.n_generated > 1 else 0.0

    def _run(self) -> None:
        try:
            self.n_prompt = self._llm.count_tokens(self._messages)
            if not self._is_stopped:
                self._answer()
        except Exception as error:  # a screen that waits for ever would hide the mistake
            self.error = _as_vkllm_error(error)
        finally:
            self.is_over = True

    def _answer(self) -> None:
        with contextlib.closing(self._llm.chat(self._messages, stream=True, **self._sampling)) as stream:
            with self._lock:
                self._stream = stream
                if self._is_stopped:
                    stream.close()
            text = KeptText()
            for piece in stream:
                with self._lock:
                    self._pieces.append(text.add(piece.reasoning, piece))
                self.n_generated += len(piece.token_ids) or 1  # a server does not say how many
                if self.first_s is None:
                    self.first_s = time.monotonic()
            self.ended = stream.result()


def _leave_to_rest() -> None:
    """Has the garbage collector look at all there is now, and not again while keys are pressed.

    That takes a tenth of a second, for a vocabulary above all. The last model's is looked at too, and goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _as_vkllm_error(error: Exception) -> VkllmError:
    if isinstance(error, VkllmError):
        return error
    return VkllmError(f"vkllm made a mistake ({type(error).__name__}: {error}); please report it")
