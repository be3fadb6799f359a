"""How a command line is read: vkllm's options, those of llama.cpp, and the words between them.

Typer reads `-tb 8` as `-t b 8`, and a value that is left out as the next option. So the command line is put in order
before Typer sees it: every option by a name that the command has, then its value; after `--` all that is no option.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.llama_options import (
    HUB_FILE,
    HUB_REPO,
    LLAMA_OPTIONS,
    OTHER_NAMES,
    SWITCH_WORDS,
    LlamaOption,
)
from vkllm.faces.terminal import complain, ending, enumerated, is_terminal

_FREE_TEXT = {"prompt", "system", "stop", "json_schema", "regex", "grammar"}
"""Parameters whose value may look like an option."""
_VERSION = "--version"


@dataclass(frozen=True)
class OwnOption:
    """An option that a command has. parameter: the name of what it sets."""

    parameter: str
    takes_value: bool
    is_repeatable: bool = False


@dataclass(frozen=True)
class Arguments:
    """A command line in order. ignored: options of llama.cpp in it that have no effect. asks_version: whether --version
    is in it, after which nothing is read."""

    line: list[str]
    ignored: list[str]
    asks_version: bool = False


class OrderedCommand(TyperCommand):
    """A command whose line is put in order before Typer reads it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the command line in order and tells a person what was ignored. Raises InvalidParameter."""
        if not ctx.resilient_parsing:  # as it is while a shell completes a line
            siblings = ctx.parent.command.commands.values() if ctx.parent else ()
            others: dict[str, str] = {}
            for command in siblings:
                others = dict.fromkeys(own_options(command, ctx), command.name) | others  # the first that has it
            read = in_order(args, own_options(self, ctx), ctx.command_path, others)
            if read.asks_version:
                from vkllm import __version__

                with ending():
                    print(__version__)
                raise typer.Exit
            if read.ignored and is_terminal(sys.stderr):
                have = "has" if len(read.ignored) == 1 else "have"
                complain("note", f"{enumerated(read.ignored)} {have} no effect in vkllm")
            args = read.line
        return super().parse_args(ctx, args)


def own_options(command: Any, context: Any) -> dict[str, OwnOption]:
    """The options of a Typer command by their names."""
    return {
        name: OwnOption(parameter.name, not parameter.is_flag, parameter.multiple)
        for parameter in command.get_params(context)
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def in_order(
    given: Sequence[str], own: Mapping[str, OwnOption], command: str, others: Mapping[str, str] | None = None
) -> Arguments:
    """The command line with every option by a name that the command has.

    own: the command's options. command: as it was called, such as "vkllm run". others: options of other commands, and
    the names of these. Raises InvalidParameter for an option of llama.cpp that would change the answer and is not in
    vkllm, for a value that is missing, and for unknown short options.
    """
    return _Reader(given, own, command, others or {}).read()


class _Reader:
    def __init__(
        self, given: Sequence[str], own: Mapping[str, OwnOption], command: str, others: Mapping[str, str]
    ) -> None:
        self._left = deque(given)
        self._own = own
        self._command = command
        self._others = others
        self._options: list[str] = []
        self._words: list[str] = []
        self._ignored: list[str] = []
        self._parameters: set[str] = set()  # set so far
        self._hub_repo: str | None = None
        self._hub_file: str | None = None

    def read(self) -> Arguments:
        while self._left:
            argument = self._left.popleft()
            name, equals, value = argument.partition("=")
            if argument == "--":
                self._words += self._left
                break
            if argument == _VERSION and _VERSION not in self._own:
                return Arguments([], [], asks_version=True)
            if not _is_option(name):
                self._words.append(argument)
            else:
                self._read_option(argument, name, value if equals else None)
        options = [*self._options, *self._model_of_hub()]
        return Arguments([*options, "--", *self._words] if self._words else options, self._ignored)

    def _read_option(self, argument: str, name: str, value: str | None) -> None:
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name not in self._own and OTHER_NAMES.get(name) in self._own:
            name = OTHER_NAMES[name]
        if option := self._own.get(name):
            self._read_own(name, option, value)
        elif name in HUB_REPO and "--model" in self._own:
            self._hub_repo = self._value_of(name, value)
        elif name in HUB_FILE and "--model" in self._own:
            self._hub_file = self._value_of(name, value)
        elif foreign := LLAMA_OPTIONS.get(name):
            self._read_foreign(name, foreign, value)
        elif (attached := re.fullmatch(r"(-[A-Za-z])(\d+)", argument)) and attached[1] in self._own:  # as in -n5
            self._read_own(attached[1], self._own[attached[1]], attached[2])
        elif other := self._others.get(name) or self._others.get(OTHER_NAMES.get(name, "")):
            raise self._error(f"{name} is an option of `vkllm {other}`, not of `{self._command}`")
        elif name.startswith("--"):
            self._options.append(argument)  # Typer names the nearest option
        else:
            hint = "; a prompt that begins with a dash comes after --" if "--prompt" in self._own else ""
            raise self._error(f"No such option: {name}{hint}")

    def _read_own(self, name: str, option: OwnOption, value: str | None) -> None:
        self._parameters.add(option.parameter)
        if option.takes_value:
            self._options += [name, self._value_of(name, value, is_text=option.parameter in _FREE_TEXT)]
        else:
            self._options.append(name if value is None else f"{name}={value}")

    def _read_foreign(self, name: str, option: LlamaOption, value: str | None) -> None:
        values = [] if value is None else [value]
        if option.is_switch:
            if not values and self._left and set(self._left[0].lower().split(",")) <= SWITCH_WORDS:
                values = [self._left.popleft()]
        else:
            while len(values) < option.n_values:
                values.append(self._value_of(name, None, is_text=option.refusal is not None))
        if option.refusal is not None and not option.is_harmless(values):
            raise InvalidParameter(f"{name} is not in vkllm: {option.refusal}")
        for part in values:
            if not option.does_take(part):
                raise self._error(f"{name} takes {option.takes}, not {part!r}")
        self._ignored.append(name)

    def _value_of(self, name: str, value: str | None, *, is_text: bool = False) -> str:
        if value is not None:
            return value
        if not self._left:
            raise self._error(f"Option '{name}' requires a value")
        if not is_text and self._is_known(self._left[0]):
            raise self._error(f"Option '{name}' requires a value before {self._left[0]}")
        return self._left.popleft()

    def _is_known(self, argument: str) -> bool:
        name = argument.partition("=")[0]
        known: Collection[str] = (_VERSION, *self._own, *OTHER_NAMES, *HUB_REPO, *HUB_FILE, *LLAMA_OPTIONS)
        return name in known

    def _model_of_hub(self) -> list[str]:
        """-hf and -hff as vkllm's name of a model."""
        if self._hub_repo is None:
            if self._hub_file is None:
                return []
            raise self._error("-hff names a file of a repository; name the repository with -hf")
        own = self._own["--model"]
        if not own.is_repeatable and own.parameter in self._parameters:
            raise InvalidParameter("two models are named, with -m and with -hf; name one of them")
        if self._hub_file is None:
            return ["--model", f"hf.co/{self._hub_repo}"]
        return ["--model", f"hf:{self._hub_repo.partition(':')[0]}/{self._hub_file}"]

    def _error(self, text: str) -> InvalidParameter:
        return InvalidParameter(f"{text}; see `{self._command} --help`")


def _is_option(name: str) -> bool:
    """Whether a word is an option, and not a dash alone or a text with spaces that begins with a dash."""
    return len(name) > 1 and name.startswith("-") and not any(map(str.isspace, name))
