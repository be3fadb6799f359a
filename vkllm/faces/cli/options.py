"""How commands are declared: dataclasses whose fields are options, models by place or by -m, examples below the help.

It knows Typer, and not what the options do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.cli import completion
from vkllm.faces.cli.arguments import OrderedCommand
from vkllm.faces.terminal import ending

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A name from `vkllm list`, a .gguf file, or a folder with one.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="The model, as an option; -hf OWNER/REPO names one on Hugging Face.",
        autocompletion=completion.models,
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "-dev",
        "--device",
        metavar="DEVICE",
        help="Index or part of the name, see `vkllm devices`; several with commas.",
        rich_help_panel="Loading",
        autocompletion=completion.devices,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_command(
    app: typer.Typer,
    command: Callable[..., None],
    *lines: str,
    name: str | None = None,
    panel: str | None = None,
    kind: type[OrderedCommand] = OrderedCommand,
) -> None:
    """Adds a command with lines of examples below its help. A dataclass among its parameters is options of its own.

    kind: how its command line is read."""
    # Rich keeps line ends, so the lines of a paragraph are joined to look well at any width.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    declare = app.command(name, cls=kind, help=_plain(text), epilog=examples(*lines), rich_help_panel=panel)
    declare(_flat(command))


def examples(*lines: str) -> str:
    """Commands to be shown below a help text."""
    return "\n".join(("[bold]Examples[/bold]", *map(_plain, lines)))


def _plain(text: str) -> str:
    """Text that Rich shows as it is; it would take a word in brackets for a style."""
    return text.replace("[", r"\[")


def _flat(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the fields of its dataclasses as parameters of its own, and its end seen to."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            types = get_type_hints(group, include_extras=True)
            parameters += [
                parameter.replace(name=field.name, annotation=types[field.name], default=field.default)
                for field in fields(group)
            ]
        else:
            parameters.append(parameter)

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        with ending():
            command(**given)

    run.__name__ = command.__name__
    # Typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def chosen(by_place: str | None, by_option: str | None, default: str | None = None) -> str:
    """The one model that was named, by its place or with -m. Raises InvalidParameter."""
    if by_place and by_option:
        raise InvalidParameter(f"two models are named, {by_place} and {by_option} with -m; name one of them")
    from vkllm.store import looks_like_path

    if by_place and " " in by_place and not looks_like_path(by_place):
        raise InvalidParameter(f"{by_place[:40]!r} seems to be a prompt; name a model before it")
    model = by_place or by_option or default
    if model is None:
        raise InvalidParameter("name a model; `vkllm list` shows those that are here, `vkllm list --all` more to fetch")
    return model
