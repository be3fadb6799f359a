"""What is typed after `vkllm` and is no command of it: commands of other programs, options, names of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.arguments import own_options
from vkllm.faces.cli.llama_options import HUB_FILE, HUB_REPO, LLAMA_OPTIONS, OTHER_NAMES

_SAME = {
    "ls": "list",
    "rmi": "rm",
    "remove": "rm",
    "delete": "rm",
    "download": "pull",
    "generate": "run",
    "info": "show",
    "server": "serve",
    "start": "serve",
}
_NO_PROCESSES = "vkllm keeps no model loaded between commands; Ctrl-C stops one that runs"
_NO_REGISTRY = "vkllm has no registry of its own; `hf auth login` is for Hugging Face"
_NO_FILES_MADE = "vkllm makes no model files; use llama.cpp's convert_hf_to_gguf.py and llama-quantize"
_EMBEDDINGS = "embeddings come from `vkllm serve`, and from `LLM(...).embed(...)` in Python"
_INSTEAD = {
    **dict.fromkeys(("ps", "stop"), _NO_PROCESSES),
    **dict.fromkeys(("push", "signin", "signout", "login", "logout"), _NO_REGISTRY),
    **dict.fromkeys(("convert", "quantize", "finetune", "train", "export", "imatrix", "export-lora"), _NO_FILES_MADE),
    "create": "vkllm makes no models of Modelfiles; give -sys and other options to `vkllm run`, or `/save` a chat",
    "cp": "vkllm does not copy models; a .gguf file runs from wherever it lies: `vkllm run FILE.gguf`",
    **dict.fromkeys(("embed", "embeddings", "embedding"), _EMBEDDINGS),
    "tokenize": "the command line does not tokenize; in Python `LLM(...).tokenize(...)` does",
    "launch": "vkllm starts no other programs; docs/embed.md shows how programs use it",
    "search": "`vkllm list --all` lists models with short names; others are found on huggingface.co",
    "complete": "`vkllm run --raw MODEL PROMPT` continues a text",
    "update": "`pip install --upgrade vkllm` updates it, or `git pull` and `make run` in a checkout",
    "version": "`vkllm --version` prints the version",
}


class Commands(TyperGroup):
    """The commands of vkllm, with a sentence for what is none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises InvalidParameter where options of a command come before it."""
        name = args[0].partition("=")[0] if args else ""
        if not ctx.resilient_parsing and name.startswith("-") and name not in own_options(self, ctx):
            of_run = own_options(self.commands["run"], ctx)
            if name in {*of_run, *LLAMA_OPTIONS, *OTHER_NAMES, *HUB_REPO, *HUB_FILE}:
                raise InvalidParameter(
                    f"name a command before {name}, as in `vkllm run {name} ...`; see `vkllm --help`"
                )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names. Raises InvalidParameter for one of another program, or a model."""
        if not ctx.resilient_parsing:
            name = args[0]
            if name == "help":
                if not args[1:]:
                    print(ctx.get_help())
                    raise typer.Exit
                args = [args[1], "--help"]
                name = args[0]
            if name not in self.commands:
                args = [_SAME.get(name, name), *args[1:]]
            if args[0] in _INSTEAD:
                raise InvalidParameter(f"there is no `vkllm {name}`: {_INSTEAD[name]}")
            if args[0] not in self.commands and _is_model(name):
                raise InvalidParameter(f"{name} is a model and no command; `vkllm run {name}` runs it")
        return super().resolve_command(ctx, args)


def _is_model(name: str) -> bool:
    if (
        name.endswith(".gguf")
        or name.startswith(("hf.co/", "hf:", "ollama:", "lmstudio:", "llama.cpp:"))
        or ("/" in name and Path(name).exists())
    ):
        return True
    from vkllm.store.catalog import entry_of

    return entry_of(name) is not None
