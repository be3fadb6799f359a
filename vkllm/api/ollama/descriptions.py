"""Models as ollama's API describes them: /api/tags, /api/show, /api/ps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vkllm.api.file_facts import FileFacts

VERSION = "0.40.12"
"""The version of ollama whose interface this is: clients refuse versions that are too old for them."""

_MODELFILE = "# vkllm runs the file below; its sampling parameters and chat template are the file's own.\nFROM {path}\n"


def details(facts: FileFacts) -> dict[str, Any]:
    """Of what kind a model is."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": facts.size_name,
        "quantization_level": facts.quantization,
    }


def tag(name: str, facts: FileFacts) -> dict[str, Any]:
    """An entry of /api/tags."""
    return {
        "name": name,
        "model": name,
        "modified_at": _modified(facts.path),
        "size": facts.n_bytes,
        "digest": digest(facts.path),
        "details": details(facts),
    }


def running(
    name: str, facts: FileFacts, *, n_ctx: int, total_bytes: int, local_bytes: int, expires_s: float | None
) -> dict[str, Any]:
    """An entry of /api/ps. expires_s: Unix time at which the model is unloaded unless it is used; None for never."""
    expires = datetime.max.replace(tzinfo=UTC) if expires_s is None else datetime.fromtimestamp(expires_s, UTC)
    return {
        "name": name,
        "model": name,
        "size": total_bytes,
        "digest": digest(facts.path),
        "details": details(facts),
        "expires_at": expires.isoformat().replace("+00:00", "Z"),
        "size_vram": local_bytes,
        "context_length": n_ctx,
    }


def shown(facts: FileFacts, parameters: Mapping[str, Any], *, is_verbose: bool = False) -> dict[str, Any]:
    """The body of /api/show. parameters: the sampling parameters that the file recommends."""
    metadata = facts.metadata
    info: dict[str, Any] = {"general.parameter_count": facts.n_params}
    for key in metadata:
        if key.startswith(("GGUF.", "split.")) or key == "tokenizer.chat_template":
            continue
        info[key] = None if metadata.is_array(key) and not is_verbose else metadata.plain(key)
    return {
        "license": facts.licence,
        "modelfile": _MODELFILE.format(path=facts.path.name),
        "parameters": "\n".join(f"{name:<30} {json.dumps(value)}" for name, value in parameters.items()),
        "template": facts.template,
        "details": details(facts),
        "model_info": info,
        "capabilities": list(facts.capabilities),
        "modified_at": _modified(facts.path),
    }


def digest(path: Path) -> str:
    """A name of a model's file in the form of a sha256; files of many gigabytes are not read for it."""
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()


def _modified(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat().replace("+00:00", "Z")
