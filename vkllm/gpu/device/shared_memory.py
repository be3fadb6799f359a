"""System memory that several devices use at once. Knows no device: `Device.shared_buffer` imports it into one."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

from vkllm.model.memory.exchange_memory import PAGE_BYTES


class SharedHostMemory:
    """At least n_bytes of this process's memory, filled with zeros, for several devices of this process.

    These are anonymous private pages, because AMD's driver imports no others; so processes cannot share them. A child
    made by fork does not get them: a write would otherwise move this process's pages away from those that devices use.
    n_bytes: a multiple of PAGE_BYTES, as `address` is. words: all of it, as the CPU sees it.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = -(-max(n_bytes, 1) // PAGE_BYTES) * PAGE_BYTES
        pages = mmap.mmap(-1, self.n_bytes + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_DONTFORK)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        self.address = -(-start // PAGE_BYTES) * PAGE_BYTES
        self.words: npt.NDArray[np.uint32] = np.frombuffer(
            pages, np.uint32, self.n_bytes // 4, offset=self.address - start
        )
        self.words[:] = 0  # and so every page exists
