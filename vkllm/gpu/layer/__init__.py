"""The Vulkan layer's Python side: places the layer below Kompute, and talks to it.

Knows the layer's exported functions (ctypes on the very file that the Vulkan loader loads, so both see the same state)
and how to make the loader use it. Knows nothing of Kompute: it imports no `kp`, and has to be activated before the
first `kp.Manager`. The top of each of its C files says what the layer does.

A device is named by the number that `open_device` returns. ctypes lets other Python threads run during each call.
"""

import ctypes
import os
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from vkllm.errors import DeviceError, DeviceTimeout
from vkllm.gpu.layer.loader import SYSTEM_FOLDERS, is_found, prepend
from vkllm.gpu.layer.memory import TIERS, HeapUse, LayerTier, Placement
from vkllm.gpu.layer.results import VK_SUCCESS, VK_TIMEOUT, error_of

NAME: Final = "VK_LAYER_VKLLM_kompute"
FOLDER: Final = Path(__file__).parent
LIBRARY: Final = FOLDER / "libvkllm_layer.so"  # named for the loader by VkLayer_vkllm.json

# Kinds of fault for `inject`, in the order of Inject in layer.h.
INJECTIONS: Final = (
    "allocate",  # a buffer's memory
    "submit",
    "wait",
    "hang",
    "create_buffer",
    "create_pipeline",
    "create_device",
    "allocate_block",  # a vkAllocateMemory that holds many buffers
    "bind",
    "map",
    "create_descriptor_pool",
    "allocate_descriptor_sets",
    "create_descriptor_set_layout",
    "create_pipeline_layout",
    "create_shader_module",
    "create_command_pool",
    "allocate_command_buffers",
    "begin",
    "end",
    "create_fence",
    "import",  # host memory that several devices share
    "settle",  # a wait before something is freed; it fails at once
)
NO_LIMIT: Final = 2**64 - 1
UUID_BYTES: Final = 16  # VK_UUID_SIZE


@dataclass(frozen=True)
class Statistics:
    """Counters of one device since it was made."""

    barriers: int  # recorded before dispatches and copies
    dispatches: int
    copies: int
    submits: int
    blocked_submits: int  # had to wait for a place among 64 in flight
    pipelines_created: int
    pipelines_shared: int  # were requested and equal to an existing one
    subgroup_sizes_ignored: int  # pipelines whose required subgroup size the device cannot give
    full_subgroups: int  # pipelines asked for that have a required size and full subgroups
    cache_loaded_bytes: int  # pipeline cache read from disk when the device was made
    cache_saved_bytes: int  # pipeline cache last written to disk
    objects: int  # Vulkan objects that Kompute made and has not destroyed
    allocations: int  # blocks of device memory; each holds many buffers


class Layer:
    """The layer of this process. There is one: get it with `Layer.activate`."""

    _active: "Layer | None" = None
    _activation = threading.Lock()

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        u32, u64, i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
        for name, result, arguments in (
            ("open_device", u32, []),
            ("take_failure", i32, [u32, ctypes.c_char_p, u32]),
            ("features", u64, [u32, i32]),
            ("feature_name", ctypes.c_char_p, [u32]),
            ("statistics", u32, [u32, ctypes.POINTER(u64), u32]),
            ("gpu_uuid", i32, [u32, ctypes.c_char_p]),
            ("asynchronous", None, [u32, i32]),
            ("independent", None, []),
            ("require_subgroup_size", None, [u32]),
            ("ticket", u64, [u32]),
            ("wait", i32, [u32, u64, u64]),
            ("settle", i32, [u32]),
            ("place_next", None, [u32]),
            ("import_next", None, [ctypes.c_void_p, u64]),
            ("import_alignment", u64, [u32]),
            ("placement", None, [ctypes.POINTER(u64)]),
            ("heaps", u32, [u32, ctypes.POINTER(u64), u32]),
            ("limit_memory", None, [u32, u64, u64]),
            ("abandoned", u64, []),
            ("inject", None, [u32, u32, u32, i32]),
            ("injection_pending", u32, [u32]),
            ("keep_pipelines", None, [u32, u32]),
            ("set_pipeline_cache", None, [ctypes.c_char_p]),
            ("save_pipeline_cache", i32, [u32]),
        ):
            function = getattr(library, f"vkllm_layer_{name}")
            function.restype, function.argtypes = result, arguments
        names: list[str] = []
        while (feature := library.vkllm_layer_feature_name(len(names))) is not None:
            names.append(feature.decode())
        self.feature_names = tuple(names)

    @classmethod
    def activate(cls) -> "Layer":
        """Makes every Vulkan instance of this process from now on use the layer, and returns the layer.

        Sets VK_INSTANCE_LAYERS, which keeps the user's layers, below ours, and VK_ADD_LAYER_PATH or, for loaders that
        ignore that one, VK_LAYER_PATH. Raises DeviceError if the library is missing or the loader ignores it.
        """
        with cls._activation:
            if cls._active is None:
                cls._active = cls(_load())
                prepend("VK_ADD_LAYER_PATH", str(FOLDER))
                # A user's VK_LAYER_PATH turns VK_ADD_LAYER_PATH off, and loaders before 1.3.207 do not know it.
                if not is_found(NAME):
                    prepend("VK_LAYER_PATH", str(FOLDER), SYSTEM_FOLDERS)
                if not is_found(NAME):
                    raise DeviceError(_why_unused())
                prepend("VK_INSTANCE_LAYERS", NAME)
            return cls._active

    def open_device(self) -> int:
        """The number of the Vulkan device that this thread made last.

        Raises DeviceError if the loader bypassed the layer, or no device was made. A vkCreateDevice that fails never
        gets here: Kompute goes on with a null device and the Vulkan loader aborts the process, after the layer has
        written the reason to stderr. `probe.check_device` finds that out before.
        """
        device: int = self._library.vkllm_layer_open_device()
        if device == 0:
            raise DeviceError(_why_unused())
        return device

    def gpu_uuid(self, device: int) -> bytes:
        """The deviceUUID of the GPU that a device was made for; zeros if its driver tells none. DeviceError if there is
        no such device."""
        uuid = ctypes.create_string_buffer(UUID_BYTES)
        if not self._library.vkllm_layer_gpu_uuid(device, uuid):
            raise DeviceError(_no_such_device(device))
        return uuid.raw

    def asynchronous(self, device: int, on: bool) -> None:
        """Whether Kompute's `eval()` on a device returns at once, to be waited for with `wait`."""
        self._library.vkllm_layer_asynchronous(device, on)

    def independent(self) -> None:
        """The next dispatch that this thread records needs no barrier.

        It neither reads nor overwrites what the dispatches since the last barrier of the same sequence write, nor
        writes what they read. The first dispatch of a sequence, and the first after a copy, get a barrier all the same.
        """
        self._library.vkllm_layer_independent()

    def require_subgroup_size(self, n: int) -> None:
        """The subgroup size of the pipelines that this thread makes from now on; 0: the driver chooses.

        Their local size must be a multiple of it; where the device can promise that, their subgroups are full. A device
        that cannot give the size ignores it, and `Statistics.subgroup_sizes_ignored` counts those pipelines.
        """
        self._library.vkllm_layer_require_subgroup_size(n)

    def ticket(self, device: int) -> int:
        """The ticket of the device's last submit (1, 2, ...; 0: none yet)."""
        ticket: int = self._library.vkllm_layer_ticket(device)
        return ticket

    def wait(self, device: int, ticket: int, timeout_s: float) -> None:
        """Waits until the submit with this ticket and all before it are done; other Python threads run meanwhile.

        Raises DeviceTimeout after `timeout_s`, and at once DeviceLost, OutOfDeviceMemory or DeviceError if the device
        is lost or one of these submits failed. After a timeout the submits go on, and the wait can be repeated.
        """
        result: int = self._library.vkllm_layer_wait(device, ticket, int(min(max(timeout_s, 0.0) * 1e9, 2**63)))
        if result == VK_SUCCESS:
            return
        if result == VK_TIMEOUT:
            raise DeviceTimeout(f"The device did not finish within {timeout_s:g} s; it hangs, or a submit is too long.")
        self._raise_failure(device)
        raise error_of("wait", result)

    def settle(self, device: int) -> bool:
        """Waits, a minute at most, until all submits of a device are done, and says whether they are.

        If not, the device may still use all that it was given: neither it nor that may be destroyed. The layer itself
        leaves what Kompute wants to destroy then.
        """
        return bool(self._library.vkllm_layer_settle(device))

    def check(self, device: int) -> None:
        """Raises the first failure of the device since the last check, as a typed error, and forgets it."""
        self._raise_failure(device)

    def take_failure(self, device: int) -> tuple[str, int] | None:
        """The first failure of the device since the last check, which it forgets: the call and its VkResult. Device 0
        stands for failures to make an instance or a device."""
        call = ctypes.create_string_buffer(64)
        result: int = self._library.vkllm_layer_take_failure(device, call, len(call))
        return None if result == VK_SUCCESS else (call.value.decode(), result)

    def reported(self, device: int) -> frozenset[str]:
        """Short names of the features that vkllm knows and the device reports."""
        return self._named(self._library.vkllm_layer_features(device, 0))

    def features(self, device: int) -> frozenset[str]:
        """Short names of the features that are enabled: never one that is not reported."""
        return self._named(self._library.vkllm_layer_features(device, 1))

    def statistics(self, device: int) -> Statistics:
        """The device's counters; DeviceError if there is no such device."""
        n = len(fields(Statistics))
        counters = (ctypes.c_uint64 * n)()
        n_counters = self._library.vkllm_layer_statistics(device, counters, n)
        if n_counters == 0:
            raise DeviceError(_no_such_device(device))
        assert n_counters == n, "Statistics differ between layer.h and Python"
        return Statistics(*counters)

    def place_next(self, tier: LayerTier) -> None:
        """Sets the tier of the next buffer that this thread makes; the default is "local", or "readback" if Kompute
        asks for host memory."""
        self._library.vkllm_layer_place_next(TIERS.index(tier))

    def import_next(self, address: int, n_bytes: int) -> None:
        """The next buffer that this thread makes, of n_bytes, is the host memory at an address.

        Both must be multiples of `import_alignment`. The memory must be there until the device is destroyed.
        """
        self._library.vkllm_layer_import_next(address, n_bytes)

    def import_alignment(self, device: int) -> int:
        """What addresses and sizes of imported host memory must be multiples of; 0: the device imports none."""
        alignment: int = self._library.vkllm_layer_import_alignment(device)
        return alignment

    def placement(self) -> Placement:
        """Where the last buffer that this thread made lies."""
        numbers = (ctypes.c_uint64 * len(fields(Placement)))()
        self._library.vkllm_layer_placement(numbers)
        return Placement(*numbers)

    def heaps(self, device: int) -> tuple[HeapUse, ...]:
        """The device's heaps as they are now; DeviceError if there is no such device."""
        n = len(fields(HeapUse))
        numbers = (ctypes.c_uint64 * (16 * n))()  # VK_MAX_MEMORY_HEAPS
        n_heaps = self._library.vkllm_layer_heaps(device, numbers, len(numbers))
        if n_heaps == 0:
            raise DeviceError(_no_such_device(device))
        return tuple(HeapUse.of(*numbers[n * i : n * (i + 1)]) for i in range(n_heaps))

    def limit_memory(self, device: int, vram_bytes: int | None, ram_bytes: int | None) -> None:
        """Limits each device-local heap of a device to vram_bytes, and each other heap to ram_bytes; None: no limit."""
        limits = (NO_LIMIT if limit is None else limit for limit in (vram_bytes, ram_bytes))
        self._library.vkllm_layer_limit_memory(device, *limits)

    def abandoned(self) -> int:
        """Vulkan objects that Kompute had not destroyed before their devices, in this process."""
        n: int = self._library.vkllm_layer_abandoned()
        return n

    def inject(self, kind: str, n: int, result: int = 0, device: int = 0) -> None:
        """Test mode: the n-th next call of a kind (see INJECTIONS) on a device (0: on any) fails with a VkResult; n = 0
        cancels that.

        A "hang" makes a wait last for its whole time limit; it needs a result that is not 0.
        """
        self._library.vkllm_layer_inject(device, INJECTIONS.index(kind), n, result)

    def injection_pending(self, kind: str) -> int:
        """Calls of a kind up to the one that will fail; 0: it has failed, or none is planned."""
        n: int = self._library.vkllm_layer_injection_pending(INJECTIONS.index(kind))
        return n

    def keep_pipelines(self, device: int, n: int) -> None:
        """Keeps up to n pipelines that nothing uses any more, for algorithms that are made later; at first none.

        For tests, which load hundreds of models of few kinds: there compiling takes longest.
        """
        self._library.vkllm_layer_keep_pipelines(device, n)

    def set_pipeline_cache(self, folder: Path | None) -> None:
        """Keeps the pipeline caches of devices made from now on in a folder, which is created; None: not on disk.

        Raises DeviceError if the folder cannot be made.
        """
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DeviceError(f"The folder {folder} for compiled pipelines cannot be made: {error}.") from error
        self._library.vkllm_layer_set_pipeline_cache(None if folder is None else os.fsencode(folder))

    def save_pipeline_cache(self, device: int) -> bool:
        """Writes the device's pipeline cache to disk if it grew; False if it could not be written.

        Destroying the device does the same.
        """
        return bool(self._library.vkllm_layer_save_pipeline_cache(device))

    def _named(self, mask: int) -> frozenset[str]:
        return frozenset(name for bit, name in enumerate(self.feature_names) if mask >> bit & 1)

    def _raise_failure(self, device: int) -> None:
        failure = self.take_failure(device)
        if failure is not None:
            raise error_of(*failure)


def _no_such_device(device: int) -> str:
    return f"There is no Vulkan device number {device}; it was destroyed, or never made."


def _load() -> ctypes.CDLL:
    if not LIBRARY.exists():
        raise DeviceError(f"The Vulkan layer {LIBRARY} is missing; build it with `python -m vkllm.gpu.layer.build`.")
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise DeviceError(
            f"The Vulkan layer cannot be loaded ({error}); rebuild it: `python -m vkllm.gpu.layer.build --force`."
        ) from error


def _why_unused() -> str:
    """Why the Vulkan loader may have bypassed the layer, as a sentence."""
    if os.geteuid() != os.getuid() or os.getegid() != os.getgid():
        reason = "it ignores the environment in a process with elevated rights; run vkllm as an ordinary user"
    elif NAME not in os.environ.get("VK_INSTANCE_LAYERS", "").split(os.pathsep):
        reason = "VK_INSTANCE_LAYERS does not name it; activate it before the first Kompute manager"
    else:
        reason = "no device was made since, or an override layer is active; run with VK_LOADER_DEBUG=layer to see"
    return f"The Vulkan loader does not use vkllm's layer {NAME}: {reason}."
