"""What a plain chat is, wherever its model runs: what was said so far and how answers are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from vkllm import SamplingParams
from vkllm.faces.chat.reasoning import prompt_messages
from vkllm.faces.thoughts import Thoughts


class PlainChat(ABC):
    """A plain chat. sampling: fields of SamplingParams by name. system: the system message, "" for none."""

    def __init__(self, sampling: Mapping[str, Any], system: str, thoughts: Thoughts, *, wants_stats: bool) -> None:
        self.sampling = dict(sampling)
        self.system = system
        self.thoughts: Thoughts = thoughts
        self.wants_stats = wants_stats
        self.messages: list[dict[str, str]] = []

    @property
    def prompt_messages(self) -> list[dict[str, str]]:
        """The conversation as the model gets it."""
        return prompt_messages(self.system, [(message["role"], message["content"]) for message in self.messages])

    @property
    @abstractmethod
    def title(self) -> str:
        """The open model and where it runs. Raises ModelNotFound if none is open."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Tokens of context; 0 where nobody says how many."""

    @property
    @abstractmethod
    def defaults(self) -> SamplingParams:
        """How answers are made where nothing was set."""

    @abstractmethod
    def answer(self) -> str:
        """Prints the answer to the conversation as it comes, and returns it as it is kept. Raises any VkllmError."""

    @abstractmethod
    def open_named(self, name: str) -> None:
        """Opens another model. Raises any VkllmError, and then the last one is still open."""

    @abstractmethod
    def open_with(self, name: str, value: int) -> None:
        """Opens the model in another way. name: "num_ctx" or "num_gpu". Raises any VkllmError."""

    @abstractmethod
    def facts(self, what: str) -> str:
        """The model's "info", "template", "license" or "modelfile". Raises VkllmError."""

    @abstractmethod
    def close(self) -> None:
        """Ends what this chat has begun."""
