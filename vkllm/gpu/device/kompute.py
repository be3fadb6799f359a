"""One Vulkan device through Kompute: buffers, dispatches, recordings, submits. The only `import kp`.

Kompute's errors and the layer's become vkllm's here. Knows nothing of models: `gpu/program/kernels.py` says what a
kernel binds, `gpu/program/program.py` what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vkllm.errors import DeviceError, OutOfDeviceMemory, UnsupportedDevice
from vkllm.gpu.device.kernel import KernelSpec
from vkllm.gpu.device.probe import DeviceInfo, MemoryLimits, check_device, choose_device, devices
from vkllm.gpu.device.requirements import (
    SIZE_FEATURES,
    check_requirements,
    is_plain,
    prepared,
    without_subgroups,
)
from vkllm.gpu.device.requirements import (
    described as device_and_driver,
)
from vkllm.gpu.device.shared_memory import SharedHostMemory
from vkllm.gpu.layer import Layer
from vkllm.gpu.layer.memory import HeapUse, LayerTier, Placement
from vkllm.gpu.layer.results import OUT_OF_MEMORY, described, error_of
from vkllm.resources import cache_dir, shader

Words = npt.NDArray[np.uint32]

_left: list[object] = []
"""Managers of devices that were closed while they hung, and the memory that these share."""


class Buffer:
    """Memory of whole uint32 words. words: as the CPU sees it; None if it is "local". placement: where it lies.
    shared: the memory, if other devices have it too."""

    def __init__(self, tensor: Any, n_words: int, placement: Placement, shared: SharedHostMemory | None = None) -> None:
        self.tensor = tensor
        self.n_words = n_words
        self.placement = placement
        self.words: Words | None = None
        if shared is not None:
            self.words = shared.words
        elif placement.address:
            self.words = np.asarray(_Mapped(tensor, n_words, placement.address))


class _Mapped:
    """Mapped memory for numpy, whose arrays keep it and thereby the tensor."""

    def __init__(self, tensor: Any, n_words: int, address: int) -> None:
        self._tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(np.uint32).str,
            "shape": (n_words,),
            "data": (address, False),
        }


@dataclass(frozen=True)
class Dispatch:
    """A kernel bound to buffers, with its constants and workgroups (along x, y and z) fixed.

    is_independent: it neither reads nor overwrites what the dispatches since the last ordered one write.
    """

    kernel: KernelSpec
    weight_format: str | None
    constants: tuple[int, ...]
    groups: tuple[int, int, int]
    algorithm: Any
    push: Words
    is_independent: bool = False

    @property
    def values(self) -> dict[str, int]:
        """Constants and push constants by their names in the registry."""
        names = (*self.kernel.constants, *self.kernel.push)
        return dict(zip(names, (*self.constants, *self.push.tolist()), strict=False))

    def with_push(self, *push: int) -> Self:
        """The same dispatch with other push constants."""
        assert len(push) == len(self.push)
        return replace(self, push=np.array(push, np.uint32))


@dataclass(frozen=True)
class Recording:
    """A recorded command buffer. It may be submitted again while it runs."""

    sequence: Any


class Device:
    """An open device. wanted: index or part of the name; None takes the best one.

    limits: how much memory to use at most; None takes VKLLM_VRAM_LIMIT and VKLLM_RAM_LIMIT from the environment.
    """

    def __init__(self, wanted: str | None = None, timeout_s: float = 120.0, limits: MemoryLimits | None = None) -> None:
        """Raises NoDevice, or DeviceError if the layer or the driver fails. timeout_s: limit of every wait."""
        limits = MemoryLimits.from_environment() if limits is None else limits
        self._layer = Layer.activate()
        self.info: DeviceInfo = choose_device(devices(limits), wanted)
        check_requirements(self.info)
        self.timeout_s = timeout_s
        self.layer_id = -1
        self._layer.set_pipeline_cache(cache_dir() / "pipelines")
        self._manager: Any = None
        check_device(self.info.index)
        import kp  # the layer must be in place before Kompute loads Vulkan

        self._kp = kp
        with self._kompute("open the device"):
            self._manager = kp.Manager(self.info.index)
        self.layer_id = self._layer.open_device()
        self._layer.limit_memory(self.layer_id, limits.vram_bytes, limits.ram_bytes)
        self._layer.asynchronous(self.layer_id, True)
        self._shared: list[SharedHostMemory] = []
        self._check_identity()
        enabled = self._layer.features(self.layer_id)
        self.has_integer_dot = "integer_dot_product" in enabled and "fast_integer_dot" in self.info.features
        # lavapipe 22.3 reports it, but then treats every load from shared memory as a barrier
        self.has_memory_model = "memory_model" in enabled and self.info.type != "cpu"
        self.info = prepared(self.info if enabled >= SIZE_FEATURES else without_subgroups(self.info))

    @property
    def is_plain(self) -> bool:
        """Whether it runs the `_plain` modules, which use no subgroups."""
        return is_plain(self.info)

    def buffer(self, n_words: int, *, tier: LayerTier = "local", is_host: bool = False) -> Buffer:
        """Allocates n_words uint32 words in a tier, uninitialized. All tiers but "local" are mapped.

        is_host: a small "readback" buffer, filled with zeros. Raises OutOfDeviceMemory or DeviceError.
        """
        tier = "readback" if is_host else tier
        n_words = max(n_words, 4)
        largest = min(self.info.max_binding_bytes, self.info.max_allocation_bytes)
        if 4 * n_words > largest:
            raise OutOfDeviceMemory(
                f"{self.info.name}: a buffer of {4 * n_words:,} bytes is larger than the device can bind "
                f"({largest:,} bytes); use a smaller model or a shorter context"
            )
        self._layer.place_next(tier)
        try:
            # Kompute takes only the size of a storage tensor and reads no data, so these pages are never touched.
            size_only = np.empty(n_words, np.uint32)
            tensor = self._manager.tensor_t(size_only, self._kp.TensorTypes.storage)
        except (RuntimeError, MemoryError) as error:
            raise self._no_memory(tier, 4 * n_words, str(error)) from error
        buffer = Buffer(tensor, n_words, self._layer.placement())
        self.check()
        if is_host and buffer.words is not None:
            buffer.words[:] = 0
        return buffer

    def shared_buffer(self, memory: SharedHostMemory) -> Buffer:
        """The memory as a buffer of this device; the device keeps it until it is closed.

        Raises UnsupportedDevice if the driver cannot import memory, OutOfDeviceMemory if a limit leaves no room for it.
        """
        alignment = self._layer.import_alignment(self.layer_id)
        if not alignment:
            raise self._cannot_import("it lacks VK_EXT_external_memory_host")
        if memory.address % alignment or memory.n_bytes % alignment:
            raise self._cannot_import(f"addresses would have to be multiples of {alignment:,} bytes")
        if memory.n_bytes > (largest := min(self.info.max_binding_bytes, self.info.max_allocation_bytes)):
            raise OutOfDeviceMemory(
                f"{self.info.name}: {memory.n_bytes:,} bytes of memory that devices share are more than the device can "
                f"bind ({largest:,} bytes); use a smaller model or fewer devices"
            )
        self._shared.append(memory)
        self._layer.import_next(memory.address, memory.n_bytes)
        try:
            size_only = np.empty(memory.n_bytes // 4, np.uint32)
            tensor = self._manager.tensor_t(size_only, self._kp.TensorTypes.storage)
        except (RuntimeError, MemoryError) as error:
            call, result = self._layer.take_failure(self.layer_id) or (str(error), OUT_OF_MEMORY[1])
            if result in OUT_OF_MEMORY:
                raise error_of(call, result) from error
            raise self._cannot_import(described(call, result)) from error
        buffer = Buffer(tensor, len(size_only), self._layer.placement(), memory)
        self.check()
        return buffer

    def _cannot_import(self, reason: str) -> UnsupportedDevice:
        return UnsupportedDevice(
            f"{device_and_driver(self.info)} cannot share system memory with other devices ({reason}); "
            "update the driver, or split the model by layers (`-sm layer`)"
        )

    def _check_identity(self) -> None:
        """Closes the device and raises DeviceError if Kompute numbers devices in another order than the probe."""
        opened = self._layer.gpu_uuid(self.layer_id)
        if any(opened) and self.info.uuid and opened != self.info.uuid:
            self.close()
            raise DeviceError(
                f"Kompute opened another device than {self.info.name} (index {self.info.index}); choose it by "
                "VK_DRIVER_FILES, or turn off Vulkan layers that change the order of devices"
            )

    def memory(self) -> tuple[HeapUse, ...]:
        """The device's heaps now, in the order of `info.heaps`: sizes, budgets, what is used."""
        return self._layer.heaps(self.layer_id)

    def _no_memory(self, tier: LayerTier, n_bytes: int, said: str) -> DeviceError:
        """The error for a buffer that could not be allocated, with the room in each heap. said: Kompute's message."""
        call, result = self._layer.take_failure(self.layer_id) or (said, OUT_OF_MEMORY[1])
        if result not in OUT_OF_MEMORY:
            return error_of(call, result)
        heaps = ", ".join(
            f"heap {i}{' (device-local)' if heap.is_device_local else ''} {heap.room_bytes:,} of {heap.size_bytes:,}"
            for i, heap in enumerate(self.memory())
        )
        return OutOfDeviceMemory(
            f"{self.info.name}: no {tier} memory for a buffer of {n_bytes:,} bytes ({described(call, result)}); "
            f"bytes left: {heaps}; use a smaller model or a shorter context, or close other programs"
        )

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
        is_chained: bool = False,
    ) -> Dispatch:
        """Binds a kernel. buffers and constants: in the order of its registry entry. groups: workgroups (x, y),
        arranged by `KernelSpec.workgroups` where the device does not allow as many along x. is_chained: it waits in the
        shader for the previous dispatch (shaders/lib/chain.glsl). Raises DeviceError."""
        assert len(buffers) == len(kernel.bindings), kernel.name
        assert len(constants) == len(kernel.constants), kernel.name
        assert len(push) == len(kernel.push), kernel.name
        x_y_z = kernel.workgroups(*groups, self.info.max_groups)
        module = kernel.module(
            weight_format,
            is_soft=not self.has_integer_dot,
            is_plain=self.is_plain,
            has_memory_model=is_chained and self.has_memory_model,
        )
        if kernel.subgroup:
            assert kernel.has_plain if self.is_plain else constants[0] % self.info.subgroup_size == 0, kernel.name
        push_words = np.array(push or (0,), np.uint32)  # Kompute takes no empty array
        with self._kompute(f"make {kernel.name}"), self._subgroups_of(kernel):
            algorithm = self._manager.algorithm(
                [buffer.tensor for buffer in buffers],
                shader(module),
                x_y_z,
                np.array(constants, np.uint32),
                push_words,
            )
        return Dispatch(kernel, weight_format, tuple(constants), x_y_z, algorithm, push_words, is_independent)

    @contextmanager
    def _subgroups_of(self, kernel: KernelSpec) -> Iterator[None]:
        """Wraps the creation of a pipeline: a kernel with subgroups gets full ones of the device's known size."""
        if not kernel.subgroup or self.is_plain:
            yield
            return
        self._layer.require_subgroup_size(self.info.subgroup_size)
        try:
            yield
        finally:
            self._layer.require_subgroup_size(0)

    def record(self, dispatches: Iterable[Dispatch]) -> Recording:
        """Records dispatches in order; each sees what those before it wrote, unless it is independent."""
        with self._kompute("make a command buffer"):
            sequence = self._manager.sequence()
        with self._kompute("record"):
            for dispatch in dispatches:
                if dispatch.is_independent:
                    self._layer.independent()
                sequence.record(self._kp.OpAlgoDispatch(dispatch.algorithm, dispatch.push))
        return Recording(sequence)

    def submit(self, recording: Recording) -> int:
        """Submits and returns at once, with the ticket to wait for. Submits run in order."""
        try:
            recording.sequence.eval()
        except RuntimeError as error:
            self.check()
            raise DeviceError(f"{self.info.name}: Kompute cannot submit: {error}") from error
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
        """Raises the first failure that the layer recorded in calls whose results Kompute ignores."""
        if self.layer_id >= 0:
            self._layer.check(self.layer_id)

    @contextmanager
    def _kompute(self, doing: str) -> Iterator[None]:
        """Wraps calls of Kompute: failures in them, also those that Kompute ignores, are raised as vkllm's errors."""
        try:
            yield
        except RuntimeError as error:
            self.check()
            raise DeviceError(f"{self.info.name}: Kompute cannot {doing}: {error}") from error
        self.check()

    def save_pipelines(self) -> None:
        """Writes the pipeline cache to disk, if it grew."""
        self._layer.save_pipeline_cache(self.layer_id)

    def close(self) -> None:
        """Releases the device; its buffers and recordings end with it. Safe to call twice.

        One that does not end its submits is left as it is, with all that it may still use, until the process ends.
        """
        if self._manager is None:
            return
        if self._layer.settle(self.layer_id):
            self._manager.destroy()
        else:
            _left.append((self._manager, *self._shared))
        self._manager = None
        self._shared.clear()  # only now: drivers may not lose what they have imported
