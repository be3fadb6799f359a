"""Models that are chosen, loaded or not; errors, each with a way on; parameters; and how it all ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import OpenChat, Scene
from fake_llm import FakeFits, FakeLLM
from hub_server import HubServer
from textual.widgets import Input, TextArea

from vkllm import LLM, DeviceLost, DeviceTimeout
from vkllm.faces.chat.store import ChatStore
from vkllm.faces.cli import app as cli
from vkllm.faces.tui import errors_shown, session
from vkllm.faces.tui.app import ChatApp, ChatOptions
from vkllm.faces.tui.load_bar import LoadBar
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.parameters_screen import ParametersScreen
from vkllm.faces.tui.session import KnownModel
from vkllm.store import FoundModel

MODELS = [
    KnownModel("tiny", "A tiny one", 98_362_432, "/models/tiny.gguf"),
    KnownModel("/models/other.gguf", "Files", 4_000_000_000, "/models/other.gguf"),
    KnownModel("large", "A large one", 40_000_000_000),
]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: MODELS)


def test_models_here_come_first_also_files_used_before(tiny_gguf: Path, tmp_path: Path) -> None:
    found = session.known_models([str(tiny_gguf), str(tmp_path / "gone.gguf"), "smollm2"])
    names = [model.name for model in found]
    assert str(tiny_gguf) in names and str(tmp_path / "gone.gguf") not in names
    assert names.count("smollm2") == 1
    is_here = [model.is_here for model in found]
    assert is_here == sorted(is_here, reverse=True)
    assert found[names.index(str(tiny_gguf))].n_bytes == tiny_gguf.stat().st_size


async def listed(scene: Scene) -> None:
    await scene.until(lambda: isinstance(scene.app.screen, ModelsScreen) and "93.8 MiB" in scene.shown)


@pytest.mark.asyncio
async def test_the_first_start_asks_for_a_model_and_answers_what_was_asked_meanwhile(open_chat: OpenChat) -> None:
    async with open_chat(model=None) as scene:
        await listed(scene)
        assert "37.3 GiB  to fetch" in scene.shown
        assert "●" not in scene.shown  # nothing is open
        await scene.press("escape")
        await scene.until(lambda: scene.app.screen is scene.chat)
        await scene.ask("Hi", waits=False)  # no model: it asks again
        await listed(scene)
        await scene.press("enter")
        await scene.until(lambda: scene.texts == ["Hi", "You said: Hi (answer 1)"])
    async with open_chat(model=None) as scene:  # the next start takes the last model
        await scene.until(lambda: scene.chat.session.llm is not None)
        assert scene.llm.path.stem == "tiny"


@pytest.mark.asyncio
async def test_a_model_that_the_command_looked_up_is_opened_as_it_was_found(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path
) -> None:
    asked: list[ChatOptions] = []
    monkeypatch.setattr("vkllm.faces.cli.start_chat.has_screen", lambda: True)
    monkeypatch.setattr("vkllm.faces.tui.app.run_chat", lambda options, loading: asked.append(options))
    cli.app(["chat", str(tiny_gguf)], prog_name="vkllm", standalone_mode=False)
    async with open_chat(model=asked[0].model):
        (opened,) = FakeLLM.opened
        assert opened.given is asked[0].model and isinstance(opened.given, FoundModel)


@pytest.mark.asyncio
async def test_another_model_takes_the_place_of_the_first(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        first = scene.llm
        await scene.press("f3")
        await listed(scene)
        await scene.type("oth")
        await scene.press("enter")
        await scene.until(lambda: scene.llm is not first and scene.chat.session.llm is scene.llm)
        assert first.is_closed
        assert scene.llm.path.stem == "other"
        await scene.press("f3")
        await listed(scene)
        assert [line.split()[2] for line in scene.shown.split("\n") if "●" in line] == ["other.gguf"]
        await scene.type("/some/file.gguf")
        await scene.press("enter")
        await scene.until(lambda: scene.chat.session.llm is scene.llm and scene.llm.path.stem == "file")


@pytest.mark.asyncio
async def test_a_load_shows_its_progress_takes_keys_and_can_be_given_up(open_chat: OpenChat) -> None:
    async with open_chat(model="slow") as scene:
        await scene.until(lambda: "of 9.3 GiB" in scene.shown)
        await scene.press("x")
        assert scene.chat.prompt.text == "x"
        await scene.press("escape")
        await scene.until(lambda: scene.chat.session.loading is None)
        assert not scene.chat.query_one(LoadBar).display
        assert FakeLLM.opened == []


@pytest.mark.asyncio
async def test_a_load_that_hangs_is_left_behind_after_esc(open_chat: OpenChat) -> None:
    async with open_chat(model="hanging") as scene:
        await scene.until(lambda: "opening hanging" in scene.shown)
        await scene.press("escape")
        await scene.until(lambda: "no model is loaded" in scene.shown)
        await scene.press("f3")
        await listed(scene)
        await scene.press("enter")
        await scene.until(lambda: scene.chat.session.llm is not None)


@pytest.mark.asyncio
async def test_a_download_that_stalls_can_be_given_up_and_does_not_hold_up_the_end(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.files["/tiny.gguf"] = b"x" * 100_000
    hub.may_go_on.clear()
    store = ChatStore(tmp_path / "chats.db")
    app = ChatApp(ChatOptions(model=f"{hub.url}/tiny.gguf"), store, LLM, FakeFits())
    async with app.run_test(size=(80, 24)) as pilot:
        scene = Scene(app, pilot, store)
        await scene.until(lambda: scene.chat.session.loading is not None and "tiny.gguf" in scene.shown)
        await scene.press("escape")
        await scene.until(lambda: "no model is loaded" in scene.shown)
        await scene.press("ctrl+r")  # tries again
        await scene.until(lambda: scene.chat.session.loading is not None)
        await scene.pilot.press("ctrl+q")
        start = time.monotonic()
        app.session.close()
        assert time.monotonic() - start < 20  # what it does not wait for has no end
    store.close()


@pytest.mark.asyncio
async def test_a_model_that_is_not_there_leaves_the_question_and_a_way_on(open_chat: OpenChat) -> None:
    async with open_chat(model="missing") as scene:
        await scene.until(lambda: scene.notice is not None)
        assert "There is no model 'missing'." in scene.shown
        await scene.ask("Hi", waits=False)
        await listed(scene)
        await scene.press("enter")
        await scene.until(lambda: scene.texts == ["Hi", "You said: Hi (answer 1)"])
        assert scene.notice is None


@pytest.mark.asyncio
async def test_a_model_that_is_too_large_is_offered_with_a_shorter_context(open_chat: OpenChat) -> None:
    async with open_chat(model="huge") as scene:
        await scene.until(lambda: scene.notice is not None)
        await scene.press_button("Load with 2048 tokens")
        await scene.until(lambda: scene.chat.session.llm is not None)
        assert scene.llm.n_ctx == 2048
        assert scene.notice is None


@pytest.mark.parametrize("error", [DeviceLost("the device was lost"), DeviceTimeout("it did not end in time")])
@pytest.mark.asyncio
async def test_a_lost_device_keeps_the_partial_answer_and_ctrl_r_tries_again(
    open_chat: OpenChat, error: Exception
) -> None:
    async with open_chat() as scene:
        scene.llm.fails_after, scene.llm.error = 2, error
        await scene.ask("Hi", waits=False)
        await scene.until(lambda: scene.notice is not None)
        assert str(error)[1:] + "." in scene.shown
        last = scene.store.messages(scene.chat.chat.id)[-1]
        assert (last.content, last.state) == ("You said: ", "failed")
        scene.llm.fails_after = None
        await scene.press("ctrl+r")
        await scene.until(lambda: scene.texts[-1] == "You said: Hi (answer 2)" and not scene.chat.is_answering)
        assert scene.notice is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("the device was lost", "The device was lost."),
        ("tinyllama could not be\nfetched; try again.", "tinyllama could not be fetched; try again."),
        ("/a/b.gguf: it is damaged", "/a/b.gguf: it is damaged."),
    ],
)
def test_an_error_is_a_sentence_and_names_stay_as_they_are(text: str, sentence: str) -> None:
    assert errors_shown.sentence(text) == sentence


@pytest.mark.asyncio
async def test_a_mistake_in_a_thread_is_told_and_does_not_hang(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.fails_after, scene.llm.error = 0, ZeroDivisionError("oops")  # type: ignore[assignment]
        await scene.ask("Hi", waits=False)
        await scene.until(lambda: scene.notice is not None)
        assert "ZeroDivisionError: oops" in scene.shown
        assert scene.texts == ["Hi"]


@pytest.mark.asyncio
async def test_a_prompt_that_is_too_long_is_answered_with_a_larger_context(open_chat: OpenChat) -> None:
    async with open_chat(n_ctx=8) as scene:
        await scene.ask("a b c d e f g h i", waits=False)
        await scene.until(lambda: scene.notice is not None)
        assert "9 tokens, but the context holds 8" in scene.shown
        await scene.press_button("Load with 16 tokens")
        await scene.until(lambda: scene.texts[-1].startswith("You said: a b c") and not scene.chat.is_answering)
        assert scene.llm.n_ctx == 16


@pytest.mark.asyncio
async def test_an_answer_cut_by_a_full_context_says_so(open_chat: OpenChat) -> None:
    async with open_chat(n_ctx=8) as scene:
        scene.llm.shifts = False
        await scene.ask("a b c", waits=False)
        await scene.until(lambda: scene.notice is not None)
        assert "The context of 8 tokens is full" in scene.shown
        assert scene.chat.messages[-1].state == "cut"
        assert "context 8/8 (100 %)" in scene.shown


@pytest.mark.asyncio
async def test_parameters_hold_from_the_next_answer_on_and_belong_to_the_chat(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("Hi")
        await scene.press("f4")
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
        panel = scene.app.screen
        panel.query_one("#temperature", Input).value = "-1"
        await scene.press("ctrl+s")
        assert "Temperature must be a number between 0 and 100, not -1.0" in scene.shown
        panel.query_one("#temperature", Input).value = "warm"
        await scene.press("ctrl+s")
        assert "Temperature must be a number, not 'warm'" in scene.shown
        panel.query_one("#temperature", Input).value = "0.25"
        panel.query_one("#context_shift", Input).value = "perhaps"
        await scene.press("ctrl+s")
        assert "Context shift must be on or off, not 'perhaps'" in scene.shown
        panel.query_one("#context_shift", Input).value = "on"
        panel.query_one("#max_tokens", Input).value = "50"
        panel.query_one("#system", TextArea).text = "Be short"
        await scene.press("ctrl+s")
        await scene.until(lambda: scene.app.screen is scene.chat)
        await scene.ask("More")
        messages, sampling = scene.llm.asked[-1]
        assert messages[0] == {"role": "system", "content": "Be short"}
        assert sampling == {"temperature": 0.25, "max_tokens": 50, "context_shift": True}
        assert scene.store.chats()[0].sampling == sampling
        assert "system prompt · temperature 0.25 · longest answer 50 · context shift on" in scene.shown
        first = scene.llm
        await scene.press("f4")
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
        assert scene.app.screen.query_one("#context_shift", Input).value == "on"
        scene.app.screen.query_one("#n_ctx", Input).value = "512"
        await scene.press("ctrl+s")
        await scene.until(lambda: scene.llm is not first and scene.chat.session.llm is scene.llm)
        assert first.is_closed and scene.llm.n_ctx == 512
    async with open_chat() as scene:  # a new chat begins with what was set last
        assert scene.chat.parameters.system == "Be short"


@pytest.mark.asyncio
async def test_a_json_schema_is_a_text_or_a_file_and_other_parameters_of_the_command_line_stay(
    open_chat: OpenChat, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array"}')
    async with open_chat(sampling={"stop": ("END",)}) as scene:
        await scene.press("f4")
        await scene.until(lambda: isinstance(scene.app.screen, ParametersScreen))
        field = scene.app.screen.query_one("#json_schema", TextArea)
        field.text = "/no/such/file.json"
        await scene.press("ctrl+s")
        await scene.until(lambda: "cannot read /no/such/file.json" in scene.shown)
        assert scene.app.focused is field
        field.text = '{"type": '
        await scene.press("ctrl+s")
        await scene.until(lambda: "not JSON" in scene.shown)
        field.text = str(schema)
        await scene.press("ctrl+s")
        await scene.until(lambda: scene.app.screen is scene.chat)
        await scene.ask("Hi")
        assert scene.llm.asked[-1][1] == {"stop": ("END",), "json_schema": '{"type": "array"}'}
        assert "JSON schema" in scene.shown
    async with open_chat() as scene:  # a schema is for one chat
        assert scene.chat.parameters.sampling == {"stop": ["END"]}


@pytest.mark.parametrize("model", ["slow", "hanging", "tiny"])
@pytest.mark.parametrize("keys", [["ctrl+q"], ["ctrl+c", "ctrl+c"]])
@pytest.mark.asyncio
async def test_quitting_in_every_phase_is_quick_and_keeps_the_partial_answer(
    open_chat: OpenChat, model: str, keys: list[str]
) -> None:
    async with open_chat(model=model) as scene:
        if model == "tiny":
            scene.llm.step_s = 0.01
            await scene.ask("endless", waits=False)
            await scene.until(lambda: "word" in scene.texts[-1])
        for key in keys:
            await scene.pilot.press(key)
        start = time.monotonic()
        scene.app.session.close()
        assert time.monotonic() - start < 20  # what it does not wait for has no end
        assert not scene.app.is_running or scene.app._exit
        if model == "tiny":
            [chat] = scene.store.chats()
            last = scene.store.messages(chat.id)[-1]
            assert last.state == "stopped" and "word" in last.content
            assert scene.llm.is_closed


@pytest.mark.asyncio
async def test_quitting_while_the_model_reads_leaves_the_question(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate.clear()
        await scene.ask("Hi", waits=False)
        await scene.pilot.press("ctrl+q")
    async with open_chat() as scene:
        [chat] = scene.store.chats()
        assert [message.content for message in scene.store.messages(chat.id)] == ["Hi"]


@pytest.mark.asyncio
async def test_the_first_ctrl_c_only_stops_the_answer(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.step_s = 0.01
        await scene.ask("endless", waits=False)
        await scene.until(lambda: "word" in scene.texts[-1])
        await scene.press("ctrl+c")
        await scene.until(lambda: not scene.chat.is_answering)
        assert scene.chat.messages[-1].state == "stopped"
        assert not scene.app._exit
