"""The fields of the panel of parameters: what each is called, and how its text becomes a value and a value its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vkllm import InvalidParameter, SamplingParams
from vkllm.faces.sampling import FORMS, StructureFlags
from vkllm.text.grammar import answer_grammar


def _on_or_off(text: str) -> bool:
    return {"on": True, "true": True, "off": False, "false": False}[text.lower()]


def _texts(text: str) -> tuple[str, ...]:
    """One text as it stands there, or a JSON list of several."""
    if not text.startswith("["):
        return (text,)
    texts = json.loads(text)
    if not all(isinstance(one, str) for one in texts):
        raise ValueError(text)
    return tuple(texts)


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.replace(",", " ").split())


def _drawn_if_negative(text: str) -> int | None:
    """-1 is llama.cpp's word for a drawn seed, and for no limit of tokens."""
    return None if (number := int(text)) == -1 else number


def _schema(text: str) -> str:
    schema: str = StructureFlags(json_schema=text).arguments()["json_schema"]
    return schema


def _grammar(text: str) -> str:
    grammar: str = StructureFlags(grammar=text).arguments()["grammar"]
    return grammar


@dataclass(frozen=True)
class ParameterField:
    """name: of a field of SamplingParams, or n_ctx. read: makes its text into a value, by ValueError or KeyError if
    it cannot. default: what an empty field means, if that is not the model's own value. kind: of its text."""

    name: str
    label: str
    read: Callable[[str], Any]
    default: str | None = None
    kind: str = "a number"

    def default_of(self, defaults: SamplingParams) -> str:
        """What an empty field means, in words or as the model's value."""
        return str(getattr(defaults, self.name)) if self.default is None else self.default

    def value(self, text: str) -> Any:
        """The value that a text means; None, the default, for an empty one. Raises InvalidParameter."""
        text = text.strip()
        if not text:
            return None
        try:
            value = self.read(text)
        except (ValueError, KeyError, TypeError):
            raise InvalidParameter(f"{self.label} must be {self.kind}, not {text!r}") from None
        if self.name == "n_ctx":
            if value is not None and value != 0 and value < 2:
                raise InvalidParameter(f"{self.label} must be 0 or at least 2 tokens, not {value}")
        elif value is not None:
            try:
                SamplingParams(**{self.name: value})
                if self.name in FORMS:
                    answer_grammar(**{self.name: value})
            except InvalidParameter as error:
                name, _, rest = str(error).partition(" ")
                raise InvalidParameter(f"{self.label} {rest}" if name == self.name else str(error)) from None
        return value

    def text(self, value: Any) -> str:
        """The text for a value."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "on" if value else "off"
        if self.name == "stop":
            [*texts] = value
            is_plain = len(texts) == 1 and texts[0].isprintable() and texts[0].strip() == texts[0]
            return texts[0] if is_plain and not texts[0].startswith("[") else json.dumps(texts, ensure_ascii=False)
        if self.name == "stop_token_ids":
            return ", ".join(map(str, value))
        return str(value)


NUMBERS = (
    ParameterField("temperature", "Temperature", float),
    ParameterField("max_tokens", "Longest answer", _drawn_if_negative, "no limit"),
    ParameterField("top_k", "Top k", int),
    ParameterField("seed", "Seed", _drawn_if_negative, "random"),
    ParameterField("top_p", "Top p", float),
    ParameterField("n_ctx", "Context", int, "the model's"),
    ParameterField("min_p", "Min p", float),
    ParameterField("context_shift", "Context shift", _on_or_off, "off", "on or off"),
    ParameterField("repetition_penalty", "Repeat penalty", float),
    ParameterField("penalty_window", "Penalty window", int),
    ParameterField("presence_penalty", "Presence pen.", float),
    ParameterField("frequency_penalty", "Frequency pen.", float),
    ParameterField("ignore_eos", "Ignore the end", _on_or_off, "off", "on or off"),
    ParameterField("stop_token_ids", "Stop tokens", _token_ids, "none", "ids of tokens, such as 2, 13"),
)
"""Short ones, two in a row."""
TEXTS = (
    ParameterField(
        "stop", "Stop at", _texts, "none; a text, or a JSON list of texts", "a text or a JSON list of texts"
    ),
    ParameterField("json_schema", "JSON schema", _schema, "none; a schema, or a file with one", "a schema"),
    ParameterField("regex", "Regex", str, "none; the whole answer matches it"),
    ParameterField("grammar", "Grammar", _grammar, "none; GBNF or Lark, or a file with it", "a grammar"),
)
"""Long ones, each in a row of its own."""
LABELS = {field.name: field.label for field in (*NUMBERS, *TEXTS)}
