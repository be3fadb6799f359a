"""What comes with vkllm and where it keeps things: shaders, the model catalogue's file, the user's cache folder.

And how it starts Python again in a child process. Knows a checkout from an installed wheel. Does not know what is
inside the catalogue, a model or a shader.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from vkllm.errors import VkllmError

_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "_shipped"  # Exists in an installed wheel only; see [tool.hatch] in pyproject.toml.
_CHECKOUT = _PACKAGE.parent


def catalog_path() -> Path:
    """The catalogue of models."""
    path = _SHIPPED / "catalog.toml"
    return path if path.exists() else _CHECKOUT / "models" / "catalog.toml"


def shader(name: str) -> bytes:
    """The SPIR-V of one of vkllm's shaders."""
    return _compiled(f"{name}.spv")


def shader_manifest() -> bytes:
    """The list of the shaders with their hashes, which changes with any of them."""
    return _compiled("manifest.json")


def _compiled(name: str) -> bytes:
    folder = _SHIPPED / "spv"
    return _read(folder if folder.is_dir() else _CHECKOUT / "shaders" / "spv", name)


@functools.lru_cache(maxsize=256)  # a model has a thousand dispatches of some twenty shaders
def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise VkllmError(
            f"{folder}: the shader {name.removesuffix('.spv')!r} cannot be read ({error.strerror}); "
            "install vkllm again."
        ) from None


def cache_dir() -> Path:
    """vkllm's folder for what can be had again: $VKLLM_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("VKLLM_CACHE"):
        return Path(chosen).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "vkllm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vkllm"


def models_dir() -> Path:
    """The folder of fetched models (those from Hugging Face are in the hub's own cache)."""
    return cache_dir() / "models"


def child_python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of Python's path in a child process; `child_environment` belongs to it.

    -P: Python would put the current folder before its own modules, and a json.py beside a downloaded model would run.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of a Python that is started as a child: this process's modules, none of the current folder.

    The current folder is in this process's path where Python put it there (`python -m`, `python -c`, an interactive
    session); it stays only if vkllm itself is in it, a checkout.
    """
    here, home = os.getcwd(), str(_CHECKOUT)
    paths = [os.path.abspath(path) for path in sys.path if path]
    safe = [path for path in paths if path != here or path == home]
    return os.environ | {"PYTHONPATH": os.pathsep.join(safe), "PYTHONSAFEPATH": "1"} | variables
