"""A model's file is read while its engine loads, and what is wrong with the file is said in any case."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import byte_tokens, write_tiny_gguf

from vkllm import LLM, ModelFileError, UnsupportedModel
from vkllm.api import loading
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.progress import Progress

TOKENS = [*byte_tokens(), "<|im_start|>", "<|im_end|>", "qq"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[EngineProcess]:
    """The engines that loading makes, none of which needs a device."""
    engines: list[EngineProcess] = []

    def make(*arguments: Any) -> EngineProcess:
        engines.append(EngineProcess(*arguments, factory="fake_engine:FakeEngine"))
        return engines[-1]

    monkeypatch.setattr(loading, "EngineProcess", make)
    return engines


def test_the_engine_loads_while_the_tokenizer_is_made(
    made: list[EngineProcess], tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text, was_alive = loading.read_text, []

    def read(*arguments: Any) -> Any:
        was_alive.append(made[0].is_alive)
        return read_text(*arguments)

    monkeypatch.setattr(loading, "read_text", read)
    with LLM(tiny_gguf) as llm:
        assert llm.generate("ab", max_tokens=2, temperature=0).text
    assert was_alive == [True]


@pytest.mark.parametrize("device", [None, "none"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "q"]}, "has 'q' twice"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "has 2 items for 259 tokens"),
        ({"tokenizer.chat_template": "{% if %}"}, "not valid Jinja"),
    ],
    ids=["a token twice", "types of two tokens", "a template that is none"],
)
def test_what_is_wrong_with_the_file_ends_the_engine_and_is_said_whatever_the_device(
    made: list[EngineProcess], tmp_path: Path, fields: dict[str, Any], message: str, device: str | None
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields)
    with pytest.raises(ModelFileError, match=message):
        LLM(path, device=device)
    (engine,) = made
    assert engine.is_closed and not engine.is_alive


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModel, "the tokenizer 'bert' is not supported"),
        ({"tokenizer.ggml.pre": "new"}, UnsupportedModel, "the pre-tokenizer 'new' is not supported"),
        ({"tokenizer.ggml.tokens": [*TOKENS, "more"]}, ModelFileError, "has 260 tokens, but the embedding only 259"),
        ({"tokenizer.ggml.tokens": [1, 2]}, ModelFileError, "not array of string"),
    ],
)
def test_what_can_be_known_at_once_is_said_before_an_engine_starts(
    made: list[EngineProcess], tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields))
    assert not made


def test_progress_is_told_in_hundredths_up_to_all_of_it() -> None:
    told: list[tuple[int, int]] = []
    progress = Progress(100_000, lambda done, total: told.append((done, total)))
    for _ in range(10_000):
        progress.add(10)
    progress.add(10)  # more than there are
    assert told == [(1000 * n, 100_000) for n in range(1, 101)]


def test_what_few_requests_need_is_imported_when_one_does() -> None:
    script = (
        "import sys; from vkllm import LLM; import vkllm.faces.cli.run\n"
        "slow = {'asyncio', 'llguidance', 'openai', 'pydantic', 'textual', 'uvicorn', 'vulkan', 'kp'}\n"
        "print(*sorted(slow & sys.modules.keys()))\n"
        "from vkllm import SamplingParams; from vkllm.api.answer_form import grammar_of\n"
        "print(grammar_of(SamplingParams()), 'llguidance' in sys.modules)\n"
        "print(grammar_of(SamplingParams(regex='a')) is not None, 'llguidance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["", "None False", "True True"]
