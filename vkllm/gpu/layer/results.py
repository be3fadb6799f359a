"""What a failed Vulkan call means: VkResult -> vkllm's errors. Knows no device and no library."""

from typing import Final

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout, OutOfDeviceMemory

VK_SUCCESS: Final = 0
VK_TIMEOUT: Final = 2
OUT_OF_MEMORY: Final = (-1, -2, -1000069000)
RESULT_NAMES: Final = {
    1: "VK_NOT_READY",
    2: "VK_TIMEOUT",
    -1: "VK_ERROR_OUT_OF_HOST_MEMORY",
    -2: "VK_ERROR_OUT_OF_DEVICE_MEMORY",
    -3: "VK_ERROR_INITIALIZATION_FAILED",
    -4: "VK_ERROR_DEVICE_LOST",
    -5: "VK_ERROR_MEMORY_MAP_FAILED",
    -6: "VK_ERROR_LAYER_NOT_PRESENT",
    -7: "VK_ERROR_EXTENSION_NOT_PRESENT",
    -8: "VK_ERROR_FEATURE_NOT_PRESENT",
    -9: "VK_ERROR_INCOMPATIBLE_DRIVER",
    -10: "VK_ERROR_TOO_MANY_OBJECTS",
    -13: "VK_ERROR_UNKNOWN",
    -1000069000: "VK_ERROR_OUT_OF_POOL_MEMORY",
    -1000072003: "VK_ERROR_INVALID_EXTERNAL_HANDLE",
}


def described(call: str, result: int) -> str:
    """A failed call in words: "allocate: VK_ERROR_OUT_OF_DEVICE_MEMORY"."""
    return f"{call}: {RESULT_NAMES.get(result, f'VkResult {result}')}"


def error_of(call: str, result: int) -> DeviceError:
    """The typed error of a Vulkan call that failed with a VkResult."""
    failed = described(call, result)
    if result in OUT_OF_MEMORY:
        return OutOfDeviceMemory(f"No device memory is left ({failed}); close other programs or take a smaller model.")
    if result == -4:
        return DeviceLost(f"The device was lost ({failed}); start a new engine, and see the system's log for a reason.")
    if result == VK_TIMEOUT:
        return DeviceTimeout(f"The device did not finish in time ({failed}); it hangs, or a submit is too long.")
    return DeviceError(f"A Vulkan call failed ({failed}); see the system's log for the driver's reason.")
