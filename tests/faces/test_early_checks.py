"""What is wrong with a request is told before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import N_CTX, write_tiny_gguf

from vkllm import ContextOverflow, InvalidParameter
from vkllm.engine.process.handle import EngineProcess
from vkllm.faces.cli import app as cli
from vkllm.faces.cli.opening import RunOptions
from vkllm.faces.cli.perplexity import measure_perplexity
from vkllm.faces.cli.run import run_model
from vkllm.model.memory.plan import PlanOptions


class Loaded(Exception):
    """The model would have been loaded now."""


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise Loaded

    monkeypatch.setattr("vkllm.api.loading.EngineProcess.start", load)


def run(model: Path, prompt: str, sampling: dict[str, Any] | None = None, **options: Any) -> None:
    run_model(RunOptions(str(model), prompt, **options), sampling or {})


@pytest.fixture(autouse=True)
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's terminal, with nothing piped."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"json_schema": '{"type": "nonsense"}'}, "json_schema"),
        ({"regex": "(["}, "regex"),
        ({"grammar": "root ::= nothing"}, "grammar"),
    ],
)
def test_a_form_that_is_none(tiny_gguf: Path, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        run(tiny_gguf, "Hi", sampling)


@pytest.mark.parametrize(
    ("options", "n_tokens"),
    [({"is_raw": True}, 300), ({}, 300), ({"is_raw": True, "loading": {"n_ctx": 40}}, 41)],
)
def test_a_prompt_that_is_too_long(tiny_gguf: Path, options: dict[str, Any], n_tokens: int) -> None:
    with pytest.raises(ContextOverflow, match=r"the prompt has \d+ tokens, but the context holds"):
        run(tiny_gguf, "a" * n_tokens, **options)
    with pytest.raises(Loaded):
        run(tiny_gguf, "a", **options)


def test_the_longest_prompt_that_fits_is_loaded_for_and_one_token_more_is_not(tiny_gguf: Path) -> None:
    with pytest.raises(Loaded):
        run(tiny_gguf, "a" * (N_CTX - 1), is_raw=True)
    with pytest.raises(ContextOverflow, match=f"has {N_CTX} tokens"):
        run(tiny_gguf, "a" * N_CTX, is_raw=True)


def test_a_chat_prompt_counts_its_template_and_system_message(tiny_gguf: Path) -> None:
    with pytest.raises(ContextOverflow):
        run(tiny_gguf, "a" * (N_CTX - 1))
    with pytest.raises(ContextOverflow):
        run(tiny_gguf, "a", system="b" * N_CTX)


def test_a_prompt_to_a_model_without_a_template_is_the_text_itself(tmp_path: Path) -> None:
    base = write_tiny_gguf(tmp_path / "base.gguf", template=None)
    with pytest.raises(Loaded):
        run(base, "a" * (N_CTX - 1))
    with pytest.raises(ContextOverflow):
        run(base, "a" * N_CTX)


@pytest.mark.parametrize("n_ctx", [1, 9999])
def test_a_context_that_is_not_possible(tiny_gguf: Path, n_ctx: int) -> None:
    with pytest.raises(InvalidParameter, match=f"a context of {n_ctx} token"):
        run(tiny_gguf, "Hi", loading={"n_ctx": n_ctx})


def test_perplexity_and_tune_load_as_run_does(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text("a" * 64)
    loaded: list[PlanOptions] = []

    def load(engine: EngineProcess) -> None:
        loaded.append(engine._config.options)
        raise Loaded

    monkeypatch.setattr(EngineProcess, "start", load)
    options = ["-ngl", "1", "-ctk", "q8_0", "-ctv", "q8_0", "--vram-limit", "1G", "--ram-limit", "2G"]
    for command in (
        ["run", str(tiny_gguf), "Hi"],
        ["perplexity", str(tiny_gguf), "-f", str(text), "-c", "64"],
        ["tune", str(tiny_gguf)],
    ):
        with pytest.raises(Loaded):
            cli.app([*command, *options], prog_name="vkllm", standalone_mode=False)
    assert loaded == [PlanOptions("q8_0", "q8_0", 1, 2**30, 2**31)] * 3


@pytest.mark.parametrize(("n_letters", "words"), [(1, "1 token,"), (63, "63 tokens,"), (64, None)])
def test_a_text_that_is_too_short_for_perplexity(
    tiny_gguf: Path, tmp_path: Path, n_letters: int, words: str | None
) -> None:
    path = tmp_path / "text"
    path.write_text("a" * n_letters)
    with pytest.raises(Loaded if words is None else InvalidParameter) as raised:
        measure_perplexity(str(tiny_gguf), path, n_ctx=64, n_chunks=None, loading={})
    assert words is None or f"has {words} fewer than a chunk of 64; take a longer text or a smaller -c" in str(
        raised.value
    )
