"""Hidden states after the final norm: what embeddings are made of.

The norm runs over a few rows of a step at a time, as it does for logits, and its rows come to the host. Knows nothing
of requests, nor of how rows are pooled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Recording
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import KERNELS, MAX_ROWS
from vkllm.gpu.program.program import Program

LOCAL_SIZE = 64

Floats = npt.NDArray[np.float32]


class HiddenStates:
    """Reads rows of a program's last step."""

    def __init__(self, program: Program) -> None:
        """Raises OutOfDeviceMemory."""
        self._program = program
        self._host = program.device.buffer(MAX_ROWS * program.spec.d_model, is_host=True)
        self._recordings: dict[int, Recording] = {}
        self._n_read = 0

    def read(self, n_rows: int) -> None:
        """Reads the first n_rows of a step that has run, all at once: `rows` of them are then at hand, and 0 forgets
        those of an earlier step. Raises DeviceError."""
        self._n_read = 0
        if n_rows:
            self.rows(0, n_rows)
            self._n_read = n_rows

    def rows(self, first: int, end: int) -> Floats:
        """Rows first to end - 1 of the last step, (end - first, d_model); valid until the next call.

        Raises DeviceError.
        """
        assert 0 <= first < end <= MAX_ROWS and self._host.words is not None
        device = self._program.device
        if end > self._n_read:
            for first_row in range(first // HEAD_ROWS * HEAD_ROWS, end, HEAD_ROWS):
                ticket = device.submit(self._recording(first_row))
            device.wait(ticket)
        return self._host.words.view(np.float32).reshape(-1, self._program.spec.d_model)[first:end]

    def _recording(self, first_row: int) -> Recording:
        if first_row not in self._recordings:
            norm, final = self._program.final_norm_of(first_row)
            n_words = HEAD_ROWS * self._program.spec.d_model
            copy = self._program.device.dispatch(
                KERNELS["copy_words"],
                (final, self._host),
                constants=(LOCAL_SIZE,),
                groups=(-(-n_words // LOCAL_SIZE), 1),
                push=(n_words, first_row * self._program.spec.d_model, 0),
            )
            self._recordings[first_row] = self._program.device.record([norm, copy])
        return self._recordings[first_row]
