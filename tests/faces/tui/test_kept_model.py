"""A model that cannot be loaded leaves the one that is open: checked before that is closed, else opened again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import OpenChat, Scene
from fake_llm import FakeLLM

from vkllm import LLM, ModelFileError, ModelNotFound, UnsupportedModel, VkllmError
from vkllm.faces.chat import model_check
from vkllm.faces.chat.model_check import check_model
from vkllm.faces.tui.app import ChatApp, ChatOptions, run_chat
from vkllm.model.memory.limits import DeviceLimits
from vkllm.store import FoundModel

Progress = Callable[[str, int, int], None]


async def usable(scene: Scene, model: str) -> None:
    """The model answers."""
    assert scene.chat.session.name == model
    await scene.ask("Hi")
    assert scene.texts[-1].startswith("You said: Hi")


@pytest.mark.asyncio
async def test_what_a_check_finds_leaves_the_open_model_untouched(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        first = scene.llm

        def check(model: str, n_ctx: int | None, open_llm: LLM, on_progress: Progress) -> FoundModel:
            raise ModelFileError(f"{model}: it is damaged; fetch it again")

        scene.chat.session._check = check
        await scene.chat.load("/models/bad.gguf")
        await scene.until(lambda: scene.notice is not None)
        assert not first.is_closed and scene.chat.session.llm is first
        assert "it is damaged; fetch it again. tiny stays open, with 2048 tokens of context." in words(scene)
        assert scene.chat.session.model == "tiny"
        await usable(scene, "tiny")
        await scene.press("ctrl+r")
        await scene.until(lambda: "2/2" in scene.shown)
        assert FakeLLM.opened == [first]


@pytest.mark.asyncio
async def test_a_model_that_does_not_fit_is_refused_while_the_open_one_answers(
    open_chat: OpenChat, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps: list[ChatApp] = []
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(ChatApp, "run", lambda app: apps.append(app))
    run_chat(ChatOptions(), {})
    run_chat(ChatOptions(), {"vram_limit": 100_000})  # with the check that people get
    monkeypatch.setattr(model_check, "limits_from_child", lambda device: DeviceLimits(0, 2**27))
    async with open_chat() as scene:
        first = scene.llm
        checks = [app.session._check for app in apps]
        assert checks[0](str(tiny_gguf), None, first, lambda *_: None).path == tiny_gguf  # what is held will be free
        scene.chat.session._check = checks[1]
        await scene.chat.load(str(tiny_gguf))
        await scene.until(lambda: scene.notice is not None)
        assert "The model needs" in words(scene) and "this device can give it 97.7 KiB" in words(scene)
        assert "tiny stays open, with 2048 tokens of context." in words(scene)
        assert not first.is_closed and scene.chat.session.llm is first
        await usable(scene, "tiny")


@pytest.mark.asyncio
async def test_a_load_that_fails_after_all_opens_the_model_before_it_again(open_chat: OpenChat) -> None:
    async with open_chat(n_ctx=1024) as scene:
        first = scene.llm
        await scene.chat.load("missing")
        await scene.until(lambda: scene.notice is not None)
        assert first.is_closed and scene.llm is not first and not scene.llm.is_closed
        assert scene.llm.n_ctx == 1024
        assert "There is no model 'missing'. tiny stays open, with 1024 tokens of context." in words(scene)
        await usable(scene, "tiny")
    async with open_chat(model=None) as scene:  # it is not what the next start opens
        await scene.until(lambda: scene.chat.session.llm is not None)
        assert scene.llm.path.stem == "tiny"


@pytest.mark.asyncio
async def test_a_context_that_does_not_fit_leaves_the_one_there_was(open_chat: OpenChat) -> None:
    async with open_chat(model="huge", n_ctx=1024) as scene:
        await scene.until(lambda: scene.chat.session.llm is not None)
        scene.chat.action_load_with_context(4096)
        await scene.until(lambda: scene.notice is not None)
        assert "huge stays open, with 1024 tokens of context." in words(scene)
        assert scene.llm.n_ctx == scene.chat.session.n_ctx == scene.chat.parameters.n_ctx == 1024
        await usable(scene, "huge")


@pytest.mark.asyncio
async def test_a_load_given_up_while_it_is_checked_leaves_the_open_model(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        first = scene.llm

        def fetch(model: str, n_ctx: int | None, open_llm: LLM, on_progress: Progress) -> FoundModel:
            while True:
                on_progress("fetching other", 1, 100)

        scene.chat.session._check = fetch
        await scene.chat.load("other")
        await scene.until(lambda: "fetching other" in scene.shown)
        await scene.press("escape")
        await scene.until(lambda: scene.chat.session.loading is None)
        assert scene.chat.session.llm is first and not first.is_closed
        await usable(scene, "tiny")


def words(scene: Scene) -> str:
    """What is shown, without the breaks of lines."""
    return " ".join(scene.shown.replace("▎", " ").split())


def damaged(path: Path, good: bytes, change: Callable[[bytes], bytes]) -> str:
    path.write_bytes(change(good))
    return str(path)


def test_the_check_finds_what_can_be_known_without_a_device(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_check, "limits_from_child", lambda device: None)
    told: list[str] = []

    def on_progress(what: str, n_done: int, n_total: int) -> None:
        told.append(what)

    assert check_model(str(tiny_gguf), {}, None, on_progress) == FoundModel(str(tiny_gguf), None, tiny_gguf)
    check_model(str(tiny_gguf), {"n_ctx": 16}, None, on_progress)
    good = tiny_gguf.read_bytes()
    cases: list[tuple[str, int | None, type[VkllmError]]] = [
        (str(tmp_path / "gone.gguf"), None, ModelNotFound),
        (damaged(tmp_path / "text.gguf", good, lambda data: b"no model at all"), None, ModelFileError),
        (damaged(tmp_path / "cut.gguf", good, lambda data: data[: len(data) // 2]), None, ModelFileError),
        (damaged(tmp_path / "other.gguf", good, lambda data: data.replace(b"llama", b"lemma")), None, UnsupportedModel),
        (str(tiny_gguf), 10**9, VkllmError),
    ]
    for model, n_ctx, error in cases:
        with pytest.raises(error):
            check_model(model, {"n_ctx": n_ctx}, None, on_progress)
    assert f"checking {tiny_gguf.name}" in told
