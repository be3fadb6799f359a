"""Names of models in requests: those of vkllm, of ollama and of files, for what lies on this machine.

A request never fetches a model, and names a file only where the server was told to look.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vkllm.errors import ModelNotFound, VkllmError
from vkllm.formats.splits import part_names
from vkllm.store import FoundModel, installed, look_up
from vkllm.store.choice import whole_models

_FRESH_S = 2.0
_MAX_NAME = 500


@dataclass(frozen=True)
class Known:
    """A model that can be served. name: as answers give it. path: of its first file; None where it is to be fetched
    when it is loaded. aliases: what it is called besides."""

    name: str
    found: FoundModel
    path: Path | None
    aliases: tuple[str, ...] = ()


class KnownModels:
    """The models on this machine and those in a folder. Looking takes milliseconds: not for an event loop."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where further files lie, also in folders in it."""
        self._folder = None if folder is None else folder.expanduser().resolve()
        self._listed: dict[str, Known] = {}
        self._listed_s = -_FRESH_S

    def of(self, found: FoundModel) -> Known:
        """A model that was named at the start."""
        name = found.path.stem if found.source is None and found.path is not None else found.name
        return Known(name, found, found.path)

    def all(self) -> list[Known]:
        """All of them, those of the folder first."""
        if time.monotonic() - self._listed_s > _FRESH_S:
            known: dict[str, Known] = {}
            for model in (*self._in_folder(), *self._installed()):
                known.setdefault(str(model.path), model)
            self._listed, self._listed_s = known, time.monotonic()
        return list(self._listed.values())

    def named(self, name: str) -> Known:
        """The model of a name. Raises ModelNotFound."""
        known = self.all()
        if len(name) <= _MAX_NAME and name.isprintable():
            for model in known:
                if name == model.name or name in model.aliases:
                    return model
            by_path = {model.path.resolve(): model for model in known if model.path is not None}
            for each in (name, f"ollama:{name}", name.removesuffix(":latest")):
                try:
                    path = look_up(each).path
                except (VkllmError, OSError, ValueError):
                    continue
                if path is not None and path.resolve() in by_path:
                    return by_path[path.resolve()]
        names = ", ".join(model.name for model in known[:5]) or "none yet"
        raise ModelNotFound(
            f"there is no model {name[:100]!r} on this server; there are {names}"
            f"{' and more' if len(known) > 5 else ''}; `vkllm pull` fetches one"
        )

    def _in_folder(self) -> Iterator[Known]:
        if self._folder is None:
            return
        files = [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.gguf")]
        for first in whole_models(files):
            path = self._folder / first
            name = first.removesuffix(".gguf")
            if len(part_names(first)) > 1:
                name = name.rpartition("-00001-of-")[0]
            yield Known(name, FoundModel(name, None, path), path, (first, path.name, path.stem, str(path)))

    def _installed(self) -> Iterator[Known]:
        for model in installed():
            found = FoundModel(model.name, look_up(model.name).source, model.paths[0])
            yield Known(model.name, found, model.paths[0])
