"""What a name of a model stands for: an entry of the catalogue, a repository or a file of the hub, an address, a path.

Looks at names and paths only; which files of a repository are meant is in `choice.py`, and which are here in
`models.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vkllm.errors import ModelNotFound, VkllmError
from vkllm.formats.gguf import ModelFile, no_model
from vkllm.formats.splits import part_names
from vkllm.model.architectures import FAMILIES
from vkllm.store.catalog import CatalogEntry, HubSource, catalog, entry_of, letters
from vkllm.store.choice import may_be_model, without_seldom
from vkllm.store.downloads.files import is_inside
from vkllm.store.families import family_of
from vkllm.store.ollama import OllamaName, is_ollama_name, ollama_name
from vkllm.store.other_tools import ToolFile, tool_file

_HUB = re.compile(r"hf:|(?:https?://)?(?:hf\.co|huggingface\.co)/")
_PART = r"(?![.-])[\w.-]*[\w]"
_HUB_FILE = re.compile(rf"({_PART}/{_PART})/(?:(?:blob|resolve)/main/)?([^?]+\.gguf)(?:\?.*)?")
_HUB_REPO = re.compile(rf"({_PART}/{_PART})(?::([\w.-]+))?/?")


@dataclass(frozen=True)
class HubRepo:
    """One model of a repository of the hub: the one with this quantization, or the usual choice."""

    repo: str
    quantization: str | None


@dataclass(frozen=True)
class WebSource:
    """A file at an address; the first part where the model is split."""

    url: str


Source = CatalogEntry | HubRepo | HubSource | OllamaName | ToolFile | WebSource


def source_of(name: str) -> Source | None:
    """What a name stands for; None if it can only be a path."""
    entry = entry_of(name)
    if entry is not None and (entry.name == name or not os.path.exists(name)):
        return entry
    if other := ollama_name(name) or tool_file(name):
        return other
    if hub := _HUB.match(name):
        rest = name[hub.end() :]
        if (match := _HUB_FILE.fullmatch(rest)) and is_inside(match[2]):
            return HubSource(match[1], match[2])
        if match := _HUB_REPO.fullmatch(rest):
            return HubRepo(match[1], match[2])
    is_address = name.startswith(("https://", "http://")) and not is_ollama_name(name)
    return WebSource(name) if is_address else None


def looks_like_path(name: str) -> bool:
    """Whether a name that stands for nothing else is meant as a path, whether or not there is a file.

    >>> looks_like_path("my models/missing.gguf"), looks_like_path("Why is the sky blue?")
    (True, False)
    """
    if os.path.exists(name) or name.lower().endswith(".gguf"):
        return True
    return name.startswith(("/", "./", "../", "~")) or ("/" in name and " " not in name)


def path_of(name: str) -> Path:
    """The first file of the model that a path means. Raises ModelNotFound for a name that stands for nothing."""
    if not name.strip():  # else it would be the folder that the program runs in
        raise ModelNotFound("The name of the model is empty; `vkllm list` shows those that are here.")
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _only_model_in(path)
        if path.exists():
            first = path.with_name(part_names(path.name)[0])
            return first if first.exists() else path
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(f"{name[:200]!r}: no such file ({reason}); check the path.") from None
    if is_ollama_name(name):
        raise ModelNotFound(
            f"{name[:200]}: this is no name of ollama's; write ollama:NAME:TAG, or ollama:USER/NAME:TAG."
        )
    if re.match(r"\w+://", name):
        raise ModelNotFound(f"{name}: only addresses that begin with https:// or http:// can be fetched.")
    if _HUB.match(name):
        raise ModelNotFound(f"{name}: this is no name of a repository; write hf.co/OWNER/REPO, or hf:OWNER/REPO/FILE.")
    if looks_like_path(name):
        raise ModelNotFound(f"{name}: no such file; check the path, or write hf.co/OWNER/REPO for one of the hub.")
    raise ModelNotFound(_nothing_of_that_name(name[:100]))


def _only_model_in(folder: Path) -> Path:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if not names:
        raise ModelNotFound(f"{folder}: there is no .gguf file in this folder; check the path.")
    found = without_seldom([name for name in names if may_be_model(name)] or names)
    models = {part_names(name)[0] for name in found}
    if len(models) > 1:
        models = {name for name in models if not _says_it_is_no_model(folder / name)} or models
    if len(models) > 1:
        listed = ", ".join(sorted(models))
        raise ModelNotFound(f"{folder}: there are {len(models)} models in this folder; choose one of {listed}.")
    first = folder / models.pop()
    return first if first.exists() else folder / found[0]


def _says_it_is_no_model(path: Path) -> bool:
    try:
        return no_model(ModelFile.open(path).metadata) is not None
    except VkllmError:
        return False


def _nothing_of_that_name(name: str) -> str:
    """Why a name stands for nothing, and what the user most likely means."""
    others = "`vkllm list --all` has all names, and hf.co/OWNER/REPO or the path of a .gguf file works too"
    family, _, tag = name.lower().partition(":")
    size = tag.partition("-")[0]
    entries = [entry.name for entry in catalog()]
    if same := [entry.name for entry in catalog() if _is_another_name_of(name, entry)]:
        best = max(same, key=len)
        return f"There is no model {name!r}; vkllm's name for it is {best}: `vkllm pull {best}` fetches it ({others})."
    of_family = [entry for entry in entries if letters(_family(entry)) == letters(_family(family))]
    if of_family:
        which = f" of {size}" if size and size != "latest" else ""
        names = " and ".join(filter(None, (", ".join(of_family[:-1]), of_family[-1])))
        return f"There is no model {name!r}{which}; of this family vkllm has the names {names} ({others})."
    if (title := family_of(name)) is not None:
        if title.architecture in FAMILIES:
            at_ollama = f"ollama:{name} of ollama's registry, " if tag else ""
            return (
                f"There is no model {name!r} in vkllm's catalogue, but models of the family {title.title} run: give "
                f"{at_ollama}a GGUF of one as hf.co/OWNER/REPO:Q4_K_M, or its path ({others})."
            )
        known = ", ".join(sorted(FAMILIES))
        return f"{name!r} is of the family {title.title}, which vkllm does not run yet; it runs {known} ({others})."
    if tag:
        return f"There is no model {name!r}; if it is one of ollama's registry, write ollama:{name} ({others})."
    names = ", ".join(difflib.get_close_matches(name, entries) or entries[:3])
    return (
        f"There is no model {name!r}; known names are {names} (`vkllm list --all` has all), "
        "and hf.co/OWNER/REPO or the path of a .gguf file works too."
    )


def _is_another_name_of(name: str, entry: CatalogEntry) -> bool:
    """Whether a name is one of ollama or of Hugging Face for what the catalogue has: `llama3.2:1b-instruct-q4_K_M`."""
    n_params = f"{entry.n_params / 1e6:.0f}m", f"{entry.n_params / 1e9:.1f}b"
    more = "|".join((*map(re.escape, n_params), r"instruct|chat|text|it|latest|gguf|hf|v\d[\d.]*|q\d\w*|f?p?16"))
    pattern = f"(meta)?{re.escape(letters(entry.name))}({more})*"
    return re.fullmatch(pattern, letters(name.rpartition("/")[2])) is not None


def _family(name: str) -> str:
    """A name without the size at its end: llama-3.2-1b -> llama-3.2."""
    return re.sub(r"-\d+(\.\d+)?[bm]$", "", name)
