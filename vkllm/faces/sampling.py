"""How answers are drawn, as people type it: options of commands, and parameters of the chat's /set.

It knows the names that llama.cpp and ollama use; the values become fields of `SamplingParams`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.prompt import read_text, unescaped
from vkllm.parameters import nearest_name

# Field of SamplingParams -> the option that sets it.
OPTIONS = {
    "max_tokens": "-n",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repetition_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "penalty_window": "--repeat-last-n",
    "seed": "--seed",
    "stop": "--stop",
}
_INTEGERS = {"max_tokens", "top_k", "penalty_window", "seed"}
# What llama.cpp and ollama call the same.
_OTHER_NAMES = {
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
}
FORMS = {"json_schema", "regex", "grammar"}
"""The fields of SamplingParams that say what form an answer must have."""
ANY_OBJECT = '{"type": "object"}'
"""The schema of --format json: any JSON object."""


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Sampling", show_default=False, **more)


@dataclass(frozen=True)
class SamplingFlags:
    """Options of the commands that answer; the names are those of the fields of SamplingParams."""

    max_tokens: Annotated[
        int | None, _option("-n", "--n-predict", help="Limit the answer to N tokens; -1 is no limit.")
    ] = None
    temperature: Annotated[
        float | None, _option("--temp", "--temperature", help="Randomness; 0 always takes the likeliest token.")
    ] = None
    top_k: Annotated[int | None, _option("--top-k", help="Choose among the K likeliest tokens; 0 is off.")] = None
    top_p: Annotated[
        float | None,
        _option("--top-p", help="Choose among the likeliest tokens that together have this probability; 1 is off."),
    ] = None
    min_p: Annotated[
        float | None,
        _option("--min-p", help="Drop tokens less likely than this fraction of the likeliest one; 0 is off."),
    ] = None
    repetition_penalty: Annotated[
        float | None, _option("--repeat-penalty", help="Make tokens that occurred less likely; 1 is off.")
    ] = None
    presence_penalty: Annotated[
        float | None,
        _option("--presence-penalty", help="Subtract this from the logits of tokens that occurred; 0 is off."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _option("--frequency-penalty", help="Subtract this for each time that a token occurred; 0 is off."),
    ] = None
    penalty_window: Annotated[
        int | None, _option("--repeat-last-n", help="How many of the last tokens the penalties look at; -1 is all.")
    ] = None
    seed: Annotated[
        int | None, _option("-s", "--seed", help="The same seed gives the same answer; -1 is a random one.")
    ] = None
    stop: Annotated[list[str] | None, _option("--stop", metavar="TEXT", help="End the answer before this text.")] = None
    escapes: Annotated[
        bool | None,
        _option(
            "-e", "--escape/--no-escape", help=r"Read \n, \t and the like in -p and --stop as what they stand for."
        ),
    ] = None
    ignore_eos: Annotated[bool, _option("--ignore-eos", help="Go on where the model would end its answer.")] = False
    context_shift: Annotated[
        bool, _option("--context-shift", help="When the context is full, drop the older half of the chat and continue.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Fields of SamplingParams by name, those that were given. Raises InvalidParameter."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        del given["escapes"]
        given["stop"] = tuple(self.unescaped(text) for text in self.stop or ()) or None
        for name in ("context_shift", "ignore_eos"):
            given[name] = given[name] or None
        return checked(given)

    def unescaped(self, text: str) -> str:
        """The text of -p or --stop, in which llama.cpp reads escapes unless --no-escape was given."""
        return text if self.escapes is False else unescaped(text)


def _structure(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Structured output", show_default=False, **more)


@dataclass(frozen=True)
class StructureFlags:
    """Options that say what form an answer must have; one of them at most."""

    json_schema: Annotated[
        str | None,
        _structure(
            "-j", "--json-schema", metavar="SCHEMA", help="Answer with JSON of this schema, given as text or as a file."
        ),
    ] = None
    json_schema_file: Annotated[
        Path | None, _structure("-jf", "--json-schema-file", metavar="FILE", help="A file with such a schema.")
    ] = None
    output_format: Annotated[
        str | None,
        _structure("--format", metavar="json", help="Answer with any JSON object.", autocompletion=lambda: ["json"]),
    ] = None
    regex: Annotated[
        str | None,
        _structure("--regex", metavar="REGEX", help="Answer with text that matches this regular expression."),
    ] = None
    grammar: Annotated[
        str | None,
        _structure(
            "--grammar",
            metavar="GRAMMAR",
            help="Answer as this GBNF or Lark grammar allows, given as text or as a file.",
        ),
    ] = None
    grammar_file: Annotated[
        Path | None, _structure("--grammar-file", metavar="FILE", help="A file with such a grammar.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Fields of SamplingParams by name. Raises InvalidParameter, also if more than one was given or it is wrong."""
        form = self._form()
        if form:
            from vkllm.text.grammar import answer_grammar

            answer_grammar(**form)  # found wrong before a model is loaded for it
        return form

    def _form(self) -> dict[str, Any]:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) > 1:
            raise InvalidParameter("an answer has one form; give one schema, format, regular expression or grammar")
        if self.json_schema is not None:
            return {
                "json_schema": _schema(
                    _text_or_file(self.json_schema, is_text=self.json_schema.lstrip().startswith("{"))
                )
            }
        if self.json_schema_file is not None:
            return {"json_schema": _schema(read_text(self.json_schema_file))}
        if self.output_format is not None:
            return {"json_schema": schema_of_format(self.output_format)}
        if self.regex is not None:
            return {"regex": self.regex}
        if self.grammar is not None:
            is_text = any(sign in self.grammar for sign in ("::=", ": ", "\n"))
            return {"grammar": _text_or_file(self.grammar, is_text=is_text)}
        if self.grammar_file is not None:
            return {"grammar": read_text(self.grammar_file)}
        return {}


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not None, as SamplingParams takes them; errors name the option and not the field.

    As in llama.cpp, -1 is no limit of tokens (so is -2, up to the end of the context) and a random seed, and a top-k
    below 0 is off.
    """
    from vkllm import SamplingParams

    given = {name: value for name, value in values.items() if value is not None}
    for name, none in (("max_tokens", (-1, -2)), ("seed", (-1,))):
        if given.get(name) in none:
            del given[name]
    if given.get("top_k", 0) < 0:
        given["top_k"] = 0
    try:
        SamplingParams(**given)
    except InvalidParameter as error:
        name, _, rest = str(error).partition(" ")
        raise InvalidParameter(f"{OPTIONS.get(name, name)} {rest}") from None
    return given


def parameter(name: str, words: list[str]) -> tuple[str, Any]:
    """The field of SamplingParams and its value that the words of `/set parameter NAME VALUE` mean.

    Raises InvalidParameter.
    """
    key = _OTHER_NAMES.get(name, name)
    if key not in OPTIONS:
        near = nearest_name(name, [*OPTIONS, *_OTHER_NAMES, "num_ctx", "num_gpu"])
        advice = f"did you mean {near}?" if near else "`/? set` lists those that there are"
        raise InvalidParameter(f"there is no parameter {name}; {advice}")
    if key == "stop":
        return key, tuple(words)
    try:
        [word] = words
        value = int(word) if key in _INTEGERS else float(word)
    except ValueError:
        raise InvalidParameter(f"{name} takes a number, not {' '.join(words)!r}") from None
    try:
        return key, checked({key: value}).get(key)
    except InvalidParameter as error:
        raise InvalidParameter(f"{name} {str(error).partition(' ')[2]}") from None


def schema_of_format(name: str) -> str:
    """The JSON schema of ollama's formats. Raises InvalidParameter."""
    if name != "json":
        raise InvalidParameter(
            f"the format can be json, not {name!r}; for another form give --json-schema or --grammar"
        )
    return ANY_OBJECT


def _text_or_file(text: str, *, is_text: bool) -> str:
    return text if is_text else read_text(Path(text))


def _schema(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise InvalidParameter(f"the schema is not JSON: {error}") from None
    return text
