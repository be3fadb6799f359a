"""Every error that vkllm raises on purpose.

    VkllmError
      ModelFileError        a file is bad, truncated or not what it says
      ModelNotFound         no such model, file or download
      UnsupportedModel      a sound file that vkllm cannot run (architecture, format, shape)
      DeviceError           Vulkan, Kompute or the layer
        NoDevice            there is no Vulkan device, or not the one asked for
        OutOfDeviceMemory   an allocation failed, or a plan does not fit
        DeviceLost          the driver, the GPU or the engine process died
        DeviceTimeout       a wait ended at its time limit
      RequestError          what a caller asked for
        ContextOverflow     more tokens than the context holds
        InvalidParameter    a parameter out of its range

A message says what happened, where, and what to do, in one sentence. `assert` is for our own
mistakes; users' files, devices and requests get one of these.
"""


class VkllmError(Exception):
    """Base of all errors that vkllm raises on purpose."""


class ModelFileError(VkllmError):
    """A model file is damaged, truncated or malformed."""


class ModelNotFound(VkllmError):
    """No model of that name or path, or its download failed."""


class UnsupportedModel(VkllmError):
    """The file is sound, but vkllm cannot run what it holds."""


class DeviceError(VkllmError):
    """Vulkan, Kompute or the layer failed."""


class NoDevice(DeviceError):
    """No Vulkan device, or not the one asked for."""


class OutOfDeviceMemory(DeviceError):
    """A device allocation failed, or a model cannot fit."""


class DeviceLost(DeviceError):
    """The device or the engine process was lost; a new engine has to be started."""


class DeviceTimeout(DeviceError):
    """The device did not finish within the time limit of a wait."""


class RequestError(VkllmError):
    """The request itself cannot be served."""


class ContextOverflow(RequestError):
    """Prompt and answer need more tokens than the context holds."""


class InvalidParameter(RequestError):
    """A parameter of a request is out of its range."""
