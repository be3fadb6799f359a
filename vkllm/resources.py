"""What comes with vkllm and where it keeps things: shaders, the model catalogue, the user's cache folder.

Knows a checkout from an installed wheel. Does not know how models are fetched (vkllm.downloads), which are here
(vkllm.store) or what is inside a GGUF or a shader.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vkllm.errors import VkllmError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "_shipped"  # Exists in an installed wheel only; see [tool.hatch] in pyproject.toml.
_CHECKOUT = _PACKAGE.parent


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel on the Python package index."""

    requirement: str
    member: str


@dataclass(frozen=True)
class HubSource:
    """A file of a Hugging Face repository; the first part where the model is split."""

    repo: str
    file: str


@dataclass(frozen=True)
class CatalogEntry:
    """A model with a short name.

    n_bytes: of all its files, exact where there is a sha256. memory_bytes: of weights, activations and the cache of
    4096 tokens (or of its own context, where that is shorter); both are rounded where there is no sha256.
    """

    name: str
    description: str
    licence: str
    n_params: int
    n_bytes: int
    memory_bytes: int
    sha256: str | None
    source: WheelSource | HubSource


def catalog() -> list[CatalogEntry]:
    """The models that have a short name, in the catalogue's order."""
    path = _SHIPPED / "catalog.toml"
    if not path.exists():
        path = _CHECKOUT / "models" / "catalog.toml"
    entries = []
    for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
        source = (
            WheelSource(fields["wheel"], fields["member"])
            if "wheel" in fields
            else HubSource(fields["repo"], fields["file"])
        )
        entries.append(
            CatalogEntry(
                name=name,
                description=fields["description"],
                licence=fields["licence"],
                n_params=fields["n_params"],
                n_bytes=fields["n_bytes"],
                memory_bytes=fields["memory_bytes"],
                sha256=fields.get("sha256"),
                source=source,
            )
        )
    return entries


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
