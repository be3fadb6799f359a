"""A terminal that is gone: whoever writes to it does not wait for ever, and the application is left."""

from __future__ import annotations

import asyncio
import errno
import io
import threading
from typing import Any

import pytest
from textual.drivers._writer_thread import MAX_QUEUED_WRITES, WriterThread

from vkllm.faces.tui.app import outliving_terminal


class GoneTerminal(io.StringIO):
    """What is left of a terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


class App:
    """What `outliving_terminal` needs of one."""

    def __init__(self) -> None:
        self.event_loop = asyncio.get_running_loop()
        self.has_left = asyncio.Event()

    def leave(self) -> None:
        self.has_left.set()


@pytest.mark.asyncio
async def test_more_than_the_queue_holds_can_be_written_to_a_terminal_that_is_gone() -> None:
    app: Any = App()
    with outliving_terminal(app):
        writer = WriterThread(GoneTerminal())
        writer.start()

        def write() -> None:
            for _ in range(3 * MAX_QUEUED_WRITES):
                writer.write("text")
            writer.stop()

        thread = threading.Thread(target=write, daemon=True)  # where it hangs, the test fails all the same
        thread.start()
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive() and not writer.is_alive()
        await asyncio.wait_for(app.has_left.wait(), 20)


@pytest.mark.asyncio
async def test_other_failures_of_threads_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    app: Any = App()
    with outliving_terminal(app):
        thread = threading.Thread(target=lambda: 1 // 0)
        thread.start()
        thread.join()
    assert [failure.exc_type for failure in told] == [ZeroDivisionError]
    assert threading.excepthook == told.append and not app.has_left.is_set()
