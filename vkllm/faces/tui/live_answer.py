"""An answer while it is being written: from its job to the screen and, every few seconds, to the disk."""

from __future__ import annotations

import time
from dataclasses import replace

from vkllm.faces.tui.chat_store import ChatMessage, ChatStore, State
from vkllm.faces.tui.jobs import AnswerJob
from vkllm.faces.tui.message_view import MessageView

_SAVE_S = 2.0  # how much of an answer is lost if the power fails
_PAUSE_S_PER_CHARACTER = 1e-5  # drawing a long answer takes longer, and keys are to be answered in between


class LiveAnswer:
    """Ties a job to the message that it writes. The message is on disk, as one that was stopped, from the start."""

    def __init__(self, job: AnswerJob, view: MessageView, store: ChatStore) -> None:
        self.job = job
        self.view = view
        self._store = store
        self._saved_s = self._drawn_s = time.monotonic()

    @property
    def message(self) -> ChatMessage:
        """The message as far as it has come."""
        return self.view.message

    async def look(self) -> None:
        """Draws what has come. Raises VkllmError if it cannot be kept; it is drawn nevertheless."""
        content = self.message.content
        pause_s = _PAUSE_S_PER_CHARACTER * len(content)
        if time.monotonic() - self._drawn_s > pause_s and (text := self.job.take()):
            self._drawn_s = time.monotonic()
            await self.view.show(replace(self.message, content=content + text), is_live=True)
        if time.monotonic() - self._saved_s > _SAVE_S:
            self._saved_s = time.monotonic()
            self._store.write_message(self.message)

    def stop(self) -> None:
        """Ends the job and keeps what there is. Draws nothing, so it can be the last thing that a program does."""
        self.job.stop()
        content = self.message.content + self.job.take()
        self.view.message = replace(self.message, content=content, state="stopped", note=self.speed)
        self._keep()

    async def end(self, state: State) -> None:
        """Draws and keeps the answer as it is now; one without a word is deleted."""
        content = self.message.content + self.job.take()
        await self.view.show(replace(self.message, content=content, state=state, note=self.speed), is_live=False)
        self._keep()

    @property
    def speed(self) -> str:
        """Tokens a second: the engine's own figure where there is one."""
        generation = self.job.generation
        per_s = generation.stats.generate_per_s if generation is not None else self.job.generate_per_s
        return f"{per_s:.1f} tok/s" if per_s else ""

    def _keep(self) -> None:
        if self.message.content.strip():
            self._store.write_message(self.message)
        else:
            self._store.delete_branch(self.message)
