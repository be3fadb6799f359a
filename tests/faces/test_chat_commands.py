"""The plain chat's commands: what they change, what they say, and that a wrong one changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_gguf import write_tiny_gguf

from vkllm import InvalidParameter, ModelNotFound, SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.chat.store import ChatStore, chats_path
from vkllm.faces.cli.line_chat import chat
from vkllm.faces.cli.line_commands import Session, is_command, run_command
from vkllm.faces.cli.run import RunOptions


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine without a device, and a folder for kept chats."""
    monkeypatch.setattr(
        "vkllm.api.loading.EngineProcess", functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    )
    monkeypatch.setenv("VKLLM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def session(tiny_gguf: Path) -> Iterator[Session]:
    session = Session(RunOptions(str(tiny_gguf), system="Be short."), {"temperature": 0.5})
    yield session
    session.close()


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
        chat(RunOptions(str(tiny_gguf), **options), {})
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


def test_an_unknown_command_is_told_and_not_sent_to_the_model(session: Session) -> None:
    with pytest.raises(InvalidParameter, match=r"there is no command /bey; /\? lists them"):
        run_command(session, "/bey")


@pytest.mark.parametrize("text", ["/bye", "/exit", "/quit"])
def test_leaving(session: Session, text: str) -> None:
    assert not run_command(session, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("/?", "/save NAME"), ("/help", "/load NAME"), ("/? set", "/set noformat"), ("/? /show", "/show template")],
)
def test_help_is_there_for_all_and_for_each(
    session: Session, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(session, text)
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
def test_parameters_have_ollamas_and_llama_cpps_names(session: Session, words: str, sampling: dict[str, Any]) -> None:
    run_command(session, f"/set parameter {words}")
    assert session.sampling == sampling
    SamplingParams(**session.sampling)


def test_minus_one_takes_a_limit_and_a_seed_back(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("seed 3", "seed -1", "num_predict 9", "num_predict -1"):
        run_command(session, f"/set parameter {words}")
    assert session.sampling == {"temperature": 0.5}
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "seed is drawn anew for each answer.",
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
        ("colour blue", "there is no parameter colour; there are max_tokens, temperature"),
        ("num_ctx big", "num_ctx takes a number, not 'big'"),
    ],
)
def test_a_wrong_parameter_changes_nothing(session: Session, words: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        run_command(session, f"/set parameter {words}")
    assert session.sampling == {"temperature": 0.5}


def test_the_context_is_set_by_loading_again_and_the_conversation_stays(session: Session) -> None:
    session.messages.append({"role": "user", "content": "Hi"})
    run_command(session, "/set parameter num_ctx 100")
    assert session.llm.n_ctx == 100 and len(session.messages) == 1
    with pytest.raises(InvalidParameter, match="a context of 1 token is not possible"):
        run_command(session, "/set parameter num_ctx 1")
    assert session.llm.n_ctx == 100  # the model as it was answers again
    assert session.llm.chat(session.prompt_messages, max_tokens=3).text == "sys"


def test_the_system_message_is_one_line_or_several(typed: Typed) -> None:
    assert typed("/set system Be brief", "Hi").lines[1:] == ["system", "Be brief"]
    assert typed('/set system """Be', 'brief"""', "Hi").lines[1:] == ["system", "Be", "brief"]
    assert typed('/set system """Be brief"""', "Hi", system="Be long").lines[1:] == ["system", "Be brief"]


def test_a_format_and_its_end(session: Session) -> None:
    run_command(session, "/set format json")
    assert session.sampling == {"temperature": 0.5, "json_schema": '{"type": "object"}'}
    run_command(session, "/set noformat")
    assert session.sampling == {"temperature": 0.5}
    with pytest.raises(InvalidParameter, match="the format can be json, not 'xml'"):
        run_command(session, "/set format xml")


def test_verbose_shows_counts_until_quiet(typed: Typed) -> None:
    errors = typed("Hi", "/set verbose", "Hi", "/set quiet", "Hi").errors
    assert sum(line.startswith("answer ") for line in errors) == 1


@pytest.mark.parametrize("text", ["/set", "/set parameter", "/set parameter seed", "/set system", "/set x", "/show x"])
def test_half_a_command_shows_what_there_is(session: Session, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(session, text)
    assert text[:5] in capsys.readouterr().out


# --- /show -----------------------------------------------------------------------------------------------------------


def shown(session: Session, what: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    run_command(session, f"/show {what}")
    return capsys.readouterr().out


def test_show_tells_the_model_the_parameters_and_the_texts(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "architecture  llama" in shown(session, "info", capsys)
    parameters = dict(line.split(maxsplit=1) for line in shown(session, "parameters", capsys).splitlines())
    assert parameters["temperature"] == "0.5" and parameters["top_k"] == "40" and parameters["num_ctx"] == "256"
    assert parameters["seed"] == "drawn anew for each answer" and parameters["stop"] == "none"
    assert shown(session, "system", capsys) == "Be short.\n"
    assert "<|im_start|>" in shown(session, "template", capsys)
    assert shown(session, "license", capsys) == "The file names no licence.\n"


def test_show_modelfile_is_what_ollama_would_read(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(session, "/set parameter stop a b")
    lines = shown(session, "modelfile", capsys).splitlines()
    assert lines[0] == f"FROM {session.llm.path}"
    assert lines[1:6] == [
        "PARAMETER num_ctx 256",
        "PARAMETER temperature 0.5",
        "PARAMETER stop a",
        "PARAMETER stop b",
        'SYSTEM """Be short."""',
    ]
    assert lines[6].startswith('TEMPLATE """{% for message in messages %}')


# --- /save, /load and /clear -----------------------------------------------------------------------------------------


def test_a_saved_conversation_is_gone_on_with_another_time(typed: Typed) -> None:
    saved = typed("/set parameter num_predict 9", "Hi", "/save My chat", system="Be short").lines[-1]
    assert saved.startswith("The conversation is kept as My chat; /load My chat goes on with it")
    lines = typed("/load my CHAT", "/show parameters", "/show system").lines
    assert lines[0] == "My chat: 2 messages, the last one:"
    assert "max_tokens          9" in lines and lines[-1] == "Be short"


def test_the_whole_conversation_comes_back(session: Session, folder: Path) -> None:
    session.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    run_command(session, "/save x")
    kept = session.messages
    session.messages, session.system, session.sampling = [], "", {}
    run_command(session, "/load x")
    assert session.messages == kept and session.system == "Be short." and session.sampling == {"temperature": 0.5}
    assert [message["role"] for message in session.prompt_messages] == ["system", "user", "assistant"]
    assert (folder / "chats.db").exists()


def test_saving_again_adds_what_is_new_and_keeps_what_differs_as_versions(session: Session) -> None:
    def say(*texts: str) -> None:
        roles = ("user", "assistant") * len(texts)
        session.messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        run_command(session, "/save x")

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


def test_earlier_reasoning_is_kept_but_not_told_to_the_model(session: Session) -> None:
    session.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>hm</think>A"}]
    assert session.prompt_messages[-1]["content"] == "A"
    assert session.messages[-1]["content"] == "<think>hm</think>A"


def test_load_opens_another_model_and_the_conversation_stays(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf")
    session.messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    run_command(session, f"/load {other}")
    assert session.llm.path == other and session.model == str(other) and len(session.messages) == 2
    assert "other on fake device, context of 256 tokens." in capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(session: Session, tmp_path: Path) -> None:
    path = session.llm.path
    with pytest.raises(ModelNotFound, match="no conversation is kept as 'nothing', and as a model: There is no model"):
        run_command(session, "/load nothing")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF")
    with pytest.raises(Exception, match=r"damaged\.gguf"):
        run_command(session, f"/load {damaged}")
    assert session.llm.path == path
    assert session.llm.generate("Xab", max_tokens=2).text == "ab"


def test_names_are_asked_for_and_nothing_is_no_conversation(session: Session, folder: Path) -> None:
    for text, message in (
        ("/save", "give the conversation a name"),
        ("/save x", "nothing to save yet"),
        ("/load", "name a kept conversation or a model"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            run_command(session, text)
    assert not folder.exists()  # looking for a conversation makes no file


def test_clear_forgets_the_conversation_and_no_setting(session: Session) -> None:
    session.messages = [{"role": "user", "content": "Q"}]
    run_command(session, "/clear")
    assert session.messages == [] and session.system == "Be short." and session.sampling == {"temperature": 0.5}


def test_an_error_of_a_command_is_one_line_and_the_chat_goes_on(typed: Typed) -> None:
    lines, errors = typed("/set parameter temperature hot", "/load nothing", "Hi")
    assert lines == ["user", "Hi"]
    assert [error[:30] for error in errors] == ["vkllm: error: temperature take", "vkllm: error: no conversation "]
