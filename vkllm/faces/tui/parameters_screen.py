"""The panel of a chat's parameters: how tokens are chosen, the system prompt, the length of the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, Static, TextArea

from vkllm import InvalidParameter, SamplingParams
from vkllm.faces.sampling import FORMS
from vkllm.faces.tui.parameter_fields import LABELS, NUMBERS, TEXTS, ParameterField


@dataclass(frozen=True)
class Parameters:
    """What the panel changes. sampling: fields of SamplingParams by name; those that it does not show stay as they are.

    n_ctx: tokens of context, None for the model's own choice; for another one the model is loaded again.
    """

    system: str
    sampling: dict[str, Any]
    n_ctx: int | None

    @property
    def in_short(self) -> str:
        """What is not as usual, so that nobody wonders later; "" if all is."""
        fields = {field.name: field for field in (*NUMBERS, *TEXTS)}
        parts = ["system prompt"] * bool(self.system) + [LABELS[name] for name in self.sampling if name in FORMS]
        for name, value in self.sampling.items():
            if name not in FORMS:
                text = fields[name].text(value) if name in fields else str(value)
                parts.append(f"{LABELS.get(name, name).lower()} {text}")
        return " · ".join(parts)


class ParametersScreen(ModalScreen[Parameters | None]):
    """The panel. An empty line means the default, that of the model; the result is None if the user leaves."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("ctrl+s", "accept", "Accept", priority=True),
        Binding("escape,f4", "dismiss(None)", "Cancel"),
    ]

    def __init__(self, parameters: Parameters, defaults: SamplingParams, fixed_n_ctx: str | None = None) -> None:
        """fixed_n_ctx: what is said where the length of the context cannot be changed."""
        super().__init__()
        self._fixed_n_ctx = fixed_n_ctx
        self._defaults = defaults
        self._parameters = parameters

    def compose(self) -> ComposeResult:
        """Rows of fields, below each the place for what is wrong with one of them, and the system prompt."""
        values = self._parameters.sampling | {"n_ctx": self._parameters.n_ctx}
        with Vertical(classes="dialog large") as box:
            box.border_title = "Parameters of this chat"
            with VerticalScroll(id="fields", can_focus=False):
                for start in range(0, len(NUMBERS), 2):
                    yield from self._row(NUMBERS[start : start + 2], values)
                for field in TEXTS:
                    yield from self._row((field,), values)
                yield Label("System prompt")
                yield TextArea(self._parameters.system, id="system", compact=True, highlight_cursor_line=False)
            yield Footer(show_command_palette=False)

    def _row(self, fields: tuple[ParameterField, ...], values: dict[str, Any]) -> ComposeResult:
        with Horizontal(classes="fields"):
            for field in fields:
                yield Label(field.label)
                text = field.text(values.get(field.name))
                default = field.default_of(self._defaults)
                if field.name in ("json_schema", "grammar"):  # they may have several lines
                    yield TextArea(text, id=field.name, placeholder=default, compact=True, highlight_cursor_line=False)
                elif field.name == "n_ctx" and self._fixed_n_ctx is not None:
                    yield Input(placeholder=self._fixed_n_ctx, id=field.name, compact=True, disabled=True)
                else:
                    yield Input(text, placeholder=default, id=field.name, compact=True)
        yield Static("", id=f"problem-{fields[0].name}", classes="problem", markup=False)

    def on_input_submitted(self) -> None:
        """Enter in a line accepts."""
        self.action_accept()

    def action_accept(self) -> None:
        """Closes with the values, or says at its field which one is wrong."""
        for problem in self.query(".problem").results(Static):
            problem.update("")
            problem.display = False
        fields = (*NUMBERS, *TEXTS)
        values: dict[str, Any] = {}
        for field in fields:
            try:
                value = field.value(self._text(field))
                if field.name in FORMS and value is not None and (others := values.keys() & FORMS):
                    raise InvalidParameter(f"an answer has one form; empty this field or {LABELS[min(others)]}")
            except InvalidParameter as error:
                self._tell(field, str(error))
                return
            if value is not None:
                values[field.name] = value
        n_ctx = values.pop("n_ctx", None)
        kept = {name: value for name, value in self._parameters.sampling.items() if name not in LABELS}
        self.dismiss(Parameters(self.query_one("#system", TextArea).text.strip(), kept | values, n_ctx))

    def _text(self, field: ParameterField) -> str:
        widget = self.query_one(f"#{field.name}")
        return widget.text if isinstance(widget, TextArea) else self.query_one(f"#{field.name}", Input).value

    def _tell(self, field: ParameterField, sentence: str) -> None:
        rows = [[one.name for one in NUMBERS[start : start + 2]] for start in range(0, len(NUMBERS), 2)]
        first = next((row[0] for row in rows if field.name in row), field.name)
        problem = self.query_one(f"#problem-{first}", Static)
        problem.display = True
        problem.update(sentence)
        self.query_one(f"#{field.name}").focus()
        self.call_after_refresh(problem.scroll_visible, animate=False)
