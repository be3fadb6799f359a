"""A model is checked before the one that is open is closed for it, in the plain chat as in the one on the screen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from vkllm import ModelNotFound, NoDevice, OutOfDeviceMemory, VkllmError
from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.chat import model_check
from vkllm.faces.chat.model_check import check_model, held_bytes
from vkllm.faces.cli.line_chat import chat_by_line
from vkllm.faces.cli.line_commands import run_command
from vkllm.faces.cli.line_local import LineChat
from vkllm.faces.cli.opening import RunOptions
from vkllm.gpu.device.limits import device_limits, limits_from_child
from vkllm.gpu.device.probe import choose_device, devices
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.store import look_up


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine without a device, whose limits nobody knows."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )
    monkeypatch.setattr(model_check, "limits_from_child", lambda device: None)
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path / "data"))


@pytest.fixture
def line_chat(tiny_gguf: Path) -> Iterator[LineChat]:
    line_chat = LineChat(RunOptions(str(tiny_gguf)), {})
    yield line_chat
    line_chat.close()


def answers(line_chat: LineChat) -> bool:
    return line_chat.llm.generate("Xab", max_tokens=2).text == "ab"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/load nothing", "no conversation is kept as 'nothing', and as a model: There is no model"),
        ("/load {folder}/missing.gguf", "no such file"),
        ("/load {folder}/damaged.gguf", r"damaged\.gguf"),
        ("/load {folder}/other.gguf", "architecture 'mamba' is not supported"),
        ("/load {folder}/text.gguf", r"text\.gguf"),
        ("/load {folder}/template.gguf", "the chat template is not valid Jinja"),
        ("/set parameter num_ctx 1", "a context of 1 token is not possible"),
        ("/set parameter num_ctx 9999", "a context of 9999 tokens is not possible"),
        ("/set parameter num_ctx -5", "a context of -5 tokens is not possible"),
        ("/set parameter num_gpu -7", "n_gpu_layers"),
        ("/load {folder}/large.gguf", "the model needs .* and this device can give it"),
        ("/set parameter num_ctx 250", "the model needs .* and this device can give it"),
        ("/set parameter num_ctx 0", "the model needs"),
    ],
)
def test_what_cannot_be_loaded_is_known_before_the_open_model_is_closed(
    line_chat: LineChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    (tmp_path / "text.gguf").write_text("a letter " * 100)
    write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba")
    write_tiny_gguf(tmp_path / "template.gguf", template="{% if %}")
    write_tiny_gguf(tmp_path / "large.gguf")
    if "needs" in message:
        monkeypatch.setattr(model_check, "limits_from_child", lambda device: DeviceLimits(100_000, 2**27))
    before = line_chat.llm
    monkeypatch.setattr(before, "close", lambda: pytest.fail("the open model was closed"))
    with pytest.raises(VkllmError, match=message):
        run_command(line_chat, command.format(folder=tmp_path))
    monkeypatch.undo()
    assert line_chat.llm is before and answers(line_chat)


def test_a_model_that_fails_while_it_is_loaded_brings_the_one_before_back(line_chat: LineChat, tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf")
    before = line_chat.llm
    with pytest.raises(NoDevice):  # of which only the engine knows
        line_chat.open(look_up(str(other)), {"device": "none"})
    assert line_chat.llm is not before and line_chat.llm.path == before.path and answers(line_chat)
    assert line_chat.loading == {}


def test_a_model_that_cannot_be_opened_again_either_leaves_a_chat_without_one_that_says_so(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf")
    lines = iter([f"/load {other}", "Hi", "/show info", "/show parameters", f"/load {tiny_gguf}", "Hi", "/bye"])
    start = EngineProcess.start
    full = "the memory is full; close another program"
    is_full = False

    def typed(prompt: str) -> str:
        nonlocal is_full
        line = next(lines)
        is_full = line == f"/load {other}"
        return line

    def start_unless_full(engine: EngineProcess) -> None:
        if is_full:
            raise OutOfDeviceMemory(full)
        start(engine)

    monkeypatch.setattr(EngineProcess, "start", start_unless_full)
    monkeypatch.setattr("builtins.input", typed)
    chat_by_line(RunOptions(str(tiny_gguf)), {})
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"vkllm: error: {full}; and {tiny_gguf}, which was open before, could not be opened again ({full}), so no "
        "model is open; `/load MODEL` opens one",
        *["vkllm: error: no model is open; `/load MODEL` opens one"] * 3,
    ]
    assert out.splitlines()[1:] == ["tiny on fake device, context of 256 tokens.", "user", "Hi"]


def test_ctrl_c_while_another_model_is_loaded_brings_the_one_before_back(
    line_chat: LineChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = EngineProcess.start
    stops = iter([True, False])

    def stopped_once(engine: EngineProcess) -> None:
        if next(stops):
            raise KeyboardInterrupt
        start(engine)

    monkeypatch.setattr(EngineProcess, "start", stopped_once)
    with pytest.raises(KeyboardInterrupt):
        run_command(line_chat, "/set parameter num_ctx 100")
    assert line_chat.llm.n_ctx == 256 and answers(line_chat)


def test_without_an_open_model_a_chat_says_so_and_nothing_is_counted_as_held(line_chat: LineChat) -> None:
    line_chat.close()
    line_chat._llm = None
    with pytest.raises(ModelNotFound, match="no model is open"):
        line_chat.llm  # noqa: B018
    assert held_bytes(None) == {}
    run_command(line_chat, "/set parameter num_ctx 100")
    assert line_chat.llm.n_ctx == 100 and answers(line_chat)


def test_a_plan_counts_the_memory_of_the_open_model_as_free(monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> None:
    """What the driver has moved to slower memory lies there."""
    tiers = (SimpleNamespace(tier=Tier.LOCAL, used_bytes=500_000), SimpleNamespace(tier=Tier.HOST, used_bytes=7))
    open_llm: Any = SimpleNamespace(plan=SimpleNamespace(tiers=tiers), moved_bytes=100_000)
    assert held_bytes(open_llm) == {"local": 400_000, "host": 100_007}
    seen: list[DeviceLimits] = []
    monkeypatch.setattr(model_check, "limits_from_child", lambda device: DeviceLimits(10**6, 10**9, spill_bytes=10**5))
    monkeypatch.setattr("vkllm.api.planning.ModelToPlan.plan", lambda self, limits, options: seen.append(limits))
    check_model(str(tiny_gguf), {"type_k": "q8_0", "device": "1"}, open_llm)
    check_model(str(tiny_gguf), {}, None)
    assert [(limits.memory_bytes, limits.spill_bytes) for limits in seen] == [(1_400_000, 200_007), (10**6, 10**5)]


@pytest.mark.gpu
def test_a_child_process_finds_the_limits_of_the_device_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKLLM_VRAM_LIMIT", "300M")
    info = choose_device(devices(), None)
    assert limits_from_child(None) == limits_from_child(str(info.index)) == device_limits(info)
    assert limits_from_child("no such device") is None
