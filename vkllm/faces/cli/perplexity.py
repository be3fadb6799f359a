"""`vkllm perplexity`: how well a model predicts a text, measured as llama.cpp does.

The text is cut into chunks of the context's length, and the second half of each is scored, whose tokens have at least
half a context before them. It knows files and the terminal; `LLM.score` does the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vkllm import LLM, InvalidParameter
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.terminal import counted, loading_bar
from vkllm.formats.gguf import ModelFile
from vkllm.store import find_model
from vkllm.text.tokenizer import Tokenizer


def measure_perplexity(model: str, file: Path, *, n_ctx: int, n_chunks: int | None, loading: Mapping[str, Any]) -> None:
    """Prints the estimate after each chunk and at the end. n_chunks: at most so many; None for all.

    loading: other arguments of LLM.
    """
    try:
        text = file.read_bytes().decode(errors="replace").removesuffix("\n")
    except OSError as error:
        raise InvalidParameter(f"cannot read {file}: {error.strerror}") from error
    found = ensure_here(model)
    with loading_bar() as on_progress:
        path = find_model(found, on_progress=on_progress)
        model_file = ModelFile.open(path)
        tokenizer = Tokenizer.from_gguf(model_file.metadata)
        token_ids = tokenizer.encode(text, parse_special=False)
        if len(token_ids) < n_ctx:
            raise InvalidParameter(
                f"{file} has {counted(len(token_ids), 'token')}, fewer than a chunk of {n_ctx}; "
                "take a longer text or a smaller -c"
            )
        llm = LLM(replace(found, path=path, file=model_file), n_ctx=n_ctx, **loading, on_progress=on_progress)
    with llm:
        logprobs: list[float] = []
        parts = list(chunks(token_ids, n_ctx, tokenizer.bos_id if tokenizer.adds_bos else None))[:n_chunks]
        for i, chunk in enumerate(parts):
            logprobs += llm.score(chunk, first=n_ctx // 2 + 1)
            print(f"[{i + 1}]{perplexity(logprobs)[0]:.4f},", end="", flush=True)
        value, error_bar = perplexity(logprobs)
        print(f"\nFinal estimate: PPL = {value:.4f} +/- {error_bar:.5f}")


def chunks(token_ids: Sequence[int], n_ctx: int, bos_id: int | None) -> Iterator[list[int]]:
    """Whole chunks of n_ctx tokens; bos_id takes the place of the first token of each."""
    for start in range(0, len(token_ids) - n_ctx + 1, n_ctx):
        chunk = list(token_ids[start : start + n_ctx])
        yield chunk if bos_id is None else [bos_id, *chunk[1:]]


def perplexity(logprobs: Sequence[float]) -> tuple[float, float]:
    """Perplexity and its standard error, from the logarithms of the probabilities of all scored tokens."""
    mean = -math.fsum(logprobs) / len(logprobs)
    variance = math.fsum(logprob**2 for logprob in logprobs) / len(logprobs) - mean**2
    error = math.sqrt(variance / (len(logprobs) - 1)) if len(logprobs) > 1 and variance > 0 else 0.0
    return math.exp(mean), error * math.exp(mean)
