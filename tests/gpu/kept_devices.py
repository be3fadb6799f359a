"""Devices that stay open between tests, so that kernels which several models have in common are compiled once."""

from __future__ import annotations

from vkllm.errors import VkllmError
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.probe import MemoryLimits
from vkllm.gpu.layer import Layer

N_PIPELINES = 5000
"""How many that nobody uses a device keeps."""


class KeptDevice(Device):
    """A device that is there for the next test when it is closed, unless something failed on it."""

    def __init__(self, wanted: str | None, limits: MemoryLimits, free: list[KeptDevice]) -> None:
        super().__init__(wanted, timeout_s=400.0, limits=limits)  # lavapipe compiles kernels while it is waited for
        Layer.activate().keep_pipelines(self.layer_id, N_PIPELINES)
        self.suits = wanted, limits
        self._free = free

    def close(self) -> None:
        if self in self._free:
            return
        try:
            self.check()
            is_idle = self._layer.settle(self.layer_id)
        except VkllmError:
            is_idle = False
        if is_idle:
            self._free.append(self)
        else:
            self.end()

    def end(self) -> None:
        """Closes it in earnest."""
        super().close()


class KeptDevices:
    """Takes the place of `Device` where models are opened."""

    def __init__(self) -> None:
        self._free: list[KeptDevice] = []

    def __call__(self, wanted: str | None = None) -> KeptDevice:
        """An open device that nobody uses: index or part of the name; None takes the best one."""
        limits = MemoryLimits.from_environment()
        for device in self._free:
            if device.suits == (wanted, limits):
                self._free.remove(device)
                return device
        return KeptDevice(wanted, limits, self._free)

    def end(self) -> None:
        """Closes those that nobody uses."""
        while self._free:
            self._free.pop().end()
