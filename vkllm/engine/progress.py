"""How far the loading of a model is, told in steps of a hundredth: whoever listens may be slow or late."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Progress:
    """Adds up bytes from any thread. tell: called with bytes done and bytes in all, at most about a hundred times."""

    def __init__(self, n_bytes: int, tell: Callable[[int, int], None] | None) -> None:
        self._n_bytes = n_bytes
        self._tell = tell
        self._done = self._told = 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Counts bytes that were loaded. More than there are count as all."""
        with self._lock:
            self._done = min(self._done + n_bytes, self._n_bytes)
            if self._tell is None or self._done == self._told:
                return
            if self._done == self._n_bytes or self._done - self._told >= self._n_bytes / 100:
                self._told = self._done
                self._tell(self._done, self._n_bytes)
