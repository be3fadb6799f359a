"""The panel of a chat's parameters: how tokens are chosen, the system prompt, the length of the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Grid, Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, Static, TextArea

from vkllm import InvalidParameter, SamplingParams
from vkllm.faces.sampling import StructureFlags

_DEFAULTS = SamplingParams()


def _on_or_off(text: str) -> bool:
    return {"on": True, "true": True, "off": False, "false": False}[text.lower()]


def _shown(value: float | None) -> str:
    return "" if value is None else ("off", "on")[value] if isinstance(value, bool) else str(value)


def _schema(text: str) -> Any:
    return StructureFlags(json_schema=text).arguments()["json_schema"]


class _Field(NamedTuple):
    """name: of a field of SamplingParams, or n_ctx. read: what makes its text into a value. kind: of such a text."""

    name: str
    label: str
    read: Callable[[str], Any]
    default: str
    kind: str = "a number"


_FIELDS = (
    _Field("temperature", "Temperature", float, f"{_DEFAULTS.temperature}"),
    _Field("max_tokens", "Longest answer", int, "no limit"),
    _Field("top_k", "Top k", int, f"{_DEFAULTS.top_k}"),
    _Field("seed", "Seed", int, "drawn anew"),
    _Field("top_p", "Top p", float, f"{_DEFAULTS.top_p}"),
    _Field("n_ctx", "Context", int, "the model's"),
    _Field("min_p", "Min p", float, f"{_DEFAULTS.min_p}"),
    _Field("context_shift", "Context shift", _on_or_off, "off", "on or off"),
    _Field("repetition_penalty", "Repeat penalty", float, f"{_DEFAULTS.repetition_penalty}"),
    _Field("presence_penalty", "Presence pen.", float, f"{_DEFAULTS.presence_penalty}"),
)
_SCHEMA = _Field("json_schema", "JSON schema", _schema, "none; else a schema, or a file with one")


@dataclass(frozen=True)
class Parameters:
    """What the panel changes. sampling: fields of SamplingParams by name; those that it does not show stay as they are.

    n_ctx: tokens of context, None for the model's own choice; the model is loaded anew for another one.
    """

    system: str
    sampling: dict[str, Any]
    n_ctx: int | None

    @property
    def in_short(self) -> str:
        """What is not as usual, so that nobody wonders later; "" if all is."""
        labels = {field.name: field.label.lower() for field in _FIELDS}
        parts = ["system prompt"] * bool(self.system) + ["JSON schema"] * ("json_schema" in self.sampling)
        others = {name: value for name, value in self.sampling.items() if name != "json_schema"}
        parts += [f"{labels.get(name, name)} {_shown(value)}" for name, value in others.items()]
        return " · ".join(parts)


class ParametersScreen(ModalScreen[Parameters | None]):
    """The panel. An empty line means the default; the result is None if the user leaves."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("ctrl+s", "accept", "Accept", priority=True),
        Binding("escape,f4", "dismiss(None)", "Cancel"),
    ]

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        self._parameters = parameters

    def compose(self) -> ComposeResult:
        """A line for each number, and the system prompt."""
        values = self._parameters.sampling | {"n_ctx": self._parameters.n_ctx}
        with Vertical(classes="dialog large") as box:
            box.border_title = "Parameters of this chat"
            with Grid(id="fields"):
                for field in _FIELDS:
                    yield Label(field.label)
                    value = values.get(field.name)
                    yield Input(_shown(value), placeholder=field.default, id=field.name, compact=True)
            with Horizontal(id="schema-line"):
                yield Label(_SCHEMA.label)
                schema = _shown(values.get("json_schema"))
                yield Input(schema, placeholder=_SCHEMA.default, id="json_schema", compact=True)
            yield Label("System prompt")
            yield TextArea(self._parameters.system, id="system", compact=True, highlight_cursor_line=False)
            yield Static("", id="problem", markup=False)
            yield Footer(show_command_palette=False)

    def on_input_submitted(self) -> None:
        """Enter in a line accepts."""
        self.action_accept()

    def action_accept(self) -> None:
        """Closes with the values, or says which one is wrong."""
        try:
            fields = (*_FIELDS, _SCHEMA)
            names = {field.name for field in fields}
            kept = {name: value for name, value in self._parameters.sampling.items() if name not in names}
            values = kept | {field.name: value for field in fields if (value := self._value(field)) is not None}
            n_ctx = values.pop("n_ctx", None)
            if n_ctx is not None and n_ctx < 2:
                raise InvalidParameter("Context must be at least 2 tokens")
            SamplingParams(**values)
        except InvalidParameter as error:
            self.query_one("#problem", Static).update(str(error))
            return
        self.dismiss(Parameters(self.query_one("#system", TextArea).text.strip(), values, n_ctx))

    def _value(self, field: _Field) -> Any:
        text = self.query_one(f"#{field.name}", Input).value.strip()
        try:
            return field.read(text) if text else None
        except InvalidParameter:
            self.query_one(f"#{field.name}", Input).focus()
            raise
        except (ValueError, KeyError):
            self.query_one(f"#{field.name}", Input).focus()
            raise InvalidParameter(f"{field.label} must be {field.kind}, not {text!r}") from None
