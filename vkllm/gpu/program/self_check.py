"""Whether a device computes correctly: a few kernels are compared with numpy before a model is loaded.

With drivers that compute wrongly, good models answer nonsense. If only fast kernels are wrong, the slow ones replace
them; any other wrong result, and the device is refused. The verdict is kept on disk for the device, its driver and the
shaders, so that only the first start takes a few tenths of a second longer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from vkllm.errors import UnsupportedDevice
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.device.requirements import described, without_subgroups
from vkllm.gpu.program.self_check_cases import DOT_PRODUCTS, MATRICES, SUBGROUPS, cases
from vkllm.resources import cache_dir, shader_manifest


def _soft(device: Device) -> None:
    device.has_integer_dot = False


def _no_matrices(device: Device) -> None:
    device.info = replace(device.info, matrix_shape=None)


def _plain(device: Device) -> None:
    device.info = without_subgroups(device.info)


_SLOW_PATHS: Final[dict[str, Callable[[Device], None]]] = {
    DOT_PRODUCTS: _soft,
    MATRICES: _no_matrices,
    SUBGROUPS: _plain,
}
"""By kind of kernel, what makes a device do without it, in the order in which these are tried."""


def check_kernels(device: Device) -> tuple[str, ...]:
    """Switches off what a device computes wrongly, and returns it: any of "dot products", "matrices", "subgroups".

    Raises UnsupportedDevice if that does not help, DeviceError if a kernel cannot run.
    """
    key = _key(device)
    kept = _kept().get(key)
    if kept is not None:
        for kind in kept:
            _SLOW_PATHS[kind](device)
        return kept
    found = _checked(device)
    _keep(key, found)
    return found


def _checked(device: Device) -> tuple[str, ...]:
    taken: list[str] = []
    wrong = _wrong(device)
    for kind, take in _SLOW_PATHS.items():
        if not wrong:
            break
        if kind in wrong:
            take(device)
            taken.append(kind)
            wrong = _wrong(device)
    if wrong:
        modules = ", ".join(module for modules in wrong.values() for module in modules)
        raise UnsupportedDevice(
            f"{described(device.info)} computes wrongly ({modules}), so every model would answer nonsense; update the "
            "driver or choose another device (`vkllm devices` lists them)"
        )
    return tuple(taken)


def _wrong(device: Device) -> dict[str, list[str]]:
    """Names of the modules with wrong results, by kind."""
    made = cases(device)
    device.run([case.dispatch for kind in made.values() for case in kind])
    found = {kind: [case.module for case in group if not case.is_right] for kind, group in made.items()}
    return {kind: modules for kind, modules in found.items() if modules}


# The verdicts on disk


def _path() -> Path:
    return cache_dir() / "self_check.json"


def _key(device: Device) -> str:
    """Device, driver, shaders, and what of the device decides which modules run."""
    info: DeviceInfo = device.info
    matrices = info.matrix_shape, info.narrow_shape
    used = (info.subgroup_size, device.is_plain, device.has_integer_dot, *matrices, info.api_version)
    shaders = hashlib.sha256(shader_manifest()).hexdigest()[:16]
    return f"{info.vendor_id:04x}:{info.device_id:04x} {described(info)}, {used}, shaders {shaders}"


def _kept() -> dict[str, tuple[str, ...]]:
    """What was found before; nothing if the file is missing or damaged."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: tuple(kinds)
        for key, kinds in content.items()
        if isinstance(kinds, list) and all(isinstance(kind, str) and kind in _SLOW_PATHS for kind in kinds)
    }


def _keep(key: str, found: tuple[str, ...]) -> None:
    path = _path()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(_kept() | {key: found}, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # it is checked again the next time
