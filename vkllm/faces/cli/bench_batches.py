"""`vkllm bench -np`: the speed of many requests at once, with llama.cpp's columns for it (llama-batched-bench).

It chooses prompts and repeats runs; `LLM.benchmark_batch` takes the times.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vkllm import LLM
from vkllm.api.benchmark import BatchTimes
from vkllm.errors import InvalidParameter
from vkllm.faces.cli.bench import Measured, Setup, device_line, driver, each_loaded, model_type

DEFAULT_PROMPT, DEFAULT_GENERATED = 128, 128
"""Tokens of a prompt and of an answer, where none are asked for."""


@dataclass(frozen=True)
class BatchCase:
    """n_parallel requests at once, each of n_prompt tokens and n_gen to be generated."""

    n_parallel: int
    n_prompt: int
    n_gen: int


@dataclass(frozen=True)
class BatchOptions:
    """What was asked for, in the order in which it runs."""

    setups: Sequence[Setup]
    cases: Sequence[BatchCase]
    n_repetitions: int
    warms_up: bool


def batch_cases(n_parallel: Sequence[int], n_prompt: Sequence[int], n_gen: Sequence[int]) -> list[BatchCase]:
    """All combinations. Raises InvalidParameter where one has nothing to run."""
    if min(*n_parallel, *n_prompt, *n_gen, 1) < 1:
        raise InvalidParameter("with -np, requests have prompts and answers: give -np, -p and -n numbers above 0")
    return [BatchCase(users, prompt, gen) for prompt in n_prompt for gen in n_gen for users in n_parallel]


def measure_batches(options: BatchOptions) -> Iterator[Measured]:
    """Loads the first model, then runs all tests as they are asked for. Raises any VkllmError."""
    loaded = each_loaded(options.setups, max(case.n_prompt + case.n_gen + 1 for case in options.cases))

    def results() -> Iterator[Measured]:
        for _, llm in loaded:
            report, numbers = llm.measure_device(), random.Random(0)
            for case in options.cases:
                test_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                runs = [_run(llm, case, numbers) for _ in range(options.n_repetitions + options.warms_up)]
                fields = _fields(llm, case, runs[int(options.warms_up) :])
                names = {"gpu_info": report.info.name, "driver": driver(report), "test_time": test_time}
                yield Measured(fields | names, device_line(report))

    return results()


def _run(llm: LLM, case: BatchCase, numbers: random.Random) -> BatchTimes:
    """One run, with prompts that share nothing."""
    n_vocab = llm.tokenizer.n_vocab
    prompts = [[numbers.randrange(n_vocab) for _ in range(case.n_prompt)] for _ in range(case.n_parallel)]
    return llm.benchmark_batch(prompts, case.n_gen)


def _fields(llm: LLM, case: BatchCase, runs: Sequence[BatchTimes]) -> dict[str, Any]:
    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values)

    n_prompt, n_gen = case.n_parallel * case.n_prompt, case.n_parallel * case.n_gen
    speeds = [run.generate_per_s for run in runs]
    return {
        "model_filename": str(llm.path),
        "model_type": model_type(llm),
        "n_parallel": case.n_parallel,
        "n_prompt": case.n_prompt,
        "n_gen": case.n_gen,
        "n_kv": n_prompt + n_gen,
        "prompt_s": mean(run.prompt_s for run in runs),
        "prompt_ts": mean(n_prompt / run.prompt_s for run in runs),
        "generate_s": mean(run.total_s - run.prompt_s for run in runs),
        "generate_ts": mean(speeds),
        "generate_stddev_ts": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "each_ts": mean(speeds) / case.n_parallel,
        "total_s": mean(run.total_s for run in runs),
        "total_ts": mean((n_prompt + n_gen) / run.total_s for run in runs),
        "first_token_s": mean(mean(run.first_token_s) for run in runs),
        "last_first_token_s": mean(run.prompt_s for run in runs),
    }


_COLUMNS = {
    "model": (30, "model_type", ""),
    "PP": (6, "n_prompt", "d"),
    "TG": (6, "n_gen", "d"),
    "B": (4, "n_parallel", "d"),
    "N_KV": (6, "n_kv", "d"),
    "T_PP s": (8, "prompt_s", ".3f"),
    "S_PP t/s": (8, "prompt_ts", ".2f"),
    "T_TG s": (8, "generate_s", ".3f"),
    "S_TG t/s": (8, "generate_ts", ".2f"),
    "T s": (8, "total_s", ".3f"),
    "S t/s": (8, "total_ts", ".2f"),
    "each t/s": (8, "each_ts", ".2f"),
    "first token ms": (14, "first_token_ms", ".1f"),
}
"""llama-batched-bench's columns, then ours: their width, their field and its format."""


def batch_table(results: Iterable[Measured]) -> Iterator[str]:
    """A table, then a line for each device."""
    yield "| " + " | ".join(title.rjust(width) for title, (width, _, _) in _COLUMNS.items()) + " |"
    yield "|" + "|".join("-" * (width + 1) + ":" for width, _, _ in _COLUMNS.values()) + "|"
    devices: dict[str, None] = {}
    for fields, device in results:
        values = fields | {"first_token_ms": 1000 * fields["first_token_s"]}
        cells = (format(values[name], form).rjust(width) for width, name, form in _COLUMNS.values())
        yield "| " + " | ".join(cells) + " |"
        devices[device] = None
    yield ""
    yield from (f"device: {device}" for device in devices)
