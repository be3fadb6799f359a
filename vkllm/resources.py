"""What comes with vkllm and where it keeps things: shaders, the model catalogue's file, the user's cache folder.

Knows a checkout from an installed wheel. Does not know what is inside the catalogue, a model or a shader.
"""

from __future__ import annotations

import os
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
    if not folder.is_dir():
        folder = _CHECKOUT / "shaders" / "spv"
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
