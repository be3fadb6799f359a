"""An answer while it is being written: from its job to the screen and, every few seconds, to the disk."""

from __future__ import annotations

import time
from dataclasses import replace

from vkllm.faces.chat.store import ChatMessage, ChatStore, State
from vkllm.faces.tui.cells import speed
from vkllm.faces.tui.jobs import AnswerJob
from vkllm.faces.tui.message_view import MessageView

_SAVE_S = 2.0  # how much of an answer is lost if the power fails
_REST = 2  # times as long as the last draw took until the next one: keys are to be answered in between
_LONGEST_REST_S = 1.0  # also where a draw took much longer, or nobody said that it was on the screen


class LiveAnswer:
    """Ties a job to the message that it writes. The message is on disk, as one that was stopped, from the start."""

    def __init__(self, job: AnswerJob, view: MessageView, store: ChatStore, model: str) -> None:
        """model: its name, which is kept with the answer."""
        self.job = job
        self._model = model
        self.view = view
        self._store = store
        self._saved_s = self._next_draw_s = time.monotonic()

    @property
    def message(self) -> ChatMessage:
        """The message as far as it has come."""
        return self.view.message

    def look(self) -> None:
        """Draws what has come. Raises VkllmError if it cannot be kept; it is drawn nevertheless."""
        begun_s = time.monotonic()
        if begun_s > self._next_draw_s and (text := self.job.take()):
            self._next_draw_s = begun_s + _LONGEST_REST_S
            self.view.show(replace(self.message, content=self.message.content + text), is_live=True)
            self.view.call_after_refresh(self._rest, begun_s)
        if not self.message.content:
            self.view.show_activity(self.job.activity)
        if time.monotonic() - self._saved_s > _SAVE_S:
            self._saved_s = time.monotonic()
            self._store.write_message(self.message)

    def _rest(self, begun_s: float) -> None:
        """What was drawn is on the screen."""
        now_s = time.monotonic()
        self._next_draw_s = now_s + min(_REST * (now_s - begun_s), _LONGEST_REST_S)

    def stop(self) -> None:
        """Ends the job and keeps what there is. Draws nothing, so it can be the last thing that a program does."""
        self.job.stop()
        content = self.message.content + self.job.take()
        self.view.message = replace(self.message, content=content, state="stopped", note=self._note)
        self._keep()

    def end(self, state: State) -> None:
        """Draws and keeps the answer as it is now; one without a word is deleted."""
        content = self.message.content + self.job.take()
        self.view.show(replace(self.message, content=content, state=state, note=self._note), is_live=False)
        self._keep()

    @property
    def speed(self) -> str:
        """Tokens a second: the engine's own figure where there is one."""
        ended = self.job.ended
        per_s = ended.stats.generate_per_s if ended is not None else self.job.generate_per_s
        return speed(per_s)

    @property
    def _note(self) -> str:
        return " · ".join(part for part in (self._model, self.speed) if part)

    def _keep(self) -> None:
        if self.message.content.strip():
            self._store.write_message(self.message)
        else:
            self._store.delete_branch(self.message)
