"""`/show modelfile` against a reader of ollama's format: what was set comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vkllm.faces.cli.modelfile import modelfile


def as_ollama_reads(text: str) -> list[tuple[str, str]]:
    """Instructions and their values: a value goes on over line ends while it has begun with quotes and not ended."""
    found, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            parameter, _, value = value.partition(" ")
            name = f"PARAMETER {parameter}"
        while (plain := unquoted(value.strip())) is None:
            value += "\n" + lines.pop(0)
        found.append((name, plain))
    return found


def unquoted(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            is_whole = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if is_whole else None
    return text


def written(sampling: dict[str, Any], system: str = "") -> str:
    return modelfile(Path("/models/my model.gguf"), 4096, {"n_gpu_layers": None}, sampling, system)


def test_parameters_have_the_names_of_ollama() -> None:
    sampling = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "penalty_window": 9,
        "seed": 7,
    }
    assert as_ollama_reads(written(sampling)) == [
        ("FROM", "/models/my model.gguf"),
        ("PARAMETER num_ctx", "4096"),
        ("PARAMETER num_predict", "5"),
        ("PARAMETER temperature", "0.5"),
        ("PARAMETER top_k", "3"),
        ("PARAMETER top_p", "0.9"),
        ("PARAMETER min_p", "0.1"),
        ("PARAMETER repeat_penalty", "1.1"),
        ("PARAMETER presence_penalty", "0.2"),
        ("PARAMETER frequency_penalty", "0.3"),
        ("PARAMETER repeat_last_n", "9"),
        ("PARAMETER seed", "7"),
    ]


TEXTS = ["###", "User:", " leading", "trailing ", "\n\n", "a\nb", "# no", ""]
TEXTS += ['say "hi"', '"quoted"', '"', '"""', 'a\n"b" c']


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_as_they_were(text: str) -> None:
    read = as_ollama_reads(written({"stop": (text, "END")}, text or "x"))
    assert read[2:] == [("PARAMETER stop", text), ("PARAMETER stop", "END"), ("SYSTEM", text or "x")]


def test_what_ollama_cannot_read_is_a_comment() -> None:
    text = written({"json_schema": '{\n"type": "object"}', "context_shift": True, "stop": ('a"""\nb',)})
    assert as_ollama_reads(text) == [("FROM", "/models/my model.gguf"), ("PARAMETER num_ctx", "4096")]
    assert "# json_schema {" in text and "# context_shift True" in text and "TEMPLATE {" not in text
