"""The chat itself: questions go out, answers come in, all of it is kept.

It ties the session and its jobs to the screen. A timer looks at the jobs while there are any, and sleeps otherwise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.text import Text
from textual import on
from textual.binding import Binding
from textual.widgets import Footer

from vkllm import Generation, ModelNotFound, SamplingParams
from vkllm.faces.chat.reasoning import prompt_messages
from vkllm.faces.chat.store import ChatMessage, ChatStore, State, title_of
from vkllm.faces.remote import Ended
from vkllm.faces.remote_model import RemoteModel
from vkllm.faces.sampling import FORMS
from vkllm.faces.slow_device import why_slow
from vkllm.faces.tui.cells import cut
from vkllm.faces.tui.errors_shown import context_is_full, notice_for, sentence
from vkllm.faces.tui.footer_keys import NARROW
from vkllm.faces.tui.jobs import AnswerJob, Model
from vkllm.faces.tui.live_answer import LiveAnswer
from vkllm.faces.tui.load_bar import LoadBar
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.parameters_screen import Parameters, ParametersScreen
from vkllm.faces.tui.prompt import Prompt
from vkllm.faces.tui.reading_screen import ReadingScreen
from vkllm.faces.tui.session import Session
from vkllm.faces.tui.status_bar import ContextUsed, StatusBar
from vkllm.store import FoundModel

_TICK_S = 0.05
_N_RECENT = 10


class ChatScreen(ReadingScreen):
    """A chat with a model. model: the one to begin with; None asks the user."""

    BINDINGS = [  # noqa: RUF012, as Textual declares it
        Binding("f3,ctrl+l", "models", "Models"),
        Binding("f4,ctrl+g", "parameters", "Parameters"),
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+n", "new_chat", "New"),
        Binding("ctrl+r", "regenerate", "Again"),
    ]

    def __init__(
        self, store: ChatStore, session: Session, parameters: Parameters, model: str | FoundModel | None
    ) -> None:
        super().__init__(store, session, parameters)
        self._first_model = model
        self._answer: LiveAnswer | None = None
        self._is_answer_due = False  # a question waits for a model
        self._speed = ""
        self._used = ContextUsed()

    async def on_mount(self) -> None:
        """Begins a new chat and opens the model."""
        self._timer = self.set_interval(_TICK_S, self._tick)
        await self.show_chat(None)
        if self._first_model is None:
            self.action_models()
        else:
            await self.load(self._first_model)

    async def show_chat(self, chat_id: int | None) -> None:
        """Shows a chat; the figures are of the one before it no longer."""
        is_other = self.chat is None or chat_id != self.chat.id
        await super().show_chat(chat_id)
        if is_other:
            self._speed, self._used = "", ContextUsed()
            self._show_lines()
            self._count()

    def on_resize(self) -> None:
        """Cuts the lines to the new width."""
        self.query_one(Footer).compact = self.size.width < NARROW
        self._show_lines()

    # --- Questions ---------------------------------------------------------------------------------------------------

    @on(Prompt.Submitted)
    async def send(self, event: Prompt.Submitted) -> None:
        """Keeps a question and has it answered; the prompt keeps it if that is not possible now."""
        if self._answer is not None:
            self.prompt.put_back(event.text)
            self.notify("An answer is being written; Esc stops it.")
            return
        question = None
        with self.errors_told():
            if self.chat is None:
                self.chat = self.store.new_chat(title_of(event.text), self.parameters.system, self.parameters.sampling)
            if self.editing is not None:
                parent_id = self.editing.parent_id
            else:
                parent_id = self.messages[-1].id if self.messages else None
            question = self.store.add_message(self.chat.id, parent_id, "user", event.text)
            self.stop_editing()
            await self.cut_after(parent_id)
            self.messages.append(question)
            await self.conversation.add(question)
            await self._answer_last()
        if question is None:
            self.prompt.put_back(event.text)

    def action_regenerate(self) -> None:
        """Loads the model again if that had failed, else answers the last question again."""
        self.call_later(self._again)

    async def _again(self) -> None:
        if self.session.llm is None and self.session.loading is None and self.session.model is not None:
            await self.load(self.session.model)
        elif questions := [message for message in self.messages if message.role == "user"]:
            await self.regenerate(questions[-1])

    async def regenerate(self, message: ChatMessage) -> None:
        """Answers a question, or the one above an answer, again; what was there stays as another version."""
        self.stop_answer()
        with self.errors_told():
            await self.cut_after(message.id if message.role == "user" else message.parent_id)
            await self._answer_last()

    async def _answer_last(self) -> None:
        """Answers the path as it is, now or as soon as a model is there."""
        await self.conversation.show_notice(None)
        self._is_answer_due = self.session.llm is None
        if self.session.llm is None:
            if self.session.loading is None:
                self.action_models()
            return
        question = self.messages[-1]
        job = AnswerJob(self.session.llm, self._prompt_messages(), self.parameters.sampling)
        try:
            message = self.store.add_message(question.chat_id, question.id, "assistant", "", "stopped")
        except BaseException:
            job.stop()
            raise
        self.messages.append(message)
        view = await self.conversation.add(message, is_live=True)
        self._answer = LiveAnswer(job, view, self.store, self.session.name)
        self._timer.resume()

    def _prompt_messages(self) -> list[dict[str, str]]:
        """The conversation as the model gets it."""
        messages = [(message.role, message.content) for message in self.messages]
        return prompt_messages(self.parameters.system, messages)

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being written."""
        return self._answer is not None

    # --- Answers -----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        with self.errors_told():
            if self._answer is not None:
                await self._look_at_answer(self._answer)
            if self.session.loading is not None:
                await self._look_at_load()
        self._show_lines()
        if self._answer is None and self.session.loading is None:
            self._timer.pause()

    async def _look_at_answer(self, answer: LiveAnswer) -> None:
        job = answer.job
        if not job.is_over:
            answer.look()
            return
        self._answer = None
        self._speed = answer.speed
        notice = None if job.error is None else notice_for(job.error, self.session)
        state: State = "failed"
        if job.ended is not None:
            is_cut = job.ended.finish_reason == "length"
            state = "cut" if is_cut else "done"
            if self.session.llm is not None:
                self._used = _used_by(job.ended, self.session.llm.n_ctx)
                if is_cut and self._used.n_tokens >= self.session.llm.n_ctx > 0:
                    notice = context_is_full(self.session)
        try:
            answer.end(state)
        finally:
            await self._take_in(answer)
            if notice is not None:
                await self.conversation.show_notice(notice)

    async def _take_in(self, answer: LiveAnswer) -> None:
        """Takes an answer that has ended into the path; one without a word is gone, an older one in its place."""
        if answer.message.content.strip():
            self.messages[-1] = answer.message
        else:
            await self.show_chat(answer.message.chat_id)

    def stop_answer(self) -> bool:
        """Stops and keeps the answer that is being written; False if there was none."""
        if self._answer is None:
            return False
        answer, self._answer = self._answer, None
        if self.session.llm is not None:
            n_tokens = answer.job.n_prompt + answer.job.n_generated
            self._used = ContextUsed.estimate(n_tokens, self.session.llm.n_ctx)
        self._speed = answer.speed
        with self.errors_told():
            answer.stop()
        self.messages[-1] = answer.message
        return True

    async def _halt_answer(self) -> None:
        """Stops the answer that is being written, if there is one, and draws it as such."""
        if (answer := self._answer) is not None:
            self.stop_answer()
            answer.view.show(answer.message, is_live=False)
            await self._take_in(answer)

    def action_stop(self) -> None:
        """Esc: ends what is going on, the foremost thing first."""
        self.call_later(self._stop)

    async def _stop(self) -> None:
        if self.editing is not None:
            self.stop_editing()
            self.prompt.clear()
        elif self.is_answering:
            await self._halt_answer()
        elif self.session.loading is not None:
            self._is_answer_due = False
            self.session.loading.cancel()
            self.notify("The load is being given up.")
        self.action_to_prompt()

    # --- Models ------------------------------------------------------------------------------------------------------

    async def load(self, model: str | FoundModel) -> None:
        """Loads a model in place of the one that is open."""
        if self.session.loading is not None:
            self.notify("A model is being loaded; Esc gives that up.")
            return
        await self._halt_answer()
        name = model.name if isinstance(model, FoundModel) else model
        path = Path(name).expanduser()
        is_file = self.session.server is None and path.exists()
        self.session.load(str(path.resolve()) if is_file else name, model if isinstance(model, FoundModel) else None)
        self.show_title()
        self._timer.resume()

    async def _look_at_load(self) -> None:
        loading = self.session.loading
        assert loading is not None
        bar = self.query_one(LoadBar)
        bar.show(loading.progress)
        if not (loading.is_over or loading.is_stuck):
            return
        bar.show(None)
        job = self.session.finish_loading()
        self.show_title()
        await self.conversation.show_notice(
            None if job.error is None else notice_for(job.error, self.session, job.kept)
        )
        if isinstance(job.error, ModelNotFound) and not job.model:  # a server that has several
            self.action_models()
        if job.kept is not None:
            self.parameters = Parameters(self.parameters.system, self.parameters.sampling, job.kept.n_ctx)
        elif job.llm is not None:
            if not isinstance(job.llm, RemoteModel):
                self._remember(job.model)
                for reason in why_slow(job.llm):
                    self.notify(sentence(reason), severity="warning", timeout=8, markup=False)
            if self._is_answer_due:
                await self._answer_last()
            else:
                self._count()

    def _recent_models(self) -> list[str]:
        names: list[str] = self.store.setting("recent_models", [])
        return names

    def _remember(self, model: str) -> None:
        names = [model, *(name for name in self._recent_models() if name != model)]
        self.store.set_setting("recent_models", names[:_N_RECENT])

    def action_models(self) -> None:
        """Lets the user choose a model and loads it."""
        with self.errors_told():
            self.app.push_screen(ModelsScreen(self._recent_models(), self.session), self._load_chosen)

    def _load_chosen(self, model: str | None) -> None:
        if model is not None:
            self.call_later(self.load, model)

    def action_load_with_context(self, n_ctx: int) -> None:
        """Loads the model with another length of context, and then answers the question that waits."""
        self.call_later(self._load_with_context, n_ctx)

    async def _load_with_context(self, n_ctx: int | None) -> None:
        self.parameters = Parameters(self.parameters.system, self.parameters.sampling, n_ctx)
        self.session.n_ctx = n_ctx
        if self.session.model is not None:
            self._is_answer_due = bool(self.messages) and self.messages[-1].role == "user"
            await self.load(self.session.model)

    def action_parameters(self) -> None:
        """The panel of parameters; they hold from the next answer on."""
        llm = self.session.llm
        defaults = SamplingParams() if llm is None else llm.default_params
        n_ctx = "the server's" if self.session.server is not None else None
        self.app.push_screen(ParametersScreen(self.parameters, defaults, n_ctx), self._take_changed)

    def _take_changed(self, changed: Parameters | None) -> None:
        if changed is not None:
            self.call_later(self._take_parameters, changed)

    async def _take_parameters(self, changed: Parameters) -> None:
        with self.errors_told():
            self.parameters = Parameters(changed.system, changed.sampling, self.parameters.n_ctx)
            usual = {name: value for name, value in changed.sampling.items() if name not in FORMS}
            self.store.set_setting("parameters", {"system": changed.system, "sampling": usual})
            if self.chat is not None:
                self.store.set_parameters(self.chat.id, changed.system, changed.sampling)
            self._show_lines()
            if changed.n_ctx != self.session.n_ctx:
                await self._load_with_context(changed.n_ctx)

    def _count(self) -> None:
        """Finds out, in a thread, how much of the context the chat would take."""
        if self.session.llm is not None and self.messages:
            work = partial(self._count_in_thread, self.session.llm, self._prompt_messages())
            self.run_worker(work, thread=True, group="count", exclusive=True, exit_on_error=False)

    def _count_in_thread(self, llm: Model, messages: list[dict[str, str]]) -> None:
        used = ContextUsed.estimate(llm.count_tokens(messages), llm.n_ctx)
        self.app.call_from_thread(self._counted, llm, len(messages), used)

    def _counted(self, llm: Model, n_messages: int, used: ContextUsed) -> None:
        if self._answer is None and self.session.llm is llm and len(self._prompt_messages()) == n_messages:
            self._used = used
            self._show_lines()

    # --- Figures -----------------------------------------------------------------------------------------------------

    def _show_lines(self) -> None:
        self.show_title()
        in_short = Text(cut(self.parameters.in_short, self.size.width - 8))  # a str would be read as markup
        self.prompt.border_subtitle = in_short
        job = None if self._answer is None else self._answer.job
        self.query_one(StatusBar).show(self.session, job, self._speed, self._used)


def _used_by(answer: Generation | Ended, n_ctx: int) -> ContextUsed:
    """What an answer has left in the context; each shift dropped its older half, as nearly as it can be told here."""
    stats = answer.stats
    n_tokens = max(stats.n_prompt + stats.n_generated - stats.n_shifts * (n_ctx // 2), 0)
    return ContextUsed(min(n_tokens, n_ctx) if n_ctx else n_tokens, stats.n_shifts, is_estimate=stats.n_shifts > 0)
