"""F4: every parameter, each checked where it is typed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from conftest import OpenChat, Scene
from fake_llm import FakeLLM
from textual.widgets import Input, Static, TextArea

from vkllm import InvalidParameter, SamplingParams
from vkllm.faces.tui.parameter_fields import LABELS, NUMBERS, TEXTS
from vkllm.faces.tui.parameters_screen import ParametersScreen

FIELDS = {field.name: field for field in (*NUMBERS, *TEXTS)}


def test_every_parameter_has_a_field() -> None:
    not_for_a_chat = {"logprobs", "logit_bias"}
    assert {field.name for field in fields(SamplingParams)} - not_for_a_chat == LABELS.keys() - {"n_ctx"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.25", 0.25),
        ("top_k", " 7 ", 7),
        ("seed", "-1", None),
        ("max_tokens", "-1", None),
        ("max_tokens", "50", 50),
        ("ignore_eos", "on", True),
        ("context_shift", "False", False),
        ("stop", "END of it", ("END of it",)),
        ("stop", '["a", "\\n"]', ("a", "\n")),
        ("stop_token_ids", "2, 13 7", (2, 13, 7)),
        ("regex", "[0-9]+", "[0-9]+"),
        ("json_schema", '{"type": "array"}', '{"type": "array"}'),
        ("grammar", 'root ::= "yes" | "no"', 'root ::= "yes" | "no"'),
        ("n_ctx", "0", 0),
        ("n_ctx", "512", 512),
        ("min_p", "", None),
    ],
)
def test_a_text_means_a_value_and_the_value_is_shown_as_a_text_that_means_it(name: str, text: str, value: Any) -> None:
    assert FIELDS[name].value(text) == value
    assert FIELDS[name].value(FIELDS[name].text(value)) == value


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("temperature", "warm", "Temperature must be a number, not 'warm'"),
        ("temperature", "-1", "Temperature must be a number between 0 and 100, not -1.0"),
        ("top_p", "2", "Top p must be a number between 0 and 1, not 2.0"),
        ("top_k", "1.5", "Top k must be a number, not '1.5'"),
        ("frequency_penalty", "3", "Frequency pen. must be a number between -2 and 2, not 3.0"),
        ("max_tokens", "0", "Longest answer must be a whole number between 1"),
        ("ignore_eos", "perhaps", "Ignore the end must be on or off, not 'perhaps'"),
        ("stop", '["a", 1]', "Stop at must be a text or a JSON list of texts, not"),
        ("stop", '["a"', "Stop at must be a text or a JSON list of texts, not"),
        ("stop_token_ids", "two", "Stop tokens must be ids of tokens, such as 2, 13, not 'two'"),
        ("n_ctx", "1", "Context must be 0 or at least 2 tokens, not 1"),
        ("json_schema", '{"type": ', "JSON"),
        ("json_schema", '{"type": "nothing"}', "nothing"),
        ("regex", "(", "unclosed group"),
        ("grammar", 'root ::= "', "grammar"),
    ],
)
def test_what_is_wrong_is_said_of_the_field(name: str, text: str, sentence: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        FIELDS[name].value(text)
    assert sentence.lower() in str(caught.value).lower()


async def opened_panel(scene: Scene) -> ParametersScreen:
    await scene.press("f4")
    await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
    screen = scene.app.screen
    assert isinstance(screen, ParametersScreen)
    return screen


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_the_sentence_is_on_the_screen_at_its_field_which_has_the_keys(
    open_chat: OpenChat, size: tuple[int, int]
) -> None:
    async with open_chat(size=size) as scene:
        panel = await opened_panel(scene)
        for name, text in [("regex", "("), ("stop_token_ids", "two"), ("temperature", "warm")]:
            field = panel.query_one(f"#{name}", Input)
            field.value = text
            await scene.press("ctrl+s")
            await scene.until(lambda: [one for one in panel.query(".problem").results(Static) if one.display])
            [problem] = [one for one in panel.query(".problem").results(Static) if one.display]
            await scene.until(lambda: problem.region.y == field.region.bottom)  # noqa: B023
            await scene.until(lambda: problem.region in panel.query_one("#fields").region)  # noqa: B023
            assert scene.app.focused is field
            field.value = ""
        await scene.press("ctrl+s")
        await scene.until(lambda: scene.app.screen is scene.chat)


@pytest.mark.asyncio
async def test_all_fields_reach_the_model_and_come_back(open_chat: OpenChat) -> None:
    texts = {
        "temperature": "0.5",
        "max_tokens": "20",
        "top_k": "5",
        "seed": "7",
        "top_p": "0.9",
        "min_p": "0.1",
        "context_shift": "on",
        "repetition_penalty": "1.1",
        "penalty_window": "32",
        "presence_penalty": "0.5",
        "frequency_penalty": "0.25",
        "ignore_eos": "on",
        "stop_token_ids": "2, 13",
        "stop": "END",
        "regex": "[a-z ]+",
    }
    async with open_chat() as scene:
        panel = await opened_panel(scene)
        for name, text in texts.items():
            panel.query_one(f"#{name}", Input).value = text
        await scene.press("ctrl+s")
        await scene.until(lambda: scene.app.screen is scene.chat)
        await scene.ask("Hi")
        sampling = scene.llm.asked[-1][1]
        assert sampling == {name: FIELDS[name].value(text) for name, text in texts.items()}
        SamplingParams(**sampling)
        panel = await opened_panel(scene)
        assert {name: panel.query_one(f"#{name}", Input).value for name in texts} == texts
        panel.query_one("#grammar", TextArea).text = 'root ::= "a"'
        await scene.press("ctrl+s")
        await scene.until(lambda: "an answer has one form; empty this field or Regex" in scene.shown)
        assert scene.app.focused is panel.query_one("#grammar")


@pytest.mark.asyncio
async def test_an_empty_field_shows_what_the_model_s_file_recommends(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeLLM, "default_params", SamplingParams(temperature=0.6, top_k=20))
    async with open_chat() as scene:
        await scene.ask("Hi")
        await scene.press("f4")
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
        shown = {name: scene.app.screen.query_one(f"#{name}", Input).placeholder for name in ("temperature", "top_k")}
        assert shown == {"temperature": "0.6", "top_k": "20"}
        assert scene.app.screen.query_one("#top_p", Input).placeholder == "0.95"
