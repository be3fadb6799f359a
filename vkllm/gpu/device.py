"""One Vulkan device through Kompute: buffers, dispatches, recordings, submits. The only `import kp`.

Kompute's errors and the layer's become vkllm's here. Knows nothing of models: `gpu/kernels.py` says what a
kernel binds, `gpu/program.py` what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vkllm.errors import DeviceError, OutOfDeviceMemory
from vkllm.gpu.kernels import KernelSpec
from vkllm.gpu.layer import Layer
from vkllm.gpu.probe import DeviceInfo, choose_device, devices
from vkllm.resources import cache_dir, shader

Words = npt.NDArray[np.uint32]

MAX_GROUPS = 65535
"""Workgroups that every Vulkan device allows in one direction."""


class Buffer:
    """Device memory of whole uint32 words. `words` is the mapped memory of a host buffer, None otherwise."""

    def __init__(self, tensor: Any, n_words: int, words: Words | None) -> None:
        self.tensor = tensor
        self.n_words = n_words
        self.words = words


@dataclass(frozen=True)
class Dispatch:
    """A kernel bound to buffers, with its constants and workgroups fixed.

    is_independent: it neither reads nor overwrites what the dispatches since the last ordered one write.
    """

    algorithm: Any
    push: Words
    is_independent: bool = False

    def with_push(self, *push: int) -> Dispatch:
        """The same dispatch with other push constants."""
        assert len(push) == len(self.push)
        return replace(self, push=np.array(push, np.uint32))


@dataclass(frozen=True)
class Recording:
    """A recorded command buffer. It must not be submitted again before its last submit is done."""

    sequence: Any


class Device:
    """An open device. wanted: index or part of the name; None takes the best one."""

    def __init__(self, wanted: str | None = None, timeout_s: float = 120.0) -> None:
        """Raises NoDevice, or DeviceError if the layer or the driver fails. timeout_s: limit of every wait."""
        self._layer = Layer.activate()
        self.info: DeviceInfo = choose_device(devices(), wanted)
        self.timeout_s = timeout_s
        self.layer_id = -1
        self._layer.set_pipeline_cache(cache_dir() / "pipelines")
        import kp  # the layer must be in place before Kompute loads Vulkan

        self._kp = kp
        try:
            self._manager = kp.Manager(self.info.index)
        except RuntimeError as error:
            raise DeviceError(f"{self.info.name}: Kompute cannot open the device: {error}") from error
        self.layer_id = self._layer.open_device()
        self.check()
        self._layer.asynchronous(True)
        enabled = self._layer.features(self.layer_id)
        self.has_integer_dot = "integer_dot_product" in enabled and "fast_integer_dot" in self.info.features

    def buffer(self, n_words: int, *, is_host: bool = False) -> Buffer:
        """Allocates n_words (at least one); host buffers are mapped, zeroed and visible to both sides.

        Raises OutOfDeviceMemory.
        """
        n_words = max(n_words, 4)
        if 4 * n_words > self.info.max_binding_bytes:
            raise OutOfDeviceMemory(
                f"{self.info.name}: a buffer of {4 * n_words:,} bytes is larger than the device can bind "
                f"({self.info.max_binding_bytes:,} bytes); use a smaller model or a shorter context"
            )
        types = self._kp.TensorTypes
        data = np.zeros(n_words, np.uint32) if is_host else np.empty(n_words, np.uint32)
        try:
            tensor = self._manager.tensor_t(data, types.host if is_host else types.storage)
        except RuntimeError as error:
            self.check()
            raise OutOfDeviceMemory(f"{self.info.name}: no memory for {4 * n_words:,} bytes: {error}") from error
        self.check()
        return Buffer(tensor, n_words, tensor.data() if is_host else None)

    def dispatch(
        self,
        kernel: KernelSpec,
        buffers: Sequence[Buffer],
        *,
        constants: Sequence[int],
        groups: tuple[int, int] = (1, 1),
        push: Sequence[int] = (),
        weight_format: str | None = None,
        is_independent: bool = False,
    ) -> Dispatch:
        """Binds a kernel. buffers and constants stand in the order of its registry entry; groups are (x, y)."""
        assert len(buffers) == len(kernel.bindings), kernel.name
        assert len(constants) == len(kernel.constants), kernel.name
        assert len(push) == len(kernel.push), kernel.name
        if max(groups) > MAX_GROUPS:
            raise DeviceError(f"{kernel.name} would need {groups} workgroups; {MAX_GROUPS} is the limit")
        module = kernel.module(weight_format, is_soft=not self.has_integer_dot)
        push_words = np.array(push or (0,), np.uint32)  # Kompute takes no empty array
        algorithm = self._manager.algorithm(
            [buffer.tensor for buffer in buffers],
            shader(module),
            (*groups, 1),
            np.array(constants, np.uint32),
            push_words,
        )
        self.check()
        return Dispatch(algorithm, push_words, is_independent)

    def record(self, dispatches: Iterable[Dispatch]) -> Recording:
        """Records dispatches in order; each sees what those before it wrote, unless it is independent."""
        sequence = self._manager.sequence()
        for dispatch in dispatches:
            if dispatch.is_independent:
                self._layer.independent()
            sequence.record(self._kp.OpAlgoDispatch(dispatch.algorithm, dispatch.push))
        self.check()
        return Recording(sequence)

    def submit(self, recording: Recording) -> int:
        """Submits and returns at once, with the ticket to wait for. Submits run in order."""
        recording.sequence.eval()
        return self._layer.ticket(self.layer_id)

    def wait(self, ticket: int) -> None:
        """Waits for a submit and all before it; other Python threads run meanwhile. Ticket 0 is no submit.

        Raises DeviceLost, DeviceTimeout after `timeout_s`, or OutOfDeviceMemory.
        """
        if ticket:
            self._layer.wait(self.layer_id, ticket, self.timeout_s)

    def run(self, dispatches: Iterable[Dispatch]) -> None:
        """Records, submits and waits: for tests and loading."""
        recording = self.record(dispatches)
        self.wait(self.submit(recording))

    def check(self) -> None:
        """Raises what the layer has kept of calls whose results Kompute ignores."""
        if self.layer_id >= 0:
            self._layer.check(self.layer_id)

    def save_pipelines(self) -> None:
        """Writes the pipeline cache to disk, if it grew."""
        self._layer.save_pipeline_cache(self.layer_id)

    def close(self) -> None:
        """Releases the device; its buffers and recordings end with it. Safe to call twice."""
        if self._manager is not None:
            self._manager.destroy()
            self._manager = None
