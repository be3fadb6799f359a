"""A plain chat with a model of a server that runs already."""

from __future__ import annotations

import sys
from typing import Any

from vkllm import InvalidParameter, SamplingParams
from vkllm.faces.cli.line_state import PlainChat
from vkllm.faces.cli.opening import RunOptions
from vkllm.faces.remote import RemoteAnswer, Server
from vkllm.faces.remote_model import RemoteModel, open_remote, told_of_model
from vkllm.faces.terminal import counted, loading_bar, say, show, visible


class RemoteChat(PlainChat):
    """A plain chat whose answers come from a server."""

    def __init__(self, server: Server, options: RunOptions, sampling: dict[str, Any]) -> None:
        """Waits until the server has loaded the model. Raises any VkllmError."""
        super().__init__(sampling, options.system or "", options.thoughts, wants_stats=options.wants_stats)
        self._server = server
        self._model = self._opened(str(options.model))

    @property
    def title(self) -> str:
        """The model and its server."""
        return f"{self._model.name} on {self._server.name}"

    @property
    def n_ctx(self) -> int:
        """Tokens of context; 0 where the server does not say."""
        return self._model.n_ctx

    @property
    def defaults(self) -> SamplingParams:
        """How the server answers where a request says nothing."""
        return self._model.default_params

    def answer(self) -> str:
        """Prints the answer to the conversation as it comes, and returns it as it is kept. Raises any VkllmError."""
        answer = self._model.chat(self.prompt_messages, **self.sampling).begin()
        show(answer, self.thoughts)
        if self.wants_stats:
            print_remote_stats(self._server, answer)
        return answer.kept

    def open_named(self, name: str) -> None:
        """Goes on with another model of the server. Raises any VkllmError."""
        self._model = self._opened(name)
        context = f", context of {counted(self.n_ctx, 'token')}" if self.n_ctx else ""
        say(f"{self.title}{context}.")

    def open_with(self, name: str, value: int) -> None:
        """Refuses: the server loads the model as it was told to. Raises InvalidParameter."""
        raise InvalidParameter(f"{name} is set where the model is loaded, by the one who starts {self._server.name}")

    def facts(self, what: str) -> str:
        """What the server tells of the model. Raises InvalidParameter for what servers do not tell."""
        told = told_of_model(self._server, self._model.name)
        if what == "info":
            facts = {"model": self._model.name, "server": self._server.url, "file": told.get("model_path")}
            facts |= {"context": counted(self.n_ctx, "token") if self.n_ctx else None}
            return "\n".join(f"{key:14}{text}" for key, text in facts.items() if text)
        if what == "template":
            return str(told.get("chat_template") or f"{self._server.name} does not tell the chat template.")
        raise InvalidParameter(f"{self._server.name} does not tell this; /show info has what it tells")

    def close(self) -> None:
        """Nothing is held here."""

    def _opened(self, name: str) -> RemoteModel:
        with loading_bar() as on_progress:
            return open_remote(self._server, name, on_progress or (lambda what, done, total: None))


def print_remote_stats(server: Server, answer: RemoteAnswer) -> None:
    """Counts and speeds of an answer on standard error, as far as the server tells them."""
    if sys.stderr is None:
        return
    n_cached = (answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    prompt = f"{counted(answer.usage.get('prompt_tokens', 0), 'token')} ({n_cached} cached)"
    generated = counted(answer.usage.get("completion_tokens", 0), "token")
    lines = {
        "server": server.url,
        "model": answer.model,
        "prompt": prompt + _speed(answer.timings.get("prompt_per_second")),
        "answer": generated + _speed(answer.timings.get("predicted_per_second")),
    }
    for title, text in lines.items():
        print(visible(f"{title:8}{text}"), file=sys.stderr)


def _speed(per_s: Any) -> str:
    return f", {per_s:.2f} tok/s" if isinstance(per_s, int | float) and per_s > 0 else ""
