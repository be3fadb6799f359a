"""Models as ollama names and keeps them: a name, the manifest that it stands for, and blobs named by their sha256.

ollama's own folder and the one of vkllm's cache that downloads/ollama.py fills have this layout. Reads files only; does
not know how bytes travel.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vkllm.errors import ModelNotFound, UnsupportedModel, VkllmError
from vkllm.resources import models_dir

DEFAULT_HOST = "registry.ollama.ai"
LARGEST_JSON_BYTES = 1 << 20
"""No manifest and no configuration is longer."""
MOST_MANIFESTS = 2000
"""How many of one folder are listed."""

_WORD = r"[A-Za-z0-9_][\w.-]{0,127}"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_WORD}(?::\d{{1,5}})?)/)?(?P<namespace>[A-Za-z0-9_][\w-]{{0,127}})/)?(?P<model>{_WORD})"
    rf"(?::(?P<tag>{_WORD}))?",
    re.ASCII,
)
_HUB_NAME = re.compile(
    rf"(?P<host>hf\.co|huggingface\.co)/(?P<namespace>{_WORD})/(?P<model>{_WORD})(?::(?P<tag>{_WORD}))?"
)
_PREFIX = re.compile(r"ollama:(?://)?|(?:https?://)?(?:registry\.ollama\.ai|(?:www\.)?ollama\.com)/")
_DIGEST = re.compile("sha256[:-]([0-9a-f]{64})")
_MANIFEST_LIST = "application/vnd.ollama.manifest.list.v2+json"
_KIND = "application/vnd.ollama.image."


@dataclass(frozen=True)
class OllamaName:
    """A model of an ollama registry. Its text is what `vkllm run` takes: ollama:llama3.2:1b."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def is_of_hub(self) -> bool:
        """Whether it is ollama's name for a repository of Hugging Face."""
        return self.host in ("hf.co", "huggingface.co")

    @property
    def hub_name(self) -> str:
        """vkllm's name for that repository."""
        return f"hf.co/{self.namespace}/{self.model}" + ("" if self.tag == "latest" else f":{self.tag}")

    @property
    def short(self) -> str:
        """As `ollama list` writes it."""
        owner = "" if self.namespace == "library" else f"{self.namespace}/"
        place = owner if self.host == DEFAULT_HOST else f"{self.host}/{self.namespace}/"
        return f"{place}{self.model}:{self.tag}"

    def __str__(self) -> str:
        return f"ollama:{self.short}"


@dataclass(frozen=True)
class Blob:
    """A file by its sha256, in hexadecimal digits."""

    sha256: str
    n_bytes: int

    def layer(self, media_type: str) -> dict[str, str | int]:
        """As a manifest names it."""
        return {"mediaType": media_type, "digest": f"sha256:{self.sha256}", "size": self.n_bytes}


@dataclass(frozen=True)
class Manifest:
    """What a name stands for: the file of weights, and a small JSON file that says of which kind it is."""

    model: Blob
    config: Blob | None
    file_type: str | None
    """The quantization, such as "Q4_K_M", where the configuration tells it."""

    def kept(self) -> bytes:
        """The manifest of what vkllm keeps of it."""
        config = (
            {}
            if self.config is None
            else {"config": self.config.layer("application/vnd.docker.container.image.v1+json")}
        )
        return json.dumps({"schemaVersion": 2, **config, "layers": [self.model.layer(f"{_KIND}model")]}).encode()


@dataclass(frozen=True)
class KeptModel:
    """A whole model in a folder of this layout."""

    name: OllamaName
    path: Path
    quantization: str | None


def is_ollama_name(name: str) -> bool:
    """Whether a name says that it is one of ollama's, well formed or not."""
    return _PREFIX.match(name) is not None


def ollama_name(name: str) -> OllamaName | None:
    """What `ollama:llama3.2:1b`, an address of ollama.com and the like stand for; None for other names."""
    if (prefix := _PREFIX.match(name)) is None:
        return None
    rest = name[prefix.end() :]
    match = _HUB_NAME.fullmatch(rest) or _NAME.fullmatch(rest)
    if match is None or ".." in rest or (match["host"] and not re.search("[.:]", match["host"])):
        return None
    host = match["host"] or DEFAULT_HOST
    return OllamaName(host, match["namespace"] or "library", match["model"], match["tag"] or "latest")


def own_folder() -> Path:
    """Where vkllm keeps what it fetches from registries of ollama."""
    return models_dir() / "ollama"


def ollama_folders() -> list[Path]:
    """Where ollama keeps models: $OLLAMA_MODELS, else of this user, and of its service on Linux."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def blob_path(folder: Path, sha256: str) -> Path:
    """Where a blob is, or will be."""
    return folder / "blobs" / f"sha256-{sha256}"


def manifest_path(folder: Path, name: OllamaName) -> Path:
    """Where a name's manifest is, or will be."""
    return folder / "manifests" / name.host.replace(":", "%") / name.namespace / name.model / name.tag


def kept_model(folder: Path, name: OllamaName) -> KeptModel | None:
    """The model of a name, if it is in a folder, whole."""
    new = folder / "manifests-v2" / manifest_path(folder, name).relative_to(folder / "manifests")
    for path in (new, manifest_path(folder, name)):
        if (kept := _kept(folder, name, path)) is not None:
            return kept
    return None


def kept_models(folder: Path) -> Iterator[KeptModel]:
    """The whole models in a folder; what cannot be read, is unfinished or cannot run is left out."""
    seen = set()
    for kind in ("manifests-v2", "manifests"):
        for path in islice(_files_at_depth(folder / kind, 4), MOST_MANIFESTS):
            host, namespace, model, tag = path.relative_to(folder / kind).parts
            name = ollama_name(f"ollama:{host.replace('%', ':')}/{namespace}/{model}:{tag}")
            if name is None or name in seen:
                continue
            if (kept := _kept(folder, name, path)) is not None:
                seen.add(name)
                yield kept


def manifest_digests(folder: Path) -> set[str]:
    """The sha256 of all blobs that the manifests of a folder name, those of models that cannot run too."""
    found = set()
    for path in _files_at_depth(folder / "manifests", 4):
        found |= set(_DIGEST.findall(_small_file(path).decode(errors="replace")))
    return found


def read_manifest(name: OllamaName, data: bytes, small_blob: Callable[[str], bytes]) -> Manifest:
    """Which file a manifest says is the model.

    small_blob: the content of a blob of JSON, by its sha256. Raises UnsupportedModel for what is no GGUF model that
    runs on this machine, ModelNotFound for what is no manifest.
    """
    try:
        document = _runnable(name, _document(data), small_blob)
        config_layer = document.get("config") or {}
        config = _blob(config_layer) if config_layer.get("digest") else None
        facts = _document(small_blob(config.sha256)) if config is not None else {}
        layers = [(str(layer["mediaType"]).removeprefix(_KIND), layer) for layer in document.get("layers") or []]
        if facts.get("remote_host") or facts.get("remote_model"):
            raise UnsupportedModel(
                f"{name}: this model runs on ollama's servers only, so there is no file to fetch; "
                "take a tag without `cloud`."
            )
        _check_format(name, facts, [kind for kind, _ in layers])
        models = [_blob(layer) for kind, layer in layers if kind == "model"]
        if len(models) != 1:
            raise UnsupportedModel(f"{name}: it has {len(models)} files of weights, and vkllm runs models of one.")
        file_type = facts.get("file_type")
        return Manifest(models[0], config, file_type if isinstance(file_type, str) else None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{name}: what its name stands for is no manifest of ollama's ({error}).") from error


def _runnable(name: OllamaName, document: Mapping[str, Any], small_blob: Callable[[str], bytes]) -> Mapping[str, Any]:
    """The manifest itself, or of a list of them the one of a GGUF file."""
    if document.get("mediaType") != _MANIFEST_LIST and "manifests" not in document:
        return document
    children = document["manifests"]
    for child in children:
        is_gguf = child.get("format") == "gguf" or child.get("runner") in ("ollama", "llamacpp")
        if is_gguf and child.get("layers"):
            return dict(child)
        if is_gguf and (match := _DIGEST.fullmatch(str(child.get("digest")))):
            return _document(small_blob(match[1]))
    raise UnsupportedModel(_other_format(name, str(children[0].get("format", "")) if children else ""))


def _check_format(name: OllamaName, facts: Mapping[str, Any], kinds: list[str]) -> None:
    """Raises UnsupportedModel for other formats than GGUF, and for adapters."""
    if facts.get("model_format", "gguf") not in ("gguf", "") or ("tensor" in kinds and "model" not in kinds):
        raise UnsupportedModel(_other_format(name, str(facts.get("model_format", ""))))
    if "adapter" in kinds:
        raise UnsupportedModel(
            f"{name}: it is an adapter (LoRA) on another model, which vkllm does not apply; take a merged model."
        )


def _other_format(name: OllamaName, is_in: str) -> str:
    called = f"in {is_in}" if is_in.isalnum() else "in another format"
    return f"{name}: this model is {called}, and vkllm runs GGUF files; take another tag, or a GGUF of Hugging Face."


def _kept(folder: Path, name: OllamaName, path: Path) -> KeptModel | None:
    data = _small_file(path)
    if not data:
        return None
    try:
        manifest = read_manifest(name, data, lambda sha256: _small_file(blob_path(folder, sha256)) or b"{}")
        weights = blob_path(folder, manifest.model.sha256)
        if weights.is_file() and weights.stat().st_size == manifest.model.n_bytes:
            return KeptModel(name, weights, manifest.file_type)
    except (VkllmError, OSError):
        pass
    return None


def _files_at_depth(folder: Path, depth: int) -> Iterator[Path]:
    """What lies so many folders deep, by name; what cannot be read is left out."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, MOST_MANIFESTS))
    except OSError:
        return
    for name in names:
        if depth == 1:
            yield folder / name
        else:
            yield from _files_at_depth(folder / name, depth - 1)


def _small_file(path: Path) -> bytes:
    """The content of a file of JSON; nothing where there is none, or a longer one."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_JSON_BYTES:
            return b""
        return path.read_bytes()
    except OSError:
        return b""


def _document(data: bytes) -> dict[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    return document


def _blob(layer: Mapping[str, Any]) -> Blob:
    match = _DIGEST.fullmatch(str(layer["digest"]))
    n_bytes = layer["size"]
    if match is None or isinstance(n_bytes, bool) or not isinstance(n_bytes, int) or not 0 <= n_bytes < 1 << 60:
        raise ValueError("a layer has no sha256 or no size")
    return Blob(match[1], n_bytes)
