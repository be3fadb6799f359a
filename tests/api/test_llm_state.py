"""`save_state` and `load_state` of the Python API: a chat goes on in another process; paths, errors, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from vkllm import LLM, DeviceLost, Generation, InvalidParameter, NoDevice, StateFileError

MakeLLM = Callable[..., LLM]

CHAT: list[dict[str, str]] = [
    {"role": "system", "content": "Answer in few words."},
    {"role": "user", "content": "What is a cat?"},
]
QUESTION = {"role": "user", "content": "And a dog?"}

GO_ON = """
import json, sys
from vkllm import LLM
model, state, messages, options = sys.argv[1:]
with LLM(model, **json.loads(options)) as llm:
    token_ids = llm.load_state(state)
    answer = llm.chat(json.loads(messages), temperature=0, max_tokens=8)
    print(json.dumps([token_ids, answer.token_ids, answer.stats.n_cached]))
"""


def in_another_process(model: Path, state: Path, messages: list[dict[str, str]], options: dict[str, Any]) -> Any:
    """Token ids that were cached, those of the answer, and how much of its prompt was cached."""
    arguments = [str(model), str(state), json.dumps(messages), json.dumps(options)]
    command = [sys.executable, "-c", GO_ON, *arguments]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_that_a_chat_goes_on(llm: LLM, path: Path, **options: Any) -> None:
    """Asks, saves, asks on here; and asks on in a process that has run nothing before."""
    first = llm.chat(CHAT, temperature=0, max_tokens=8)
    llm.save_state(path)
    longer = [*CHAT, {"role": "assistant", "content": first.text}, QUESTION]
    here = llm.chat(longer, temperature=0, max_tokens=8)
    token_ids, tokens, n_cached = in_another_process(llm.path, path, longer, options)
    assert token_ids[: len(first.prompt_token_ids)] == first.prompt_token_ids
    assert (tokens, n_cached) == (here.token_ids, here.stats.n_cached)
    assert n_cached >= len(first.prompt_token_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_a_chat_goes_on_in_another_process(tiny_gguf: Path, tmp_path: Path, cache_type: str) -> None:
    options = {"type_k": cache_type, "type_v": cache_type}
    try:
        llm = LLM(tiny_gguf, **options)  # type: ignore[arg-type]
    except NoDevice as error:
        pytest.skip(str(error))
    with llm:
        check_that_a_chat_goes_on(llm, tmp_path / "chat.npz", **options)


@pytest.mark.gpu
@pytest.mark.weights
def test_a_chat_with_the_default_model_goes_on_in_another_process(smollm2: LLM, tmp_path: Path) -> None:
    check_that_a_chat_goes_on(smollm2, tmp_path / "chat.npz")


@pytest.mark.gpu
def test_a_refused_state_leaves_a_model_that_answers_as_before(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"PK\x03\x04 and nothing sound")
    try:
        llm = LLM(tiny_gguf)
    except NoDevice as error:
        pytest.skip(str(error))
    with llm:
        before = llm.generate("Once upon", temperature=0, max_tokens=8)
        with pytest.raises(StateFileError, match="damaged: not a sound saved state"):
            llm.load_state(tmp_path / "damaged")
        after = llm.generate("Once upon", temperature=0, max_tokens=8)
        assert (after.token_ids, after.stats.n_cached) == (before.token_ids, before.stats.n_prompt - 1)
        llm.save_state(tmp_path / "sound")
    with pytest.raises(DeviceLost, match="the engine was closed"):
        llm.save_state(tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_paths_are_those_of_the_callers_folder_and_home(
    fake_llm: MakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm()
    llm.generate("Xab", max_tokens=1)
    monkeypatch.chdir(tmp_path)  # the engine's process stays where it is
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    llm.save_state("here")
    llm.save_state("~/there")
    assert sorted(path.name for path in tmp_path.rglob("*here")) == ["here", "there"]
    assert llm.load_state(Path("here")) == llm.load_state("~/there") == [88, 97, 98]
    with pytest.raises(StateFileError, match="no such state"):
        llm.load_state("nowhere")


def test_a_thread_that_saves_waits_for_the_answer_of_another(fake_llm: MakeLLM, tmp_path: Path) -> None:
    llm = fake_llm()
    stream = llm.stream(chr(fake.SLOW) + "abc", max_tokens=6)
    next(stream)
    saving = threading.Thread(target=llm.save_state, args=(tmp_path / "state",))
    saving.start()
    saving.join(0.05)
    assert saving.is_alive(), "the answer takes 0.3 s"
    answer: Generation = stream.result()
    saving.join(120)
    assert llm.load_state(tmp_path / "state") == answer.prompt_token_ids


def test_a_stream_that_was_left_does_not_stand_in_the_way(fake_llm: MakeLLM, tmp_path: Path) -> None:
    llm = fake_llm()
    with llm.stream(chr(fake.SLOW) + "abc", max_tokens=200) as stream:
        next(stream)
    llm.save_state(tmp_path / "state")
    assert llm.load_state(tmp_path / "state") == [fake.SLOW, *b"abc"]


@pytest.mark.gpu
def test_nothing_cached_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    try:
        llm = LLM(tiny_gguf)
    except NoDevice as error:
        pytest.skip(str(error))
    with llm, pytest.raises(InvalidParameter, match="nothing is cached that could be saved; run a prompt first"):
        llm.save_state(tmp_path / "empty")
