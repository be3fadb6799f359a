"""Starts the engine's process, and says how it ended.

Imports little, so that the command line can start the process first and import the rest meanwhile.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any, NamedTuple

from vkllm.resources import child_environment, child_python

ENGINE = "vkllm.engine.engine:Engine"


class Started(NamedTuple):
    """A process that waits for what it is to load, and the pipe to it."""

    connection: Any
    process: subprocess.Popen[bytes]


_ahead: list[Started] = []


def start_ahead() -> None:
    """Starts a process that the first engine of this one takes over; if none does, it ends with this one.

    So it imports its modules while this process imports its own. Where it cannot be started, the engine will say so.
    """
    try:
        _ahead.append(_start(ENGINE))
    except OSError:
        return
    atexit.register(_end_ahead)


def _end_ahead() -> None:
    while _ahead:
        connection, process = _ahead.pop()
        process.kill()
        process.wait()
        connection.close()


def started(factory: str) -> Started:
    """The process that was started ahead, or a new one. Raises OSError."""
    while factory == ENGINE and _ahead:
        found = _ahead.pop()
        if found.process.poll() is None:
            return found
        found.connection.close()
    return _start(factory)


def _start(factory: str) -> Started:
    ours, theirs = Pipe()
    try:
        return Started(ours, spawn(factory, theirs))
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()


def ending(returncode: int | None) -> str:
    """How a process ended, for a sentence about it."""
    if returncode is not None and returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended (exit code {returncode})"


def spawn(factory: str, theirs: Any) -> subprocess.Popen[bytes]:
    """Starts the worker with the pipe's end `theirs`, this process's module path and no terminal."""
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        os.set_handle_inheritable(theirs.fileno(), True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [theirs.fileno()]})
        options = {"startupinfo": startup, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        options = {"pass_fds": (theirs.fileno(),), "process_group": 0}
    return subprocess.Popen(
        child_python("vkllm.engine.process.worker", factory, str(theirs.fileno())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(),
        **options,
    )
