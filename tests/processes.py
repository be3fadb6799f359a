"""Processes that tests look at from outside."""

from __future__ import annotations

import os


def is_running(pid: int) -> bool:
    """Whether the process exists, as a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
