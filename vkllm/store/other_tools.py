"""Models that llama.cpp and LM Studio have fetched: where they lie, and names for them. They run in place.

Knows the folders of these programs; reads names of files only, and never more than MOST_ENTRIES of a folder. Models of
ollama are in `ollama.py`, those of the Hugging Face hub's own cache in `downloads/hub.py`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vkllm.formats.splits import part_names
from vkllm.store.choice import whole_models
from vkllm.store.downloads.files import is_inside

Tool = Literal["llama.cpp", "LM Studio"]

MOST_ENTRIES = 20_000
"""Files and folders that are looked at below one folder; who has more gives paths."""
MOST_DEPTH = 5
"""LM Studio's files lie three folders deep, those of a hub's cache four or five."""

_SNAPSHOT = re.compile("^models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]+/")
"""Where llama.cpp keeps files of the hub in a folder that $LLAMA_CACHE names."""
_PREFIXES: dict[str, Tool] = {"llama.cpp:": "llama.cpp", "lmstudio:": "LM Studio"}


@dataclass(frozen=True)
class ToolFile:
    """The first file of a model that a program has fetched: its path in the program's folder, with slashes."""

    tool: Tool
    file: str

    def __str__(self) -> str:
        prefix = next(prefix for prefix, tool in _PREFIXES.items() if tool == self.tool)
        return f"{prefix}{self.file}"


def tool_file(name: str) -> ToolFile | None:
    """What `lmstudio:OWNER/REPO/FILE.gguf` and `llama.cpp:FILE.gguf` stand for; None for other names."""
    for prefix, tool in _PREFIXES.items():
        if name.startswith(prefix) and name.endswith(".gguf") and is_inside(name.removeprefix(prefix)):
            return ToolFile(tool, name.removeprefix(prefix))
    return None


def tool_files(source: ToolFile) -> list[Path]:
    """The files of a model, all of them; none where one is missing."""
    for folder in folders_of(source.tool):
        paths = [folder / part for part in part_names(source.file)]
        if all(path.is_file() for path in paths):
            return paths
    return next((paths for found, paths in tool_models(source.tool) if found == source), [])


def tool_models(*tools: Tool) -> Iterator[tuple[ToolFile, list[Path]]]:
    """The whole models of both programs, or of one of them, and their files, by name."""
    for tool in tools or _PREFIXES.values():
        seen = set()
        for folder in folders_of(tool):
            for first in whole_models(gguf_files(folder)):
                source = ToolFile(tool, _SNAPSHOT.sub(r"\1/\2/", first))
                if source not in seen:
                    seen.add(source)
                    yield source, [folder / part for part in part_names(first)]


def hub_files(repo: str) -> Iterator[dict[str, Path]]:
    """The .gguf files of a repository of Hugging Face that these programs have: for each of their folders, by the names
    in the repository."""
    for folder in llama_cpp_folders():
        for snapshot in sorted(folder.glob(f"models--{repo.replace('/', '--')}/snapshots/*")):
            yield {name: snapshot / name for name in gguf_files(snapshot)}
        prefix = f"{repo.replace('/', '_')}_"  # of older versions, which also write a_b for the file a/b
        names = [name for name in gguf_files(folder, depth=1) if name.startswith(prefix)]
        yield {name.removeprefix(prefix): folder / name for name in names}
    for folder in lm_studio_folders():
        yield {name: folder / repo / name for name in gguf_files(folder / repo)}


def folders_of(tool: Tool) -> list[Path]:
    """Where a program keeps models."""
    return llama_cpp_folders() if tool == "llama.cpp" else lm_studio_folders()


def gguf_files(folder: Path, depth: int = MOST_DEPTH) -> list[str]:
    """The .gguf files below a folder, relative to it, with slashes. Links to nothing and what cannot be read are left
    out, and so is what lies too deep or beyond the first MOST_ENTRIES."""
    found: list[str] = []
    n_left = MOST_ENTRIES
    level = [""]
    for _ in range(depth):
        deeper = []
        for inner in level:
            try:
                with os.scandir(folder / inner) as entries:
                    for entry in entries:
                        if (n_left := n_left - 1) < 0:
                            return sorted(found)
                        if entry.is_dir() and entry.name != "blobs":  # a hub's cache names those elsewhere
                            deeper.append(f"{inner}{entry.name}/")
                        elif entry.name.endswith(".gguf") and entry.is_file():
                            found.append(f"{inner}{entry.name}")
            except OSError:
                continue
        level = sorted(deeper)
    return sorted(found)


def llama_cpp_folders() -> list[Path]:
    """$LLAMA_CACHE, else the usual place; without the variable, newer versions use the Hugging Face hub's cache."""
    if chosen := os.environ.get("LLAMA_CACHE"):
        return [Path(chosen).expanduser()]
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return [Path(local) / "llama.cpp"]
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return [Path(cache) / "llama.cpp"]
    return [Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "llama.cpp"]


def lm_studio_folders() -> list[Path]:
    """The folder of models of each place that LM Studio's data may be at, or the one that its settings name."""
    homes = [Path.home() / ".lmstudio", Path.home() / ".cache" / "lm-studio"]
    if moved := _text_of(Path.home() / ".lmstudio-home-pointer").strip():
        homes.insert(0, Path(moved))
    folders = []
    for home in homes:
        try:
            settings = json.loads(_text_of(home / "settings.json"))
            chosen = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        except (ValueError, RecursionError):
            chosen = None
        folders.append(Path(chosen) if isinstance(chosen, str) and chosen else home / "models")
    return list(dict.fromkeys(folders))


def _text_of(path: Path) -> str:
    """The text of a small file; nothing where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > 1 << 20:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
