"""What there is to tell of a model, for programs and for people: those that are here, and those of the catalogue.

It reads a file's header, and the name of a format off its tensors; it prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vkllm.errors import VkllmError
from vkllm.faces.terminal import counted, size

if TYPE_CHECKING:
    from vkllm.formats.gguf import ModelFile
    from vkllm.store import InstalledModel
    from vkllm.store.catalog import CatalogEntry


def fields_of_installed(model: InstalledModel) -> dict[str, Any]:
    """A model on this machine, for JSON. Sizes in bytes; null is not known."""
    used = model.last_used_s
    return {
        "name": model.name,
        "description": model.entry.description if model.entry else None,
        "licence": model.entry.licence if model.entry else None,
        "n_params": model.entry.n_params if model.entry else None,
        "n_bytes": model.n_bytes,
        "memory_bytes": model.entry.memory_bytes if model.entry else None,
        "format": main_format_of(model),
        "path": str(model.paths[0]),
        "tool": model.tool,
        "last_used": None if used is None else datetime.fromtimestamp(used).astimezone().isoformat("T", "seconds"),
    }


def fields_of_entry(entry: CatalogEntry) -> dict[str, Any]:
    """A model of the catalogue that is not here, with the same keys."""
    return {
        "name": entry.name,
        "description": entry.description,
        "licence": entry.licence,
        "n_params": entry.n_params,
        "n_bytes": entry.n_bytes,
        "memory_bytes": entry.memory_bytes,
        "format": None,
        "path": None,
        "tool": None,
        "last_used": None,
    }


def fields_of_file(name: str, file: ModelFile, entry: CatalogEntry | None) -> dict[str, Any]:
    """What a model's files say, for JSON."""
    import math

    from vkllm.api.loading import read_text
    from vkllm.engine.file_sampling import file_sampling
    from vkllm.model.architectures import FAMILIES, model_spec
    from vkllm.model.graph import of_predictors
    from vkllm.model.memory.needs import active_parameters

    metadata, tensors = file.metadata, file.tensors.values()
    sampling = file_sampling(metadata)
    architecture = metadata.string("general.architecture", "none")
    formats: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        count = formats.setdefault(tensor.format, {"n_tensors": 0, "n_bytes": 0})
        count["n_tensors"] += 1
        count["n_bytes"] += tensor.n_bytes
    spec, problem = None, None
    try:
        spec = model_spec(metadata, file.tensors)
        read_text(file.paths[0], metadata, spec)
    except VkllmError as error:
        problem = str(error)
    predictors = () if spec is None else spec.predictors
    mixtures = () if spec is None else [layer.experts for layer in spec.layers if layer.experts is not None]
    return {
        "name": name,
        "title": metadata.string("general.name", None),
        "description": entry.description if entry else None,
        "architecture": architecture,
        "family": FAMILIES[architecture].models if architecture in FAMILIES else None,
        "n_params": sum(math.prod(tensor.shape) for tensor in tensors),
        "n_active_params": None if spec is None else active_parameters(spec),
        "n_experts": max((mixture.n_experts for mixture in mixtures), default=0),
        "n_experts_used": max((mixture.n_used for mixture in mixtures), default=0),
        "n_bytes": sum(path.stat().st_size for path in file.paths),
        "memory_bytes": entry.memory_bytes if entry else None,
        "formats": formats,
        "n_predictors": len(predictors),
        "predictor_bytes": 0 if spec is None else sum(file.tensors[name].n_bytes for name in of_predictors(spec)),
        "biases": [name for name in file.tensors if name.endswith(".bias")],
        "n_ctx_train": metadata.integer(f"{architecture}.context_length", None),
        "n_layers": metadata.integer(f"{architecture}.block_count", None),
        "d_model": metadata.integer(f"{architecture}.embedding_length", None),
        "sampling": sampling.values,
        "unused_sampling": sampling.unused,
        "has_chat_template": "tokenizer.chat_template" in metadata,
        "licence": metadata.string("general.license", None) or (entry.licence if entry else None),
        "paths": [str(path) for path in file.paths],
        "problem": problem,
    }


def lines_of(fields: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The fields for people, those that are known."""
    formats = fields.get("formats", {})
    paths = fields.get("paths", [])
    keys = ("name", "title", "description", "architecture", "family", "licence")
    names = {key: str(fields.get(key) or "") for key in keys}
    texts = names | {
        "parameters": _number(fields["n_params"]),
        "experts": f"{n_experts}, {fields['n_experts_used']} of them for each token, which is computed with "
        f"{_number(fields['n_active_params'])} parameters"
        if (n_experts := fields.get("n_experts"))
        else "",
        "size": size(fields["n_bytes"]),
        "memory": f"{size(memory)} with a context of 4096 tokens" if (memory := fields["memory_bytes"]) else "",
        "formats": ", ".join(f"{n['n_tensors']} {name} ({size(n['n_bytes'])})" for name, n in formats.items()),
        "biases": _some(fields.get("biases", [])),
        "drafts": f"{counted(n, 'head')} for further tokens ({size(fields['predictor_bytes'])}); see --spec"
        if (n := fields.get("n_predictors", 0))
        else "",
        "context": counted(fields["n_ctx_train"], "token") if fields.get("n_ctx_train") else "",
        "layers": str(fields.get("n_layers") or ""),
        "width": str(fields.get("d_model") or ""),
        "sampling": ", ".join(f"{name} {value:g}" for name, value in fields.get("sampling", {}).items()),
        "unused": ", ".join(f"{name} {text}" for name, text in fields.get("unused_sampling", {}).items()),
        "chat template": ""
        if not paths
        else "yes"
        if fields["has_chat_template"]
        else "no: a base model, or an old file",
        "path": f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}" if paths else "",
        "runs": "" if not paths else "yes" if fields["problem"] is None else f"no: {fields['problem']}",
        "here": "" if paths else f"no; `vkllm pull {fields['name']}` fetches it",
    }
    return [(key, " ".join(text.split())) for key, text in texts.items() if text]


def _number(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e9 else f"{n / 1e6:.1f} million"


def _some(names: list[str]) -> str:
    """How many names there are, and the first."""
    if not names:
        return ""
    return names[0] if len(names) == 1 else f"{len(names)}, from {names[0]} on"


def main_format_of(model: InstalledModel) -> str:
    """What the file's name says, or else the format that holds most of its bytes."""
    from vkllm.formats.gguf import ModelFile, main_format

    if model.quantization is not None:
        return model.quantization
    try:
        return main_format(ModelFile.open(model.paths[0]).tensors) or "no tensors"
    except VkllmError:
        return "damaged"
