"""`vkllm pull`, `list`, `show` and `rm`: getting models, and looking at those that are here.

It knows the terminal and how to tell people of models; `vkllm.store` knows what they are called and where they lie.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkllm.errors import InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.terminal import complain, interruptible, loading_bar, print_json, size

if TYPE_CHECKING:
    from vkllm.formats.gguf import ModelFile
    from vkllm.resources import CatalogEntry
    from vkllm.store import InstalledModel

_Name = Annotated[str, typer.Argument(help="From `vkllm list`, hf.co/OWNER/REPO[:Q4_K_M], an address, or a path.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    app.command("pull")(pull)
    app.command("list")(list_models)
    app.command("show")(show)
    app.command("rm")(remove)


def ensure_here(name: str) -> None:
    """Offers to fetch a model that is not on this machine; the small default model is fetched without a question.

    Raises ModelNotFound with the command that fetches it, where nobody is there to answer or the answer is no.
    """
    from vkllm import store
    from vkllm.resources import CatalogEntry, WheelSource

    if store.local_model(name) is not None:
        return
    source = store.source_of(name)
    entry = source if isinstance(source, CatalogEntry) else None
    if entry is not None and isinstance(entry.source, WheelSource):
        return
    of_size = "" if entry is None else f" ({size(entry.n_bytes)})"
    can_ask = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if not can_ask or not _says_yes(f"{name}{of_size} is not on this machine. Fetch it? [Y/n] ", default=True):
        raise ModelNotFound(f"{name} is not on this machine; `vkllm pull {name}` fetches it{of_size}.")
    with loading_bar() as on_progress:
        store.pull(name, on_progress=on_progress)


def pull(name: _Name) -> None:
    """Fetch a model, unless it is here, and print its path.

    A download that was stopped goes on where it was. Models of Hugging Face go into the cache that other tools share.
    A repository without a quantization means its Q4_K_M, or its Q4_0, or the only model in it.

    vkllm pull llama-3.2-1b

    vkllm pull hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q5_K_M

    vkllm pull hf:TheBloke/Llama-2-7B-Chat-GGUF/llama-2-7b-chat.Q4_0.gguf

    vkllm pull https://example.org/model.gguf
    """
    from vkllm import store
    from vkllm.formats.gguf import ModelFile
    from vkllm.model.spec import model_spec

    with interruptible():
        with loading_bar() as on_progress:
            path = store.pull(name, on_progress=on_progress)
        print(path)
        try:
            file = ModelFile.open(path)
            model_spec(file.metadata, file.tensors)
        except VkllmError as error:
            complain("warning", f"it is here, but vkllm cannot run it: {error}")


def list_models(
    show_all: Annotated[bool, typer.Option("-a", "--all", help="Also those that `vkllm pull` can fetch.")] = False,
    json: _Json = False,
) -> None:
    """List the models on this machine, with their names for the other commands; other .gguf files work by their path.

    Models that other tools have fetched from Hugging Face are in the list too.
    """
    from vkllm.resources import catalog
    from vkllm.store import installed

    here = installed()
    names = {model.name for model in here}
    others = [entry for entry in catalog() if entry.name not in names] if show_all else []
    with interruptible():
        if json:
            print_json([_fields(model) for model in here] + [_fields_of_entry(entry) for entry in others])
            return
        if here:
            rows = [
                (model.name, size(model.n_bytes), _format(model), _ago(model.last_used_s), _short(model.paths[0]))
                for model in here
            ]
            _print_table(("NAME", "SIZE", "FORMAT", "USED", "WHERE"), rows)
        else:
            print("There are no models here yet.")
        if others:
            print("\nTo fetch with `vkllm pull NAME` (MEMORY: with a context of 4096 tokens):\n")
            rows = [
                (entry.name, size(entry.n_bytes), size(entry.memory_bytes), entry.licence, entry.description)
                for entry in others
            ]
            _print_table(("NAME", "SIZE", "MEMORY", "LICENCE", "DESCRIPTION"), rows)
        elif not show_all and sys.stdout.isatty():
            print("\n`vkllm list --all` shows the models to fetch.")


def show(name: _Name, json: _Json = False) -> None:
    """Show what a model is: architecture, parameters, formats, context, chat template, licence."""
    from vkllm.formats.gguf import ModelFile
    from vkllm.resources import CatalogEntry
    from vkllm.store import local_model, source_of

    source = source_of(name)
    entry = source if isinstance(source, CatalogEntry) else None
    path = local_model(name)
    if path is not None:
        fields = _fields_of_file(name, ModelFile.open(path), entry)
    elif entry is not None:
        fields = _fields_of_entry(entry)
    else:
        raise ModelNotFound(f"{name} is not on this machine; `vkllm pull {name}` fetches it.")
    with interruptible():
        if json:
            print_json(fields)
            return
        for key, text in _lines(fields):
            print(f"{key:14}{text}")


def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names from `vkllm list`.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete models from this machine: those of `vkllm list`, and no other files."""
    from vkllm import store

    models = [_installed(name) for name in names]
    with interruptible():
        for model in models:
            if not yes:
                if not sys.stdin.isatty():
                    raise InvalidParameter("`vkllm rm` asks before it deletes, and nobody is there; -y means yes")
                where = f"{size(model.n_bytes)} in {_short(model.paths[0])}"
                if not _says_yes(f"Delete {model.name} ({where})? [y/N] ", default=False):
                    continue
            store.remove(model)
            print(f"{model.name} is deleted; {size(model.n_bytes)} are free again.")


def _installed(name: str) -> InstalledModel:
    """The model of `vkllm list` that a name or a path stands for."""
    from vkllm.store import installed, local_model

    path = local_model(name)
    if path is None:
        raise ModelNotFound(f"{name} is not on this machine.")
    for model in installed():
        if path in model.paths:
            return model
    raise InvalidParameter(f"{name} was not fetched by vkllm, so it does not delete it; delete {path} yourself")


def _fields(model: InstalledModel) -> dict[str, Any]:
    """A model on this machine, for JSON. Sizes in bytes; null is not known."""
    used = model.last_used_s
    return {
        "name": model.name,
        "description": model.entry.description if model.entry else None,
        "licence": model.entry.licence if model.entry else None,
        "n_params": model.entry.n_params if model.entry else None,
        "n_bytes": model.n_bytes,
        "memory_bytes": model.entry.memory_bytes if model.entry else None,
        "format": _format(model),
        "path": str(model.paths[0]),
        "last_used": None if used is None else datetime.fromtimestamp(used).astimezone().isoformat("T", "seconds"),
    }


def _fields_of_entry(entry: CatalogEntry) -> dict[str, Any]:
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
        "last_used": None,
    }


def _fields_of_file(name: str, file: ModelFile, entry: CatalogEntry | None) -> dict[str, Any]:
    """What a model's files say, for JSON."""
    import math

    from vkllm.model.spec import model_spec

    metadata, tensors = file.metadata, file.tensors.values()
    architecture = metadata.string("general.architecture")
    formats: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        count = formats.setdefault(tensor.format, {"n_tensors": 0, "n_bytes": 0})
        count["n_tensors"] += 1
        count["n_bytes"] += tensor.n_bytes
    try:
        model_spec(metadata, file.tensors)
        problem = None
    except VkllmError as error:
        problem = str(error)
    return {
        "name": name,
        "title": metadata.string("general.name", None),
        "description": entry.description if entry else None,
        "architecture": architecture,
        "n_params": sum(math.prod(tensor.shape) for tensor in tensors),
        "n_bytes": sum(path.stat().st_size for path in file.paths),
        "memory_bytes": entry.memory_bytes if entry else None,
        "formats": formats,
        "n_ctx_train": metadata.integer(f"{architecture}.context_length", None),
        "n_layers": metadata.integer(f"{architecture}.block_count", None),
        "d_model": metadata.integer(f"{architecture}.embedding_length", None),
        "has_chat_template": "tokenizer.chat_template" in metadata,
        "licence": metadata.string("general.license", None) or (entry.licence if entry else None),
        "paths": [str(path) for path in file.paths],
        "problem": problem,
    }


def _lines(fields: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The fields for people, those that are known."""
    formats = fields.get("formats", {})
    paths = fields.get("paths", [])
    names = {key: str(fields.get(key) or "") for key in ("name", "title", "description", "architecture", "licence")}
    texts = names | {
        "parameters": f"{n / 1e9:.2f} billion" if (n := fields["n_params"]) >= 1e9 else f"{n / 1e6:.1f} million",
        "size": size(fields["n_bytes"]),
        "memory": f"{size(memory)} with a context of 4096 tokens" if (memory := fields["memory_bytes"]) else "",
        "formats": ", ".join(f"{n['n_tensors']} {name} ({size(n['n_bytes'])})" for name, n in formats.items()),
        "context": f"{fields['n_ctx_train']} tokens" if fields.get("n_ctx_train") else "",
        "layers": str(fields.get("n_layers") or ""),
        "width": str(fields.get("d_model") or ""),
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


def _format(model: InstalledModel) -> str:
    """What the file's name says, or else the format that holds most of its bytes."""
    from vkllm.formats.gguf import ModelFile, main_format

    if model.quantization is not None:
        return model.quantization
    try:
        return main_format(ModelFile.open(model.paths[0]).tensors) or "no tensors"
    except VkllmError:
        return "damaged"


def _ago(then_s: float | None) -> str:
    """How long ago a Unix time is, for people."""
    if then_s is None:
        return "never"
    passed_s = time.time() - then_s
    for unit, unit_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (n := int(passed_s // unit_s)) > 0:
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"


def _short(path: Path) -> str:
    """A path, from the home folder where it is in it."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _says_yes(question: str, *, default: bool) -> bool:
    try:
        answer = input(question).strip().lower()
    except EOFError:
        print()
        return False
    return default if not answer else answer in ("y", "yes")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
