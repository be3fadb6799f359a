"""What Vulkan devices there are, and what each can do: heaps, budgets, limits, features.

Knows the `vulkan` package (the only file that imports it), whose errors become NoDevice or DeviceError here. Makes an
instance of its own for each look and releases it; allocates nothing on any device, and knows nothing of Kompute
but that it numbers devices in the same order. What a device reports here is what it could do; what is enabled on an
open device is `Layer.features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from vkllm.errors import DeviceError, NoDevice

ADVICE: Final = "install your GPU's driver (`apt install mesa-vulkan-drivers`, or the vendor's own)"
DeviceType = Literal["discrete", "integrated", "virtual", "cpu", "other"]
TYPES: Final[dict[int, DeviceType]] = {1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}
PREFERENCE: Final[tuple[DeviceType, ...]] = ("discrete", "integrated", "virtual", "cpu", "other")

# A structure that a device may know: name, first Vulkan version that has it in its core, extension that brings it.
Structure = tuple[str, tuple[int, int], str]
_NEVER_CORE: Final = (9, 9)
_FEATURE_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDevice16BitStorageFeatures", (1, 1), ""),
    ("VkPhysicalDevice8BitStorageFeatures", (1, 2), "VK_KHR_8bit_storage"),
    ("VkPhysicalDeviceShaderFloat16Int8Features", (1, 2), "VK_KHR_shader_float16_int8"),
    ("VkPhysicalDeviceShaderIntegerDotProductFeatures", (1, 3), "VK_KHR_shader_integer_dot_product"),
    ("VkPhysicalDeviceSubgroupSizeControlFeatures", (1, 3), "VK_EXT_subgroup_size_control"),
    ("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", _NEVER_CORE, "VK_KHR_cooperative_matrix"),
)
_FEATURE_FLAGS: Final = {
    "fp16": ("VkPhysicalDeviceShaderFloat16Int8Features", "shaderFloat16"),
    "int8": ("VkPhysicalDeviceShaderFloat16Int8Features", "shaderInt8"),
    "storage8": ("VkPhysicalDevice8BitStorageFeatures", "storageBuffer8BitAccess"),
    "storage16": ("VkPhysicalDevice16BitStorageFeatures", "storageBuffer16BitAccess"),
    "integer_dot_product": ("VkPhysicalDeviceShaderIntegerDotProductFeatures", "shaderIntegerDotProduct"),
    "cooperative_matrix": ("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", "cooperativeMatrix"),
    "subgroup_size_control": ("VkPhysicalDeviceSubgroupSizeControlFeatures", "subgroupSizeControl"),
}
_FEATURE_EXTENSIONS: Final = {
    "memory_budget": "VK_EXT_memory_budget",
    "external_memory_host": "VK_EXT_external_memory_host",
}
_PROPERTY_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDeviceSubgroupProperties", (1, 1), ""),
    ("VkPhysicalDeviceMaintenance3Properties", (1, 1), ""),
    ("VkPhysicalDeviceDriverProperties", (1, 2), "VK_KHR_driver_properties"),
    ("VkPhysicalDeviceSubgroupSizeControlProperties", (1, 3), "VK_EXT_subgroup_size_control"),
    ("VkPhysicalDeviceShaderIntegerDotProductProperties", (1, 3), "VK_KHR_shader_integer_dot_product"),
)
_MEMORY_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDeviceMemoryBudgetPropertiesEXT", _NEVER_CORE, "VK_EXT_memory_budget"),
)


@dataclass(frozen=True)
class Heap:
    """One memory heap. budget_bytes: what this process can hold before things fail or slow down, its own allocations
    included; it changes from moment to moment, and is None where the driver does not tell."""

    size_bytes: int
    budget_bytes: int | None
    is_device_local: bool


@dataclass(frozen=True)
class DeviceInfo:
    """One Vulkan device. index: its place in Kompute's order. max_binding_bytes: largest storage buffer binding."""

    index: int
    name: str
    type: DeviceType
    vendor_id: int
    device_id: int
    driver_name: str
    driver_version: str
    api_version: tuple[int, int, int]
    heaps: tuple[Heap, ...]
    max_binding_bytes: int
    max_allocation_bytes: int
    max_workgroup_invocations: int
    max_shared_bytes: int
    subgroup_size: int
    min_subgroup_size: int
    max_subgroup_size: int
    features: frozenset[str]


def devices() -> list[DeviceInfo]:
    """All Vulkan devices, in the order in which Kompute numbers them.

    Raises NoDevice if there is no Vulkan loader, driver or device, DeviceError if a driver fails.
    """
    try:
        import vulkan as vk
    except (ImportError, OSError) as error:
        raise NoDevice(f"There is no Vulkan loader ({error}); {ADVICE}.") from error
    application = vk.VkApplicationInfo(pApplicationName="vkllm", apiVersion=_version_number(1, 3))
    try:
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    except (vk.VkErrorIncompatibleDriver, vk.VkErrorInitializationFailed) as error:
        raise NoDevice(f"The Vulkan loader found no usable driver; {ADVICE}.") from error
    except vk.VkError as error:
        raise DeviceError(
            f"Vulkan cannot start ({type(error).__name__}); `vulkaninfo --summary` may say why."
        ) from error
    try:
        found = [_device(vk, index, gpu) for index, gpu in enumerate(vk.vkEnumeratePhysicalDevices(instance))]
    except vk.VkErrorInitializationFailed:
        found = []  # what some loaders say for no device
    except vk.VkError as error:
        raise DeviceError(f"A driver failed ({type(error).__name__}); `vulkaninfo --summary` may say why.") from error
    finally:
        vk.vkDestroyInstance(instance, None)
    if not found:
        raise NoDevice(f"There is no Vulkan device; {ADVICE}.")
    return found


def choose_device(devices: Iterable[DeviceInfo], wanted: str | None) -> DeviceInfo:
    """The device to use: by index or part of the name (case does not count), or the most able type if wanted is None.

    Among equals the first one wins. Raises NoDevice if none is as wanted, naming those there are.
    """
    known = list(devices)
    if not known:
        raise NoDevice(f"There is no Vulkan device; {ADVICE}.")
    if wanted is None:
        return min(known, key=lambda device: PREFERENCE.index(device.type))
    if wanted.isdecimal():
        matches = [device for device in known if device.index == int(wanted)]
    else:
        matches = [device for device in known if wanted.casefold() in device.name.casefold()]
    if not matches:
        names = ", ".join(f"{device.index}: {device.name}" for device in known)
        raise NoDevice(f"No Vulkan device is called {wanted!r}; there are {names}.")
    return matches[0]


def _version_number(major: int, minor: int) -> int:
    return major << 22 | minor << 12


def _device(vk: Any, index: int, gpu: Any) -> DeviceInfo:
    plain = vk.vkGetPhysicalDeviceProperties(gpu)
    version = (plain.apiVersion >> 22 & 0x7F, plain.apiVersion >> 12 & 0x3FF, plain.apiVersion & 0xFFF)
    extensions = frozenset(extension.extensionName for extension in vk.vkEnumerateDeviceExtensionProperties(gpu, None))

    def ask(base: str, function: Callable[[Any, Any], Any], structures: Iterable[Structure]) -> dict[str, Any]:
        """Has a function fill a base structure and those chained to it that the device knows; returns them by name."""
        chain = {base: vk.ffi.new(f"{base}*")}
        for name, core_since, extension in structures:
            if version[:2] >= core_since or extension in extensions:
                chain[name] = vk.ffi.new(f"{name}*")
        following: Any = vk.ffi.NULL
        for name, structure in reversed(chain.items()):
            structure.sType = _structure_type(vk, name)
            structure.pNext = following
            following = structure
        function(gpu, chain[base])
        return chain

    properties = ask("VkPhysicalDeviceProperties2", vk.vkGetPhysicalDeviceProperties2, _PROPERTY_STRUCTURES)
    flags = ask("VkPhysicalDeviceFeatures2", vk.vkGetPhysicalDeviceFeatures2, _FEATURE_STRUCTURES)
    memory = ask("VkPhysicalDeviceMemoryProperties2", vk.vkGetPhysicalDeviceMemoryProperties2, _MEMORY_STRUCTURES)

    limits = plain.limits
    subgroup = properties["VkPhysicalDeviceSubgroupProperties"].subgroupSize if version >= (1, 1) else 0
    sizes = properties.get("VkPhysicalDeviceSubgroupSizeControlProperties")
    maintenance = properties.get("VkPhysicalDeviceMaintenance3Properties")
    driver = properties.get("VkPhysicalDeviceDriverProperties")
    dot = properties.get("VkPhysicalDeviceShaderIntegerDotProductProperties")
    features = {
        name
        for name, (structure, flag) in _FEATURE_FLAGS.items()
        if structure in flags and getattr(flags[structure], flag)
    }
    features |= {name for name, extension in _FEATURE_EXTENSIONS.items() if extension in extensions}
    if dot and dot.integerDotProduct4x8BitPackedSignedAccelerated:
        features.add("fast_integer_dot")  # others write it out in slow 32-bit multiplications
    return DeviceInfo(
        index=index,
        name=plain.deviceName,
        type=TYPES.get(plain.deviceType, "other"),
        vendor_id=plain.vendorID,
        device_id=plain.deviceID,
        driver_name=_text(vk, driver.driverName) if driver else "unknown",
        driver_version=(driver and _text(vk, driver.driverInfo)) or f"{plain.driverVersion:#x}",
        api_version=version,
        heaps=_heaps(vk, memory),
        max_binding_bytes=limits.maxStorageBufferRange,
        max_allocation_bytes=maintenance.maxMemoryAllocationSize if maintenance else limits.maxStorageBufferRange,
        max_workgroup_invocations=limits.maxComputeWorkGroupInvocations,
        max_shared_bytes=limits.maxComputeSharedMemorySize,
        subgroup_size=subgroup,
        min_subgroup_size=sizes.minSubgroupSize if sizes else subgroup,
        max_subgroup_size=sizes.maxSubgroupSize if sizes else subgroup,
        features=frozenset(features),
    )


def _heaps(vk: Any, memory: dict[str, Any]) -> tuple[Heap, ...]:
    heaps = memory["VkPhysicalDeviceMemoryProperties2"].memoryProperties
    budgets = memory.get("VkPhysicalDeviceMemoryBudgetPropertiesEXT")
    return tuple(
        Heap(
            size_bytes=heaps.memoryHeaps[i].size,
            budget_bytes=budgets.heapBudget[i] if budgets else None,
            is_device_local=bool(heaps.memoryHeaps[i].flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT),
        )
        for i in range(heaps.memoryHeapCount)
    )


def _structure_type(vk: Any, name: str) -> int:
    """The sType of a structure, which the package gives as the default of the structure's maker."""
    structure_type: int = getattr(vk, name)().sType
    return structure_type


def _text(vk: Any, characters: Any) -> str:
    text: bytes = vk.ffi.string(characters)
    return text.decode("utf-8", "replace")
