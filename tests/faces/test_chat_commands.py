"""The plain chat's commands: what they change, what they say, and that a wrong one changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_gguf import write_tiny_gguf

from vkllm import InvalidParameter, SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.chat.store import ChatStore, chats_path
from vkllm.faces.cli.line_chat import chat_by_line
from vkllm.faces.cli.line_commands import is_command, run_command
from vkllm.faces.cli.line_local import LineChat
from vkllm.faces.cli.run import RunOptions


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine without a device, and a folder for kept chats."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )
    monkeypatch.setattr("vkllm.faces.chat.model_check.limits_from_child", lambda device: None)
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def line_chat(tiny_gguf: Path) -> Iterator[LineChat]:
    line_chat = LineChat(RunOptions(str(tiny_gguf), system="Be short."), {"temperature": 0.5})
    yield line_chat
    line_chat.close()


class Shown(NamedTuple):
    """What a chat shows after its first line."""

    lines: list[str]
    errors: list[str]


Typed = Callable[..., Shown]


@pytest.fixture
def typed(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Somebody who types lines into a chat and leaves."""

    def type_lines(*lines: str, **options: Any) -> Shown:
        left = iter([*lines, "/bye"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(left))
        chat_by_line(RunOptions(str(tiny_gguf), **options), {})
        shown = capsys.readouterr()
        return Shown(shown.out.splitlines()[1:], shown.err.splitlines())

    return type_lines


# --- What is a command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["/bye", "/? set", "/set system x", "/nonsense"])
def test_a_word_after_a_slash_is_a_command(text: str) -> None:
    assert is_command(text)


@pytest.mark.parametrize("text", ["/etc/passwd: what is it?", "/home", "What is /bye?", "//", "/ 2"])
def test_other_text_with_a_slash_is_for_the_model(text: str) -> None:
    assert is_command(text) == (text == "/home")  # a word alone may well be a mistyped command


def test_an_unknown_command_is_told_and_not_sent_to_the_model(line_chat: LineChat) -> None:
    with pytest.raises(InvalidParameter, match=r"there is no command /bey; /\? lists them"):
        run_command(line_chat, "/bey")


@pytest.mark.parametrize("text", ["/bye", "/exit", "/quit"])
def test_leaving(line_chat: LineChat, text: str) -> None:
    assert not run_command(line_chat, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("/?", "/save NAME"), ("/help", "/load NAME"), ("/? set", "/set noformat"), ("/? /show", "/show template")],
)
def test_help_is_there_for_all_and_for_each(
    line_chat: LineChat, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(line_chat, text)
    assert words in capsys.readouterr().out


# --- /set ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        ("temperature 0.1", {"temperature": 0.1}),
        ("top_k 5", {"temperature": 0.5, "top_k": 5}),
        ("num_predict 7", {"temperature": 0.5, "max_tokens": 7}),
        ("repeat_penalty 1.1", {"temperature": 0.5, "repetition_penalty": 1.1}),
        ("repeat_last_n -1", {"temperature": 0.5, "penalty_window": -1}),
        ("stop END ###", {"temperature": 0.5, "stop": ("END", "###")}),
        ("seed 3", {"temperature": 0.5, "seed": 3}),
    ],
)
def test_parameters_have_ollamas_and_llama_cpps_names(
    line_chat: LineChat, words: str, sampling: dict[str, Any]
) -> None:
    run_command(line_chat, f"/set parameter {words}")
    assert line_chat.sampling == sampling
    SamplingParams(**line_chat.sampling)


def test_minus_one_takes_a_limit_and_a_seed_back(line_chat: LineChat, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("seed 3", "seed -1", "num_predict 9", "num_predict -1"):
        run_command(line_chat, f"/set parameter {words}")
    assert line_chat.sampling == {"temperature": 0.5}
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "seed is random for each answer.",
        "num_predict is 9.",
        "num_predict is as many as there is room for.",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temperature hot", "temperature takes a number, not 'hot'"),
        ("temp -1", "temp must be a number between 0 and 100"),
        ("top_k 1 2", "top_k takes a number, not '1 2'"),
        ("top_k 1.5", "top_k takes a number"),
        ("colour blue", "^there is no parameter colour; `/\\? set` lists those that there are$"),
        ("temprature 1", r"^there is no parameter temprature; did you mean temperature\?$"),
        ("Temperature 1", r"did you mean temperature\?$"),
        ("max_new_tokens 5", r"did you mean max_tokens\?$"),
        ("ctx_size 5", r"did you mean num_ctx\?$"),
        ("num_ctx big", "num_ctx takes a number, not 'big'"),
    ],
)
def test_a_wrong_parameter_changes_nothing(line_chat: LineChat, words: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        run_command(line_chat, f"/set parameter {words}")
    assert line_chat.sampling == {"temperature": 0.5}


def test_the_context_is_set_by_loading_again_and_the_conversation_stays(line_chat: LineChat) -> None:
    line_chat.messages.append({"role": "user", "content": "Hi"})
    run_command(line_chat, "/set parameter num_ctx 100")
    assert line_chat.llm.n_ctx == 100 and len(line_chat.messages) == 1
    with pytest.raises(InvalidParameter, match="a context of 1 token is not possible"):
        run_command(line_chat, "/set parameter num_ctx 1")
    assert line_chat.llm.n_ctx == 100  # the model as it was answers again
    assert line_chat.llm.chat(line_chat.prompt_messages, max_tokens=3).text == "sys"


def test_the_system_message_is_one_line_or_several(typed: Typed) -> None:
    assert typed("/set system Be brief", "Hi").lines[1:] == ["system", "Be brief"]
    assert typed('/set system """Be', 'brief"""', "Hi").lines[1:] == ["system", "Be", "brief"]
    assert typed('/set system """Be brief"""', "Hi", system="Be long").lines[1:] == ["system", "Be brief"]


def test_a_format_and_its_end(line_chat: LineChat) -> None:
    run_command(line_chat, "/set format json")
    assert line_chat.sampling == {"temperature": 0.5, "json_schema": '{"type": "object"}'}
    run_command(line_chat, "/set noformat")
    assert line_chat.sampling == {"temperature": 0.5}
    with pytest.raises(InvalidParameter, match="the format can be json, not 'xml'"):
        run_command(line_chat, "/set format xml")


def test_verbose_shows_counts_until_quiet(typed: Typed) -> None:
    errors = typed("Hi", "/set verbose", "Hi", "/set quiet", "Hi").errors
    assert sum(line.startswith("answer ") for line in errors) == 1


@pytest.mark.parametrize("text", ["/set", "/set parameter", "/set parameter seed", "/set system", "/set x", "/show x"])
def test_half_a_command_shows_what_there_is(line_chat: LineChat, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(line_chat, text)
    assert text[:5] in capsys.readouterr().out


def test_the_sampling_that_a_file_recommends_is_told_and_stays_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20}
    chat = LineChat(RunOptions(str(write_tiny_gguf(tmp_path / "thinking.gguf", fields=fields))), {"top_k": 5})
    run_command(chat, "/show parameters")
    shown = capsys.readouterr().out.splitlines()
    assert (
        "temperature         0.6" in shown and "top_k               5" in shown and "top_p               0.95" in shown
    )
    run_command(chat, "/show info")
    assert "temperature 0.6, top_k 20" in capsys.readouterr().out
    run_command(chat, "/show modelfile")
    modelfile = capsys.readouterr().out.splitlines()
    assert "PARAMETER temperature 0.6" in modelfile and "PARAMETER top_k 5" in modelfile
    chat.close()


# --- /show -----------------------------------------------------------------------------------------------------------


def shown(line_chat: LineChat, what: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    run_command(line_chat, f"/show {what}")
    return capsys.readouterr().out


def test_show_tells_the_model_the_parameters_and_the_texts(
    line_chat: LineChat, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "architecture  llama" in shown(line_chat, "info", capsys)
    parameters = dict(line.split(maxsplit=1) for line in shown(line_chat, "parameters", capsys).splitlines())
    assert parameters["temperature"] == "0.5" and parameters["top_k"] == "40" and parameters["num_ctx"] == "256"
    assert parameters["seed"] == "random for each answer" and parameters["stop"] == "none"
    assert shown(line_chat, "system", capsys) == "Be short.\n"
    assert "<|im_start|>" in shown(line_chat, "template", capsys)
    assert shown(line_chat, "license", capsys) == "The file names no licence.\n"


def test_show_modelfile_has_what_was_set(line_chat: LineChat, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(line_chat, "/set parameter stop a b")
    run_command(line_chat, "/set parameter num_gpu 3")
    lines = shown(line_chat, "modelfile", capsys).splitlines()
    assert lines[:-1] == [
        f"FROM {line_chat.llm.path}",
        "PARAMETER num_ctx 256",
        "PARAMETER num_gpu 3",
        "PARAMETER temperature 0.5",
        "PARAMETER stop a",
        "PARAMETER stop b",
        "SYSTEM Be short.",
    ]
    assert lines[-1].startswith("# The chat template is that of the file")


# --- /save, /load and /clear -----------------------------------------------------------------------------------------


def test_a_saved_conversation_is_gone_on_with_another_time(typed: Typed) -> None:
    saved = typed("/set parameter num_predict 9", "Hi", "/save My chat", system="Be short").lines[-1]
    assert saved.startswith("The conversation is kept as My chat; /load My chat goes on with it")
    lines = typed("/load my CHAT", "/show parameters", "/show system").lines
    assert lines[0] == "My chat: 2 messages, the last one:"
    assert "max_tokens          9" in lines and lines[-1] == "Be short"


def test_the_whole_conversation_comes_back(line_chat: LineChat, folder: Path) -> None:
    line_chat.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    run_command(line_chat, "/save x")
    kept = line_chat.messages
    line_chat.messages, line_chat.system, line_chat.sampling = [], "", {}
    run_command(line_chat, "/load x")
    assert line_chat.messages == kept and line_chat.system == "Be short." and line_chat.sampling == {"temperature": 0.5}
    assert [message["role"] for message in line_chat.prompt_messages] == ["system", "user", "assistant"]
    assert (folder / "chats.db").exists()


def test_saving_again_adds_what_is_new_and_keeps_what_differs_as_versions(line_chat: LineChat) -> None:
    def say(*texts: str) -> None:
        roles = ("user", "assistant") * len(texts)
        line_chat.messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        run_command(line_chat, "/save x")

    say("one", "two")
    say("one", "two", "three", "four")
    say("one", "other")
    store = ChatStore(chats_path())
    [chat] = store.chats()
    assert [message.content for message in store.messages(chat.id)] == ["one", "other"]
    second = store.messages(chat.id)[1]
    assert len(store.variants(second)) == 2
    store.show_variant(chat.id, store.variants(second)[0])
    assert [message.content for message in store.messages(chat.id)] == ["one", "two", "three", "four"]
    store.close()


def test_earlier_reasoning_is_kept_but_not_told_to_the_model(line_chat: LineChat) -> None:
    line_chat.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>hm</think>A"}]
    assert line_chat.prompt_messages[-1]["content"] == "A"
    assert line_chat.messages[-1]["content"] == "<think>hm</think>A"


def test_load_opens_another_model_and_the_conversation_stays(
    line_chat: LineChat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf")
    line_chat.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    run_command(line_chat, f"/load {other}")
    assert line_chat.llm.path == other and line_chat.model.name == str(other) and len(line_chat.messages) == 2
    assert "other on fake device, context of 256 tokens." in capsys.readouterr().out


def test_names_are_asked_for_and_nothing_is_no_conversation(line_chat: LineChat, folder: Path) -> None:
    for text, message in (
        ("/save", "give the conversation a name"),
        ("/save x", "nothing to save yet"),
        ("/load", "name a kept conversation or a model"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            run_command(line_chat, text)
    assert not folder.exists()  # looking for a conversation makes no file


def test_clear_forgets_the_conversation_and_no_setting(line_chat: LineChat) -> None:
    line_chat.messages = [{"role": "user", "content": "Q"}]
    run_command(line_chat, "/clear")
    assert line_chat.messages == [] and line_chat.system == "Be short." and line_chat.sampling == {"temperature": 0.5}


def test_an_error_of_a_command_is_one_line_and_the_chat_goes_on(typed: Typed) -> None:
    lines, errors = typed("/set parameter temperature hot", "/load nothing", "Hi")
    assert lines == ["user", "Hi"]
    assert [error[:30] for error in errors] == ["vkllm: error: temperature take", "vkllm: error: no conversation "]
