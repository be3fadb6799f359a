"""Starts the engine's process, and says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from vkllm.resources import child_environment, child_python


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
        child_python("vkllm.engine.process.worker", factory, str(theirs.fileno()), str(time.perf_counter())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(),
        **options,
    )
