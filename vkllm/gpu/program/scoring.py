"""Log-probabilities of given tokens: how likely a model finds a text that is already there.

The vocabulary projection runs over a few rows of a step at a time and only one number a row comes to the host, so
memory does not grow with rows times vocabulary. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vkllm.gpu.device.kompute import Recording
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import KERNELS, MAX_ROWS
from vkllm.gpu.program.program import Program

LOCAL_SIZE = 256


class Scorer:
    """Scores rows of a program's last step."""

    def __init__(self, program: Program) -> None:
        """Raises OutOfDeviceMemory."""
        self._program = program
        self._targets = program.device.buffer(MAX_ROWS, is_host=True)
        self._logprobs = program.device.buffer(MAX_ROWS, is_host=True)
        self._recordings: dict[int, Recording] = {}

    def score(self, first: int, targets: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of targets, each after its row of the last step, from first on.

        Raises DeviceError.
        """
        assert targets and self._targets.words is not None and self._logprobs.words is not None
        end, device = first + len(targets), self._program.device
        self._targets.words[first:end] = targets
        for first_row in range(first // HEAD_ROWS * HEAD_ROWS, end, HEAD_ROWS):
            ticket = device.submit(self._recording(first_row))
        device.wait(ticket)
        logprobs: list[float] = self._logprobs.words[first:end].view(np.float32).tolist()
        return logprobs

    def _recording(self, first_row: int) -> Recording:
        if first_row not in self._recordings:
            dispatches, logits = self._program.head_of(first_row)
            score = self._program.device.dispatch(
                KERNELS["score"],
                (logits, self._targets, self._logprobs),
                constants=(LOCAL_SIZE, self._program.spec.n_vocab),
                groups=(HEAD_ROWS, 1),
                push=(first_row,),
            )
            self._recordings[first_row] = self._program.device.record([*dispatches, score])
        return self._recordings[first_row]
