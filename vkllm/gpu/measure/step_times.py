"""What is reported about a step's kernels: their work, their times. `gpu/measure/kernel_times.py` measures.

Plain numbers that pickle; knows no device.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelWork:
    """What a dispatch does, in whichever layer.

    weight_format: "" where it reads no matrix. shape: of a matrix rows x columns, with what is fused; of attention
    heads / key heads x dimensions. n_tokens: rows of the step that it takes. read_bytes: weights, keys and values that
    it must read. n_flops: multiplications and additions of products and of attention.

    >>> work = KernelWork("matvec_fused", "Q4_1", "576 x 1536", read_bytes=552_960, n_flops=1_769_472)
    >>> work.n_flops / work.read_bytes
    3.2
    """

    kernel: str
    weight_format: str = ""
    shape: str = ""
    n_tokens: int = 1
    read_bytes: int = 0
    n_flops: int = 0


@dataclass(frozen=True)
class KernelTime:
    """n_dispatches: how many a step has; 0 for kernels that run only with a temperature. dispatch_s: seconds of each.

    >>> times = llm.measure_kernels()
    >>> slowest = max(times.kernels, key=lambda time: time.n_dispatches * time.dispatch_s)
    >>> slowest.work.kernel, slowest.n_dispatches
    ('...', ...)
    """

    work: KernelWork
    n_dispatches: int
    dispatch_s: float


@dataclass(frozen=True)
class StepTimes:
    """A step of n_rows that chooses a token greedily, with n_depth tokens cached: its kernels, in their order, and the
    time of the whole step. n_rows 1 is a step of decoding, more are a prompt.

    product_flops_per_s: what this device reaches in the largest product (`gpu/measure/arithmetic.py`).

    >>> times = llm.measure_kernels()
    >>> print(f"Kernels: {times.sum_s * 1e3:.1f} ms of a step of {times.step_s * 1e3:.1f} ms")
    Kernels: ... ms of a step of ... ms
    """

    n_rows: int
    n_depth: int
    kernels: tuple[KernelTime, ...]
    step_s: float
    product_flops_per_s: float

    @property
    def sum_s(self) -> float:
        """Seconds of all dispatches of the step, each by itself."""
        return sum(time.n_dispatches * time.dispatch_s for time in self.kernels)

    @property
    def read_bytes(self) -> int:
        """Bytes that the step must read."""
        return sum(time.n_dispatches * time.work.read_bytes for time in self.kernels)

    @property
    def n_flops(self) -> int:
        """Multiplications and additions of the step's products and attention."""
        return sum(time.n_dispatches * time.work.n_flops for time in self.kernels)
