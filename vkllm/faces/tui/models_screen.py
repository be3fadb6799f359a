"""The list of models: those on this machine, those that can be fetched, and any file by its path."""

from __future__ import annotations

import threading

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from vkllm import VkllmError
from vkllm.faces.terminal import size
from vkllm.faces.tui.cells import cut, padded
from vkllm.faces.tui.errors_shown import sentence
from vkllm.faces.tui.fit import Fit
from vkllm.faces.tui.session import KnownModel, Session

_LOOK_S = 0.1
_NARROW = 60  # below, whether a model is here is only in the lines below the list
_FIT_WIDTH = 25
_NAME_WIDTH = 34


class ModelsScreen(ModalScreen[str | None]):
    """Models with a line to search in, or to type the path of a file into; the result is what `LLM` takes."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("enter", "choose", "Load", priority=True),
        Binding("escape,f3", "dismiss(None)", "Back"),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
    ]

    def __init__(self, recent: list[str], session: Session) -> None:
        """recent: names and paths used before. session: knows which model is open and how the others fit."""
        super().__init__()
        self._recent = recent
        self._session = session
        self._all: list[KnownModel] | None = None
        self._shown: list[KnownModel] = []
        self._n_found = -1
        self._has_asked = False
        self._found: list[KnownModel] | None = None
        self._problem = ""
        self._moves_due: list[int] = []  # keys that were pressed before the list was there
        self._is_choice_due = False

    def compose(self) -> ComposeResult:
        """The search line above the list."""
        with Vertical(classes="dialog large") as box:
            box.border_title = "Models"
            what = "Search" if self._session.server is not None else "Search, or the path of a .gguf file"
            yield Input(placeholder=what, compact=True)
            yield OptionList(markup=False)
            yield Static("Looking for models…", id="about", markup=False)
            yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Looks for models in a thread, because disks and caches may take their time."""
        self._thread = threading.Thread(target=self._look_for_models, name="vkllm-models", daemon=True)
        self._thread.start()
        self.set_interval(_LOOK_S, self._look)

    def on_resize(self) -> None:
        """Cuts the rows to the new width."""
        self.call_after_refresh(self._draw_rows)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Searches at each key."""
        self._moves_due.clear()
        self._list(event.value)

    def on_option_list_option_highlighted(self) -> None:
        """Says more about the chosen model."""
        self._describe()

    def on_option_list_option_selected(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_move(self, step: int) -> None:
        """Moves the choice while the search line keeps the keys."""
        if self._all is None:
            self._moves_due.append(step)
            return
        choices = self.query_one(OptionList)
        if step > 0:
            choices.action_cursor_down()
        else:
            choices.action_cursor_up()

    def action_choose(self) -> None:
        """Closes with the chosen model, or with what was typed if no model's name holds it."""
        if self._all is None:
            self._is_choice_due = True
            return
        typed = self.query_one(Input).value.strip()
        if (model := self._chosen()) is not None:
            self.dismiss(model.name)
        elif typed:
            self.dismiss(typed)

    def _look_for_models(self) -> None:
        try:
            self._found = self._session.known_models(self._recent)
        except (OSError, VkllmError) as error:  # folders that may not be read, a server that does not answer
            self._found, self._problem = [], str(error) if isinstance(error, VkllmError) else ""

    def _look(self) -> None:
        """Shows the models as soon as they are known, and how they fit, one by one."""
        fits = self._session.fits
        if self._all is None and not self._thread.is_alive():
            self._all = self._found or []
            self._list(self.query_one(Input).value)
            for step in self._moves_due:
                self.action_move(step)
            if self._is_choice_due:
                self.action_choose()
                return
        if self._all is not None and fits is not None:
            if not self._has_asked:  # once, because a driver that crashes does so again
                models = [model.to_fit for model in self._all]
                self._has_asked = fits.look(models, self._session.n_ctx, self._session.held_bytes)
            if fits.n_found != self._n_found:
                self._n_found = fits.n_found
                self._draw_rows()
        is_looking = fits is not None and fits.is_looking
        box, subtitle = self.query_one(".dialog"), "looking where they fit…" if is_looking else ""
        if box.border_subtitle != subtitle:  # setting it draws the whole dialog again
            box.border_subtitle = subtitle

    def _list(self, search: str) -> None:
        if self._all is None:
            return
        words = search.casefold().split()
        self._shown = [
            model for model in self._all if all(w in f"{model.name} {model.description}".casefold() for w in words)
        ]
        choices = self.query_one(OptionList)
        choices.clear_options()
        choices.add_options(Option(self._row(model)) for model in self._shown)
        current = [index for index, model in enumerate(self._shown) if self._is_open(model)]
        choices.highlighted = current[0] if current else 0 if self._shown else None
        self._describe()

    def _draw_rows(self) -> None:
        choices = self.query_one(OptionList)
        for index, model in enumerate(self._shown):
            choices.replace_option_prompt_at_index(index, self._row(model))
        self._describe()

    def _chosen(self) -> KnownModel | None:
        index = self.query_one(OptionList).highlighted
        return None if index is None or index >= len(self._shown) else self._shown[index]

    def _is_open(self, model: KnownModel) -> bool:
        return self._session.model is not None and self._session.model in (model.name, model.path)

    def _fit(self, model: KnownModel) -> Fit | None:
        fits = self._session.fits
        return None if fits is None else fits.of(model.to_fit, self._session.n_ctx)

    def _describe(self) -> None:
        about = self.query_one("#about", Static)
        model = self._chosen()
        if self._all is None:
            return
        if model is None:
            how = "Enter asks the server for it." if self._session.server else "Enter loads it as the path of a file."
            about.update(f"{sentence(self._problem)}" if self._problem else f"No model of that name. {how}")
            return
        fit = self._fit(model)
        if fit is None:
            where: str | Content = "" if self._session.fits is None else self._session.fits.problem
        else:
            advice = f"; {fit.advice}" if fit.advice and not fit.is_fitting else ""
            where = Content.styled(f"{fit.in_words}{advice}", fit.style)
        state = f"{model.state}, {size(model.n_bytes)}" if model.n_bytes else model.state
        about.update(Content("\n").join([f"{model.name} · {state}", model.description, where]))

    def _row(self, model: KnownModel) -> Content:
        """One line: what is open, the name, its size, whether it is here, and how it fits."""
        width = self.query_one(OptionList).scrollable_content_region.width - 2  # a blank at each end
        state = "" if width < _NARROW else f"{model.state:8}"
        others = f"{size(model.n_bytes) if model.n_bytes else '':>9}  {state}{'  ' * bool(state)}"
        name_width = max(12, min(_NAME_WIDTH, width - 2 - len(others) - _FIT_WIDTH))
        mark = "● " if self._is_open(model) else "  "
        row = Content(mark + padded(model.name.rsplit("/", 1)[-1], name_width) + others)
        if (fit := self._fit(model)) is None:
            return row
        room = width - row.cell_length
        text = fit.in_words if cell_len(fit.in_words) <= room else fit.in_short
        return row + Content.styled(cut(text, room), fit.style)
