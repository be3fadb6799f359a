"""`/show modelfile`: the model and its settings as a Modelfile, which `ollama create` reads.

Its format: an instruction a line, # begins a comment, quotes are for values of several lines or with spaces around
them. Nothing is escaped in quotes; a value ends at the first line that ends with them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# Field of SamplingParams -> ollama's parameter.
_PARAMETERS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "penalty_window": "repeat_last_n",
    "seed": "seed",
    "stop": "stop",
}


def modelfile(path: Path, n_ctx: int, loading: dict[str, Any], sampling: dict[str, Any], system: str) -> str:
    """The Modelfile. loading: arguments of LLM. sampling: fields of SamplingParams; those ollama lacks are comments.

    The chat template is left out: a Modelfile's is in Go's language and the file's is in Jinja, and ollama finds its
    own for the file.
    """
    lines = [_instruction("FROM", path), f"PARAMETER num_ctx {n_ctx}"]
    if loading.get("n_gpu_layers") is not None:
        lines.append(f"PARAMETER num_gpu {loading['n_gpu_layers']}")
    for field, value in sampling.items():
        for part in value if field == "stop" else [value]:
            lines.append(
                _instruction(f"PARAMETER {_PARAMETERS[field]}", part)
                if field in _PARAMETERS
                else _comment(f"{field} {part}, which ollama has no parameter for")
            )
    if system:
        lines.append(_instruction("SYSTEM", system))
    lines.append("# The chat template is that of the file, which is in Jinja; TEMPLATE would need it in Go's language.")
    return "\n".join(lines)


def _instruction(words: str, value: object) -> str:
    quoted = _quoted(str(value))
    return f"{words} {quoted}" if quoted is not None else _comment(f"{words} {value!r}, which no quotes can hold")


def _quoted(text: str) -> str | None:
    """The text as a value; None if it cannot be one, because quotes at the end of a line in it would end it."""
    if text and text == text.strip() and "\n" not in text and not text.startswith('"'):
        return text
    if '"' not in text:
        return f'"{text}"'
    return None if re.search(r'"""\s*\n', text) else f'"""{text}"""'


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in text.splitlines())
