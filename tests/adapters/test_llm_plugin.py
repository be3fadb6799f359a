"""The plugin for Simon Willison's llm, by that package's own functions, on an engine that echoes."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.plugins import pm

from vkllm import LLM
from vkllm.adapters import llm_plugin
from vkllm.api.prompts import Prompts

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model(fake_llm: Callable[..., LLM], tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """llm's model for the default name, with a tiny file in its place."""
    made: list[LLM] = []

    def load(name: str) -> LLM:
        assert name == "smollm2"
        made.append(fake_llm())
        return made[-1]

    monkeypatch.setattr(llm_plugin, "LLM", load)
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    llm_plugin.loaded.cache_clear()
    pm.register(llm_plugin, "vkllm")
    yield llm.get_model("vkllm/smollm2")
    pm.unregister(name="vkllm")
    llm_plugin.loaded.cache_clear()
    assert len(made) <= 1, "it is loaded once"


def test_the_entry_point_is_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["llm"].values()
    assert EntryPoint("vkllm", value, "llm").load() is llm_plugin


def test_a_prompt_is_answered_and_counted(model: Any) -> None:
    response = model.prompt("Hi")
    assert response.text() == "user\nHi"
    assert (response.usage().input, response.usage().output) == (21, 8)
    assert list(model.prompt("Hi")) == list("user\nHi")
    assert model.prompt("Hi", system="Be short").text() == "system\nBe short"


def test_options_and_schemas_reach_the_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.prompt("Hi", max_tokens=4, temperature=0).text() == "user"
    with pytest.raises(llm.ModelError, match="temperature must be a number between 0 and 100"):
        model.prompt("Hi", temperature=-1).text()
    seen: dict[str, Any] = {}
    of_chat = Prompts.of_chat

    def spy(self: Prompts, messages: Any, params: Any, options: Any, *others: Any) -> Any:
        seen.update(options)
        return of_chat(self, messages, params, {}, *others)

    monkeypatch.setattr(Prompts, "of_chat", spy)
    model.prompt("Hi", schema={"type": "integer"}, seed=3).text()
    assert seen == {"seed": 3, "json_schema": {"type": "integer"}}


def test_a_conversation_is_sent_whole(model: Any) -> None:
    conversation = model.conversation()
    conversation.prompt("Hi").text()
    response = conversation.prompt("Bye")
    assert response.text() == "user\nHi"
    assert response.usage().input == len("<user\nHi>\n" + "<assistant\nuser\nHi>\n" + "<user\nBye>\n" + "<assistant\n")


def test_the_asynchronous_model_uses_the_same_engine(model: Any) -> None:
    async def ask() -> list[str]:
        response = llm.get_async_model("vkllm/smollm2").prompt("Hi")
        pieces = [piece async for piece in response]
        assert (await response.usage()).output == 8
        return pieces

    assert model.prompt("Hi").text() == "user\nHi"
    assert asyncio.run(ask()) == list("user\nHi")
