"""How the Vulkan loader finds a layer: the environment variables that it reads, and what it finds with them."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from vkllm.errors import DeviceError

# Where the loader looks for explicit layers by itself; needed when VK_LAYER_PATH has to be set, which replaces them.
SYSTEM_FOLDERS: Final = tuple(f"{root}/vulkan/explicit_layer.d" for root in ("/etc", "/usr/local/share", "/usr/share"))


class _LayerProperties(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 256),
        ("spec_version", ctypes.c_uint32),
        ("implementation_version", ctypes.c_uint32),
        ("description", ctypes.c_char * 256),
    ]


def is_found(name: str) -> bool:
    """Whether the Vulkan loader, with the environment as it is, lists a layer. DeviceError if there is no loader."""
    try:
        loader = ctypes.CDLL("libvulkan.so.1")
    except OSError as error:
        raise DeviceError("There is no Vulkan loader libvulkan.so.1; install it: `apt install libvulkan1`.") from error
    n = ctypes.c_uint32(0)
    loader.vkEnumerateInstanceLayerProperties(ctypes.byref(n), None)
    found = (_LayerProperties * n.value)()
    loader.vkEnumerateInstanceLayerProperties(ctypes.byref(n), found)
    return any(layer.name == name.encode() for layer in found)


def prepend(variable: str, value: str, rest: tuple[str, ...] = ()) -> None:
    """Puts a value before those of an environment variable, or before `rest` if it has none."""
    present = [part for part in os.environ.get(variable, "").split(os.pathsep) if part] or list(rest)
    os.environ[variable] = os.pathsep.join([value, *(part for part in present if part != value)])
