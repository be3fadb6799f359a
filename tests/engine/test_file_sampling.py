"""What a file recommends as general.sampling.*: what is read of it, and that requests without wishes get it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from vkllm import LLM, SamplingParams
from vkllm.engine.file_sampling import file_sampling
from vkllm.formats.gguf import ModelFile

THINKING = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "penalty_repeat": 1.05, "penalty_last_n": 256}


def write(path: Path, values: dict[str, Any]) -> Path:
    return write_tiny_gguf(path, fields={f"general.sampling.{key}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temp", 0.6, {"temperature": 0.6}),
        ("temp", 1, {"temperature": 1}),
        ("temp", "0.7", {"temperature": 0.7}),
        ("temp", " 7e-1 warm", {"temperature": 0.7}),
        ("temp", -1.0, {"temperature": 0}),
        ("temp", "-5", {"temperature": 0}),
        ("temp", 1000.0, {"temperature": 100}),
        ("temp", float("nan"), {}),
        ("temp", float("inf"), {}),
        ("temp", "warm", {}),
        ("temp", "", {}),
        ("temp", True, {}),
        ("temp", [0.6], {}),
        ("top_k", 20, {"top_k": 20}),
        ("top_k", 20.0, {"top_k": 20}),
        ("top_k", "20.9", {"top_k": 20}),
        ("top_k", -1, {"top_k": 0}),
        ("top_k", "9" * 5000, {"top_k": 2**31}),
        ("top_p", 0.95, {"top_p": 0.95}),
        ("top_p", 2.0, {"top_p": 1}),
        ("top_p", -2.0, {"top_p": 0}),
        ("min_p", 0.01, {"min_p": 0.01}),
        ("min_p", -1.0, {"min_p": 0}),
        ("penalty_repeat", 1.1, {"repetition_penalty": 1.1}),
        ("penalty_repeat", 0.0, {"repetition_penalty": 0.01}),
        ("penalty_last_n", 128, {"penalty_window": 128}),
        ("penalty_last_n", -1, {"penalty_window": -1}),
        ("penalty_last_n", 0, {"penalty_window": 0}),
        ("mirostat", 2, {}),
        ("sequence", "top_k;temp", {}),
        ("", 1, {}),
    ],
)
def test_a_number_becomes_a_parameter_in_its_range_and_anything_else_is_unused(
    tmp_path: Path, key: str, value: Any, expected: dict[str, Any]
) -> None:
    found = file_sampling(ModelFile.open(write(tmp_path / "a.gguf", {key: value})).metadata)
    assert found.values == expected
    assert found.unused.keys() == (set() if expected else {key})
    SamplingParams(**found.values)


def test_requests_get_what_the_file_recommends_unless_they_name_it(
    fake_llm: Callable[..., LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm(model=write(tmp_path / "a.gguf", THINKING), seed=7)
    expected = SamplingParams(
        temperature=0.6, top_k=20, top_p=0.95, min_p=0, repetition_penalty=1.05, penalty_window=256, seed=7
    )
    assert llm.default_params == expected
    sent: list[SamplingParams] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: sent.append(request.params) or submit(request))

    def drawn() -> tuple[float, int, float, float, float, int]:
        (params,) = sent
        sent.clear()
        return (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty, params.seed)

    messages: Any = [{"role": "user", "content": "Hi"}]
    recommended = (0.6, 20, 0.95, 0, 1.05, 7)
    for ask in (
        lambda: llm.generate("X"),
        lambda: llm.generate("X", temperature=None),
        lambda: llm.chat(messages, max_tokens=3),
        lambda: llm.chat.completions.create(messages=messages, max_tokens=3),
        lambda: llm.completions.create(prompt="X", max_tokens=3),
    ):
        ask()
        assert drawn() == recommended
    llm.chat(messages, temperature=0, top_k=0)
    assert drawn() == (0, 0, *recommended[2:])
    llm.chat.completions.create(messages=messages, temperature=1.5, max_tokens=3)
    assert drawn() == (1.5, *recommended[1:])
    llm.generate("X", SamplingParams(max_tokens=3))
    assert drawn() == (0.8, 40, 0.95, 0.05, 1.0, 7)


def test_a_file_that_recommends_nothing_leaves_the_usual_defaults(fake_llm: Callable[..., LLM]) -> None:
    assert fake_llm().default_params == SamplingParams()
