"""Models of ollama's registry, and of others that speak its protocol, in a folder of vkllm's cache.

Knows the addresses of manifests and blobs; what a manifest says is known in store/ollama.py. Of a manifest, the file of
weights is used: it has its own tokenizer, template and stop tokens, and ollama's templates are of another language.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vkllm.errors import ModelNotFound
from vkllm.store.downloads.files import (
    BrokenOff,
    OnProgress,
    Refused,
    RemoteFile,
    chunks_of,
    download,
    response_to,
    told_for,
)
from vkllm.store.ollama import (
    DEFAULT_HOST,
    LARGEST_JSON_BYTES,
    Blob,
    Manifest,
    OllamaName,
    blob_path,
    manifest_digests,
    manifest_path,
    own_folder,
    read_manifest,
)

SETTING = "VKLLM_OLLAMA_REGISTRY"
"""The environment variable with the address of a registry that stands for ollama's own."""
_MANIFESTS = "application/vnd.ollama.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"


def ollama_file(name: OllamaName) -> RemoteFile:
    """The file of weights of a model in its registry. Raises ModelNotFound, UnsupportedModel."""
    return _remote(name, _manifest(name)[0].model)


def fetch_from_ollama(name: OllamaName, on_progress: OnProgress) -> Path:
    """Fetches a model. An unfinished download stays in the cache for the next attempt.

    Raises ModelNotFound, UnsupportedModel.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # but documented

    manifest, config = _manifest(name)
    folder, weights = own_folder(), blob_path(own_folder(), manifest.model.sha256)
    with told_for(str(name), folder, "VKLLM_CACHE"):
        weights.parent.mkdir(parents=True, exist_ok=True)
        lock = folder / ".locks" / f"{weights.name}.lock"
        lock.parent.mkdir(exist_ok=True)
        with WeakFileLock(lock):
            if not weights.exists() or weights.stat().st_size != manifest.model.n_bytes:
                part = weights.with_name(f"{weights.name}.incomplete")
                download(_remote(name, manifest.model), part, weights, on_progress)
            if manifest.config is not None:
                _write(blob_path(folder, manifest.config.sha256), config)
            _write(manifest_path(folder, name), manifest.kept())  # The last one: from now on the model is here.
    return weights


def remove_from_ollama(name: OllamaName) -> None:
    """Deletes a model that vkllm has fetched, and the blobs that no other one needs. Raises OSError."""
    manifest_path(own_folder(), name).unlink(missing_ok=True)
    in_use = manifest_digests(own_folder())
    for blob in (own_folder() / "blobs").glob("sha256-*"):
        if blob.suffix != ".incomplete" and blob.name.removeprefix("sha256-") not in in_use:
            blob.unlink()


def remove_unfinished_from_ollama() -> int:
    """Deletes what unfinished downloads have left; returns the bytes. Raises OSError.

    A part file does not say which name it belongs to, so those of all are deleted.
    """
    parts = sorted((own_folder() / "blobs").glob("*.incomplete"))
    n_bytes = sum(part.stat().st_size for part in parts)
    for part in parts:
        part.unlink()
    return n_bytes


def registry_url(name: OllamaName) -> str:
    """The address of a model in its registry."""
    base = f"https://{name.host}"
    if name.host == DEFAULT_HOST and (chosen := os.environ.get(SETTING)):
        base = chosen.rstrip("/") if "://" in chosen else f"https://{chosen.rstrip('/')}"
    return f"{base}/v2/{name.namespace}/{name.model}"


def _manifest(name: OllamaName) -> tuple[Manifest, bytes]:
    """The manifest, and the content of the configuration that it names."""
    url = registry_url(name)
    contents: dict[str, bytes] = {}

    def small_blob(sha256: str) -> bytes:
        contents[sha256] = _small(name, f"{url}/blobs/sha256:{sha256}")
        if hashlib.sha256(contents[sha256]).hexdigest() != sha256:
            raise ModelNotFound(
                f"{name} could not be fetched: {url} sends another file than the one asked for (its sha256 differs); "
                "try again, and if it happens again do not use this source."
            )
        return contents[sha256]

    manifest = read_manifest(name, _small(name, f"{url}/manifests/{name.tag}"), small_blob)
    return manifest, contents[manifest.config.sha256] if manifest.config else b""


def _small(name: OllamaName, url: str) -> bytes:
    """A file of JSON. Raises ModelNotFound."""
    data = b""
    try:
        with response_to(str(name), url, {"Accept": _MANIFESTS}) as response:
            for chunk in chunks_of(response):
                data += chunk
                if len(data) > LARGEST_JSON_BYTES:
                    raise ModelNotFound(f"{name} could not be fetched: {url} is no manifest; check the name.")
    except Refused as error:
        if error.status == 404 and name.host == DEFAULT_HOST:
            page = f"library/{name.model}" if name.namespace == "library" else f"{name.namespace}/{name.model}"
            raise ModelNotFound(
                f"{name}: ollama's registry has no such model or tag; https://ollama.com/{page}/tags shows what it has."
            ) from error
        raise
    except BrokenOff as error:
        raise ModelNotFound(f"{name} could not be fetched: {error}; check the network and try again.") from error
    return data


def _remote(name: OllamaName, blob: Blob) -> RemoteFile:
    url = f"{registry_url(name)}/blobs/sha256:{blob.sha256}"
    return RemoteFile(str(name), url, blob.n_bytes, blob.sha256, "VKLLM_CACHE")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
