"""What Vulkan devices there are, and what each can do: heaps, budgets, limits, features.

Knows the `vulkan` package (the only file that imports it), whose errors become NoDevice or DeviceError here. Allocates
nothing on any device, and knows nothing of Kompute but that it numbers devices in the same order. What a device reports
here is what it could do; what is enabled on an open device is `Layer.features`.

The first look makes a Vulkan instance that the process keeps: later looks only read the budgets again, and drivers stay
loaded. Without it, each instance would load and unload them, and NVIDIA's driver fails after about fifteen times.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from vkllm.errors import DeviceError, InvalidParameter, NoDevice, OutOfDeviceMemory

ADVICE: Final = "install your GPU's driver (`apt install mesa-vulkan-drivers`, or the vendor's own)"
NVIDIA, AMD = 0x10DE, 0x1002
"""Vendor ids."""

NVIDIA_DRIVER: Final = 4
"""VK_DRIVER_ID_NVIDIA_PROPRIETARY: NVIDIA's own driver. Other drivers, such as Mesa's NVK, run NVIDIA's GPUs too."""

DeviceType = Literal["discrete", "integrated", "virtual", "cpu", "other"]
TYPES: Final[dict[int, DeviceType]] = {1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}
PREFERENCE: Final[tuple[DeviceType, ...]] = ("discrete", "integrated", "virtual", "cpu", "other")

# A structure that a device may know: name, first Vulkan version with it in its core, extension that provides it.
Structure = tuple[str, tuple[int, int], str]
_NEVER_CORE: Final = (9, 9)
_FEATURE_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDeviceShaderFloat16Int8Features", (1, 2), "VK_KHR_shader_float16_int8"),
    ("VkPhysicalDeviceShaderIntegerDotProductFeatures", (1, 3), "VK_KHR_shader_integer_dot_product"),
    ("VkPhysicalDeviceSubgroupSizeControlFeatures", (1, 3), "VK_EXT_subgroup_size_control"),
    ("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", _NEVER_CORE, "VK_KHR_cooperative_matrix"),
)
_FEATURE_FLAGS: Final = {
    "fp16": ("VkPhysicalDeviceShaderFloat16Int8Features", "shaderFloat16"),
    "integer_dot_product": ("VkPhysicalDeviceShaderIntegerDotProductFeatures", "shaderIntegerDotProduct"),
    "cooperative_matrix": ("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", "cooperativeMatrix"),
    "subgroup_size_control": ("VkPhysicalDeviceSubgroupSizeControlFeatures", "subgroupSizeControl"),
    "compute_full_subgroups": ("VkPhysicalDeviceSubgroupSizeControlFeatures", "computeFullSubgroups"),
}
_FEATURE_EXTENSIONS: Final = {name: f"VK_EXT_{name}" for name in ("memory_budget", "external_memory_host")}
_PROPERTY_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDeviceIDProperties", (1, 1), ""),
    ("VkPhysicalDeviceSubgroupProperties", (1, 1), ""),
    ("VkPhysicalDeviceMaintenance3Properties", (1, 1), ""),
    ("VkPhysicalDeviceDriverProperties", (1, 2), "VK_KHR_driver_properties"),
    ("VkPhysicalDeviceSubgroupSizeControlProperties", (1, 3), "VK_EXT_subgroup_size_control"),
    ("VkPhysicalDeviceShaderIntegerDotProductProperties", (1, 3), "VK_KHR_shader_integer_dot_product"),
    ("VkPhysicalDeviceShaderSMBuiltinsPropertiesNV", _NEVER_CORE, "VK_NV_shader_sm_builtins"),
    ("VkPhysicalDeviceShaderCorePropertiesAMD", _NEVER_CORE, "VK_AMD_shader_core_properties"),
)
_MEMORY_STRUCTURES: Final[tuple[Structure, ...]] = (
    ("VkPhysicalDeviceMemoryBudgetPropertiesEXT", _NEVER_CORE, "VK_EXT_memory_budget"),
)


_OPERATIONS: Final = ("basic", "vote", "arithmetic", "ballot", "shuffle", "shuffle_relative", "clustered", "quad")
SUBGROUP_OPERATIONS: Final = frozenset(_OPERATIONS)
"""Vulkan's kinds of subgroup operations, in the order of VkSubgroupFeatureFlagBits in _OPERATIONS."""


@dataclass(frozen=True)
class Heap:
    """One memory heap. budget_bytes: what this process can hold before things fail or slow down, its own allocations
    included; it changes all the time, and is None where the driver does not report it."""

    size_bytes: int
    budget_bytes: int | None
    is_device_local: bool


NARROW_SHAPE = (16, 8, 16)
"""Rows, columns and inner size of the matrices that suit eight tokens best."""


@dataclass(frozen=True)
class DeviceInfo:
    """One Vulkan device. index: its place in Kompute's order. max_binding_bytes: largest storage buffer binding.

    driver_id: which driver it is, a VkDriverId such as NVIDIA_DRIVER; 0 where the driver does not report it.
    n_cores: compute units of an AMD GPU, streaming multiprocessors of NVIDIA's; None where the driver does not report
    them. matrix_shape: rows, columns and inner size of the float16 matrices that a subgroup multiplies at once, with
    float32 sums; None without cooperative matrices. narrow_shape: 16x8x16, for few tokens, if the device has it.
    subgroup_size: the size that kernels get if they request none; on
    an open device, the size that its kernels request. subgroup_operations: those that compute shaders may use.
    max_workgroup_subgroups: most subgroups in a workgroup of a kernel that requests their size; 0 if compute shaders
    cannot request one. max_groups: most workgroups of a dispatch along x, y and z. uuid: of the GPU; empty if unknown.
    """

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
    driver_id: int = 0
    n_cores: int | None = None
    matrix_shape: tuple[int, int, int] | None = None
    narrow_shape: tuple[int, int, int] | None = None
    subgroup_operations: frozenset[str] = SUBGROUP_OPERATIONS
    max_workgroup_subgroups: int = 64
    max_groups: tuple[int, int, int] = (65535, 65535, 65535)
    uuid: bytes = b""


@dataclass(frozen=True)
class MemoryLimits:
    """The most memory to use: vram_bytes of each device-local heap, ram_bytes of each other heap; None: no limit."""

    vram_bytes: int | None = None
    ram_bytes: int | None = None

    @classmethod
    def from_environment(cls) -> MemoryLimits:
        """VKLLM_VRAM_LIMIT and VKLLM_RAM_LIMIT, such as 16GiB. Raises InvalidParameter."""
        return cls(_limit_of("VKLLM_VRAM_LIMIT"), _limit_of("VKLLM_RAM_LIMIT"))

    def applied(self, heap: Heap) -> Heap:
        """The heap, no larger than its limit."""
        limit = self.vram_bytes if heap.is_device_local else self.ram_bytes
        if limit is None:
            return heap
        budget_bytes = None if heap.budget_bytes is None else min(heap.budget_bytes, limit)
        return replace(heap, size_bytes=min(heap.size_bytes, limit), budget_bytes=budget_bytes)


_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_bytes(text: str, name: str) -> int:
    """Bytes of a size such as 16GiB, 16GB, 16G, 1.5g or 500MiB; a G is always 2^30 bytes, as in llama.cpp's tools.

    name: of the option or variable that it was given to. Raises InvalidParameter.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if match is None:
        raise InvalidParameter(f"{name} takes a size such as 16GiB or 500MiB, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def _limit_of(variable: str) -> int | None:
    text = os.environ.get(variable, "").strip()
    return memory_bytes(text, variable) if text else None


_known_lock: Final = threading.Lock()
_known: list[tuple[_Gpu, DeviceInfo]] = []


def devices(limits: MemoryLimits | None = None) -> list[DeviceInfo]:
    """All Vulkan devices, in the order in which Kompute numbers them, with their current budgets.

    limits: how much of their memory to use at most; None takes the environment's limits. Raises NoDevice if there is no
    Vulkan loader, driver or device, DeviceError if a driver fails, InvalidParameter if the environment's limits are
    malformed.
    """
    limits = MemoryLimits.from_environment() if limits is None else limits
    return [replace(info, heaps=tuple(limits.applied(heap) for heap in gpu.heaps())) for gpu, info in _found()]


def check_device(index: int) -> None:
    """Opens a device and closes it again. Raises OutOfDeviceMemory or DeviceError if the driver refuses; inside Kompute
    the same failure would end the process."""
    gpu, info = _found()[index]
    try:
        gpu.open_and_close()
    except (gpu.vk.VkErrorOutOfDeviceMemory, gpu.vk.VkErrorOutOfHostMemory) as error:
        raise OutOfDeviceMemory(
            f"{info.name} has no memory left for another program ({type(error).__name__}); close one"
        ) from error
    except gpu.vk.VkError as error:
        raise DeviceError(
            f"{info.name} cannot be opened ({type(error).__name__}); see the system's log for the driver's reason"
        ) from error


def _found() -> list[tuple[_Gpu, DeviceInfo]]:
    with _known_lock:
        if not _known:
            _known.extend(_look())
        return _known


def _look() -> list[tuple[_Gpu, DeviceInfo]]:
    """The devices of a new instance, which is kept if there are any."""
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
    found: list[tuple[_Gpu, DeviceInfo]] = []
    try:
        gpus = [_Gpu(vk, instance, handle) for handle in vk.vkEnumeratePhysicalDevices(instance)]
        found = [(gpu, gpu.info(index)) for index, gpu in enumerate(gpus)]
    except vk.VkErrorInitializationFailed:
        pass  # what some loaders report when there is no device
    except vk.VkError as error:
        raise DeviceError(f"A driver failed ({type(error).__name__}); `vulkaninfo --summary` may say why.") from error
    finally:
        if not found:
            vk.vkDestroyInstance(instance, None)
    if not found:
        raise NoDevice(f"There is no Vulkan device; {ADVICE}.")
    return found


def choose_device(devices: Iterable[DeviceInfo], wanted: str | None) -> DeviceInfo:
    """The device to use: by index or part of the name in any case, or the most capable type if wanted is None.

    Of several that match, the first one. Raises NoDevice if none matches, with a list of all devices.
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
        names = ", ".join(f"{device.name} (index {device.index})" for device in known)
        raise NoDevice(f"No Vulkan device is called {wanted!r}; choose among {names}.")
    return matches[0]


def _version_number(major: int, minor: int) -> int:
    return major << 22 | minor << 12


class _Gpu:
    """A physical device of the instance that is kept."""

    def __init__(self, vk: Any, instance: Any, handle: Any) -> None:
        self.vk = vk
        self._instance = instance
        self._handle = handle
        self._plain = vk.vkGetPhysicalDeviceProperties(handle)
        version = self._plain.apiVersion
        self._version = (version >> 22 & 0x7F, version >> 12 & 0x3FF, version & 0xFFF)
        listed = vk.vkEnumerateDeviceExtensionProperties(handle, None)
        self._extensions = frozenset(extension.extensionName for extension in listed)

    def heaps(self) -> tuple[Heap, ...]:
        """Its heaps, with their current budgets."""
        vk = self.vk
        memory = self._ask(
            "VkPhysicalDeviceMemoryProperties2", vk.vkGetPhysicalDeviceMemoryProperties2, _MEMORY_STRUCTURES
        )
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

    def open_and_close(self) -> None:
        """Makes a device with the queue that Kompute takes, and destroys it. Raises the vulkan package's errors."""
        vk = self.vk
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(self._handle)
        family = next((i for i, f in enumerate(families) if f.queueFlags & vk.VK_QUEUE_COMPUTE_BIT), 0)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=family, queueCount=1, pQueuePriorities=[1.0])
        device = vk.vkCreateDevice(self._handle, vk.VkDeviceCreateInfo(pQueueCreateInfos=[queue]), None)
        vk.vkDestroyDevice(device, None)

    def info(self, index: int) -> DeviceInfo:
        """Everything that is known about it."""
        vk, plain, version, extensions = self.vk, self._plain, self._version, self._extensions
        properties = self._ask("VkPhysicalDeviceProperties2", vk.vkGetPhysicalDeviceProperties2, _PROPERTY_STRUCTURES)
        flags = self._ask("VkPhysicalDeviceFeatures2", vk.vkGetPhysicalDeviceFeatures2, _FEATURE_STRUCTURES)
        limits = plain.limits
        subgroups = properties.get("VkPhysicalDeviceSubgroupProperties")
        subgroup = subgroups.subgroupSize if subgroups else 0
        operations = subgroups.supportedOperations if subgroups else 0
        if subgroups and not subgroups.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT:
            operations = 0
        sizes = properties.get("VkPhysicalDeviceSubgroupSizeControlProperties")
        maintenance = properties.get("VkPhysicalDeviceMaintenance3Properties")
        driver = properties.get("VkPhysicalDeviceDriverProperties")
        identity = properties.get("VkPhysicalDeviceIDProperties")
        dot = properties.get("VkPhysicalDeviceShaderIntegerDotProductProperties")
        features = {
            name
            for name, (structure, flag) in _FEATURE_FLAGS.items()
            if structure in flags and getattr(flags[structure], flag)
        }
        features |= {name for name, extension in _FEATURE_EXTENSIONS.items() if extension in extensions}
        if dot and dot.integerDotProduct4x8BitPackedSignedAccelerated:
            features.add("fast_integer_dot")  # others emulate it with slow 32-bit multiplications
        shapes = self._matrix_shapes() if {"cooperative_matrix", "fp16"} <= features else []
        return DeviceInfo(
            index=index,
            name=plain.deviceName,
            type=TYPES.get(plain.deviceType, "other"),
            vendor_id=plain.vendorID,
            device_id=plain.deviceID,
            driver_name=_text(vk, driver.driverName) if driver else "unknown",
            driver_version=(driver and _text(vk, driver.driverInfo)) or f"{plain.driverVersion:#x}",
            api_version=version,
            heaps=self.heaps(),
            max_binding_bytes=limits.maxStorageBufferRange,
            max_allocation_bytes=maintenance.maxMemoryAllocationSize if maintenance else limits.maxStorageBufferRange,
            max_workgroup_invocations=limits.maxComputeWorkGroupInvocations,
            max_shared_bytes=limits.maxComputeSharedMemorySize,
            subgroup_size=subgroup,
            min_subgroup_size=sizes.minSubgroupSize if sizes else subgroup,
            max_subgroup_size=sizes.maxSubgroupSize if sizes else subgroup,
            features=frozenset(features),
            driver_id=driver.driverID if driver else 0,
            n_cores=_n_cores(properties),
            subgroup_operations=frozenset(name for bit, name in enumerate(_OPERATIONS) if operations >> bit & 1),
            max_workgroup_subgroups=(
                sizes.maxComputeWorkgroupSubgroups
                if sizes and sizes.requiredSubgroupSizeStages & vk.VK_SHADER_STAGE_COMPUTE_BIT
                else 0
            ),
            max_groups=tuple(limits.maxComputeWorkGroupCount),
            uuid=bytes(identity.deviceUUID) if identity else b"",
            matrix_shape=max((shape for shape in shapes if {*shape} <= {8, 16}), key=math.prod, default=None),
            narrow_shape=NARROW_SHAPE if NARROW_SHAPE in shapes else None,
        )

    def _matrix_shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of float16 matrices with float32 sums."""
        vk = self.vk
        ask = vk.vkGetInstanceProcAddr(self._instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR")
        types = ("AType", "BType", "CType", "ResultType", "scope")
        wanted = (*(vk.VK_COMPONENT_TYPE_FLOAT16_KHR,) * 2, *(vk.VK_COMPONENT_TYPE_FLOAT32_KHR,) * 2)
        return [
            (kind.MSize, kind.NSize, kind.KSize)
            for kind in ask(self._handle)
            if tuple(getattr(kind, name) for name in types) == (*wanted, vk.VK_SCOPE_SUBGROUP_KHR)
        ]

    def _ask(self, base: str, function: Callable[[Any, Any], Any], structures: Iterable[Structure]) -> dict[str, Any]:
        """Has a function fill a base structure and, chained to it, all that the device knows; returns them by name."""
        vk = self.vk
        chain = {base: vk.ffi.new(f"{base}*")}
        for name, core_since, extension in structures:
            if self._version[:2] >= core_since or extension in self._extensions:
                chain[name] = vk.ffi.new(f"{name}*")
        following: Any = vk.ffi.NULL
        for name, structure in reversed(chain.items()):
            structure.sType = _structure_type(vk, name)
            structure.pNext = following
            following = structure
        function(self._handle, chain[base])
        return chain


def _n_cores(properties: dict[str, Any]) -> int | None:
    if nvidia := properties.get("VkPhysicalDeviceShaderSMBuiltinsPropertiesNV"):
        return int(nvidia.shaderSMCount) or None
    if amd := properties.get("VkPhysicalDeviceShaderCorePropertiesAMD"):
        return int(amd.shaderEngineCount * amd.shaderArraysPerEngineCount * amd.computeUnitsPerShaderArray) or None
    return None


def _structure_type(vk: Any, name: str) -> int:
    """The sType of a structure, which the package gives as the default of the structure's maker."""
    structure_type: int = getattr(vk, name)().sType
    return structure_type


def _text(vk: Any, characters: Any) -> str:
    text: bytes = vk.ffi.string(characters)
    return text.decode("utf-8", "replace")
