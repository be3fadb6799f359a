"""Log-probabilities of given tokens: how likely a model finds a text that is already there.

The vocabulary projection runs over a few rows of a step at a time and only two numbers a row come to the host, so
memory does not grow with rows times vocabulary. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Recording
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import KERNELS, MAX_ROWS
from vkllm.gpu.program.program import Program

LOCAL_SIZE = 256

Doubles = npt.NDArray[np.float64]


class Scorer:
    """Scores rows of a model's last step. heads: the programs that compute logits, each of a part of the vocabulary in
    its order."""

    def __init__(self, heads: Sequence[Program]) -> None:
        """Raises OutOfDeviceMemory."""
        self._parts = [_PartScorer(head) for head in heads]

    def score(self, first: int, targets: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of targets, each after its row of the last step, from first on.

        Raises DeviceError.
        """
        assert targets
        for part in self._parts:
            part.submit(first, targets)
        found = [part.found(first, len(targets)) for part in self._parts]
        logprobs = found[0][0]
        if len(found) > 1:
            log_sums = np.array([log_sum for _, log_sum in found])
            owners = np.array([part.first_token for part in self._parts[1:]]).searchsorted(targets, "right")
            rows = np.arange(len(targets))
            logits = np.array([own + log_sum for own, log_sum in found])[owners, rows]
            logprobs = logits - np.logaddexp.reduce(log_sums)
        scores: list[float] = logprobs.tolist()
        return scores


class _PartScorer:
    """Scores rows with the logits of a part of the vocabulary."""

    def __init__(self, program: Program) -> None:
        self._program = program
        vocabulary = program.share and program.share.vocabulary
        self.first_token = vocabulary.first_token if vocabulary else 0
        self._targets, self._logprobs, self._log_sums = (program.device.buffer(MAX_ROWS, is_host=True) for _ in "123")
        self._recordings: dict[int, Recording] = {}
        self._ticket = 0

    def submit(self, first: int, targets: Sequence[int]) -> None:
        """Submits the scoring of targets; what it makes of those outside its part is not used."""
        end = first + len(targets)
        assert self._targets.words is not None
        self._targets.words[first:end] = np.maximum(np.array(targets) - self.first_token, 0)
        for first_row in range(first // HEAD_ROWS * HEAD_ROWS, end, HEAD_ROWS):
            self._ticket = self._program.device.submit(self._recording(first_row))

    def found(self, first: int, n: int) -> tuple[Doubles, Doubles]:
        """Waits, and returns the logarithms of n rows: those of the targets, and of the sums of exponentials."""
        self._program.device.wait(self._ticket)
        logprobs, log_sums = self._logprobs.words, self._log_sums.words
        assert logprobs is not None and log_sums is not None
        own, sums = (words[first : first + n].view(np.float32).astype(np.float64) for words in (logprobs, log_sums))
        return own, sums

    def _recording(self, first_row: int) -> Recording:
        if first_row not in self._recordings:
            dispatches, logits = self._program.head_of(first_row)
            score = self._program.device.dispatch(
                KERNELS["score"],
                (logits, self._targets, self._logprobs, self._log_sums),
                constants=(LOCAL_SIZE, self._program.spec.n_vocab),
                groups=(HEAD_ROWS, 1),
                push=(first_row,),
            )
            self._recordings[first_row] = self._program.device.record([*dispatches, score])
        return self._recordings[first_row]
