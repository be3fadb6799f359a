"""The catalogue of models that have a short name: where each comes from, its size and its licence.

Data only (models/catalog.toml); does not know how models are fetched or which are here.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass

from vkllm.resources import catalog_path


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

    aliases: other names for it, such as ollama's. family: what it is listed under. architecture: of its file, as
    `general.architecture` says. n_bytes: of all its files, exact where there is a sha256. memory_bytes: of weights,
    activations, states and the cache of 4096 tokens (or of its own context, where that is shorter); both are rounded
    where there is no sha256.
    """

    name: str
    description: str
    licence: str
    n_params: int
    n_bytes: int
    memory_bytes: int
    sha256: str | None
    source: WheelSource | HubSource
    family: str = ""
    architecture: str = ""
    aliases: tuple[str, ...] = ()


def entry_of(name: str) -> CatalogEntry | None:
    """The entry with a name or an alias, written as in the catalogue or as ollama does: `Qwen3:4b` is `qwen3-4b`."""
    plain = name.lower().removesuffix(":latest")
    for is_it in (
        lambda entry: entry.name == name,
        lambda entry: plain in entry.aliases,
        lambda entry: letters(entry.name) == letters(plain),
    ):
        for entry in catalog():
            if is_it(entry):
                return entry
    return None


def letters(name: str) -> str:
    """A name without what separates its words, so that `llama3.2:1b` is `llama-3.2-1b`."""
    return re.sub(r"[-_:\s]", "", name.lower())


def catalog() -> list[CatalogEntry]:
    """The models that have a short name, in the catalogue's order."""
    return list(read_catalog())


@functools.cache
def read_catalog() -> tuple[CatalogEntry, ...]:
    """The same, read once in a process."""
    entries = []
    for name, fields in tomllib.loads(catalog_path().read_text(encoding="utf-8")).items():
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
                family=fields["family"],
                architecture=fields["architecture"],
                aliases=tuple(fields.get("aliases", ())),
            )
        )
    return tuple(entries)
