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

from vkllm.faces.terminal import size
from vkllm.faces.tui.session import KnownModel, known_models, where_it_fits


class ModelsScreen(ModalScreen[str | None]):
    """Models with a line to search in, or to type the path of a file into; the result is what `LLM` takes."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("enter", "choose", "Load", priority=True),
        Binding("escape,f3", "dismiss(None)", "Back"),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
    ]

    def __init__(self, recent: list[str], current: str | None) -> None:
        """recent: names and paths used before. current: the one that is open."""
        super().__init__()
        self._recent = recent
        self._current = current
        self._all: list[KnownModel] | None = None
        self._shown: list[KnownModel] = []

    def compose(self) -> ComposeResult:
        """The search line above the list."""
        with Vertical(classes="dialog large") as box:
            box.border_title = "Models"
            yield Input(placeholder="Search, or the path of a .gguf file", compact=True)
            yield OptionList(markup=False)
            yield Static("", id="about", markup=False)
            yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Looks for models in a thread, because disks and caches may take their time."""
        self.query_one("#about", Static).update("Looking for models…")
        found: list[list[KnownModel]] = []
        thread = threading.Thread(target=lambda: found.append(known_models(self._recent)), daemon=True)
        thread.start()

        def look() -> None:
            if not thread.is_alive():
                timer.stop()
                self._all = found[0] if found else []
                self._list("")

        timer = self.set_interval(0.05, look)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Searches at each key."""
        self._list(event.value)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Says more about the chosen model."""
        if event.option_index < len(self._shown):
            model = self._shown[event.option_index]
            self.query_one("#about", Static).update(f"{model.name}\n{model.description}")

    def on_option_list_option_selected(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_move(self, step: int) -> None:
        """Moves the choice while the search line keeps the keys."""
        choices = self.query_one(OptionList)
        if step > 0:
            choices.action_cursor_down()
        else:
            choices.action_cursor_up()

    def action_choose(self) -> None:
        """Closes with the chosen model, or with what was typed if no model's name holds it."""
        index = self.query_one(OptionList).highlighted
        typed = self.query_one(Input).value.strip()
        if index is not None and index < len(self._shown):
            self.dismiss(self._shown[index].name)
        elif typed:
            self.dismiss(typed)

    def _list(self, search: str) -> None:
        if self._all is None:
            return
        words = search.casefold().split()
        self._shown = [
            model for model in self._all if all(w in f"{model.name} {model.description}".casefold() for w in words)
        ]
        choices = self.query_one(OptionList)
        choices.clear_options()
        choices.add_options(Option(Content(self._row(model))) for model in self._shown)
        names = [model.name for model in self._shown]
        choices.highlighted = names.index(self._current) if self._current in names else 0 if names else None
        if not names:
            self.query_one("#about", Static).update("No model of that name. Enter loads it as the path of a file.")

    def _row(self, model: KnownModel) -> str:
        name = model.name.rsplit("/", 1)[-1]
        where = "here" if model.is_here else "to fetch"
        mark = "●" if model.name == self._current else " "
        name_width = 34
        name = name if cell_len(name) <= name_width else name[: name_width - 1] + "…"
        return f"{mark} {name:{name_width}} {size(model.n_bytes):>8}  {where:8}  {where_it_fits(model)}".rstrip()
