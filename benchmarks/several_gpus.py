"""Times models on one GPU and split over several, by layers and by tensors, and prints one table.

    benchmarks/several_gpus.py MODEL.gguf... [--cards 1,2,4,8] [--modes none,layer,tensor] [--devices 0,1]
        [--users 8] [--seconds 450] [--out results.jsonl] [--llama PROGRAM --llama-libs FOLDER]

Each run is a process of its own: it loads a model once, times prompts and decoding of one user, decoding of several
users, and answers a prompt greedily, to be compared with the answer of one card. Runs that the time does not suffice
for are left out by name. PROGRAM is llama_cpp.c beside this file, built; it runs with the same cards and modes.
Speeds are tok/s; GB/s is what all cards read together for the tokens of one user, and the share is of what so many
cards read at best.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apart import found_by, keep, output, table_line

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LOAD_BYTES_PER_S, RUN_S = 3e9, 20
"""For guesses whether a run still fits into the time: how fast files are loaded at least, and what else a run takes."""

N_GREEDY = 32
"""Tokens of the answer that is compared."""


@dataclass(frozen=True)
class Run:
    """One run. devices: indices, one for each card."""

    model: Path
    devices: tuple[int, ...]
    mode: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model.stem}, {len(self.devices)} x, {self.mode}"


def main() -> None:
    """Runs what was asked for."""
    options = _options()
    if options.one:
        print(json.dumps(measured(json.loads(options.one))))
        return
    end = time.monotonic() + options.seconds
    devices = _devices(options.devices)
    print(_machine(devices), flush=True)
    runs = list(_runs(options, devices))
    alone: dict[Path, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    print(table_line(_TITLES), table_line(["---", *["---:"] * (len(_TITLES) - 1)]), sep="\n", flush=True)
    for run in runs:
        left_s = end - time.monotonic()
        if left_s < _guess_s(run):
            print(f"| left out for want of time: {run.name} |", flush=True)
            continue
        row = _result(run, options, left_s)
        if llama := options.llama and _llama(run, options, end - time.monotonic()):
            row |= llama
        if len(run.devices) == 1:
            alone[run.model] = row
        rows.append(row)
        print(table_line(_cells(run, row, alone.get(run.model, {}))), flush=True)
        keep(options.out, {"model": run.model.name, "n_cards": len(run.devices), "mode": run.mode, **row})
    if all("error" in row for row in rows):
        sys.exit("nothing was measured")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--cards", default="1,2,4,8", help="numbers of cards, as far as there are so many")
    parser.add_argument("--modes", default="layer,tensor", help="ways of splitting over more than one card")
    parser.add_argument("--devices", help="indices, such as 0,1; by default all discrete GPUs")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--users", type=int, default=8, help="requests at once; 0 leaves this out")
    parser.add_argument("--seconds", type=float, default=450, help="for everything")
    parser.add_argument("--out", type=Path, help="a file to append every result to, as a line of JSON")
    parser.add_argument("--llama", type=Path, help="the program of llama_cpp.c")
    parser.add_argument("--llama-libs", type=Path, help="the folder with llama.cpp's libraries")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.one and not options.models:
        parser.error("name at least one model")
    if options.llama and not options.llama_libs:
        parser.error("--llama needs --llama-libs")
    if missing := [str(model) for model in options.models if not model.is_file()]:
        parser.error(f"there is no file {', '.join(missing)}")
    return options


def _devices(asked: str | None) -> list[dict[str, Any]]:
    """The devices that cards are taken from, in order."""
    command = [sys.executable, "-m", "vkllm", "devices", "--json"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    if asked:
        return [found[int(index)] for index in asked.split(",")]
    discrete = [device for device in found if device["type"] == "discrete"]
    return [device for device in discrete if device["name"] == discrete[0]["name"]] or found[:1]


def _machine(devices: Sequence[dict[str, Any]]) -> str:
    first = devices[0]
    driver = f"{first['driver_name']} {first['driver_version']}"
    return f"{len(devices)} x {first['name']}, {driver}, {os.cpu_count()} cores\n"


def _runs(options: argparse.Namespace, devices: Sequence[dict[str, Any]]) -> Iterator[Run]:
    """One card first: the others are compared with it. Tensors before layers, in case the time does not suffice."""
    indices = [device["index"] for device in devices]
    counts = [n for n in map(int, options.cards.split(",")) if n <= len(indices)]
    for model in options.models:
        for n in counts:
            modes = ["none"] if n == 1 else sorted(options.modes.split(","), reverse=True)
            yield from (Run(model, tuple(indices[:n]), mode) for mode in modes if n == 1 or mode != "none")


def _guess_s(run: Run) -> float:
    return RUN_S + run.model.stat().st_size / LOAD_BYTES_PER_S


def _result(run: Run, options: argparse.Namespace, left_s: float) -> dict[str, Any]:
    """What a process of its own measured, or the last line of its complaint."""
    what = {
        "model": str(run.model),
        "devices": run.devices,
        "mode": run.mode,
        "n_prompt": options.prompt,
        "n_generated": options.generate,
        "n_repetitions": options.repetitions,
        "n_users": options.users,
    }
    command = [sys.executable, __file__, "--one", json.dumps(what)]
    return found_by(command, left_s, ROOT)


def _llama(run: Run, options: argparse.Namespace, left_s: float) -> dict[str, Any]:
    """llama.cpp's speeds with the same cards and mode."""
    numbers = [str(options.prompt), str(options.generate), str(options.repetitions)]
    command = [str(options.llama), str(run.model), str(options.llama_libs), run.mode, *numbers]
    cards = ",".join(map(str, run.devices))
    printed, error = output(command, left_s, ROOT, GGML_VK_VISIBLE_DEVICES=cards)
    if error:
        print(f"llama.cpp, {run.name}: {error}", file=sys.stderr, flush=True)
        return {"llama_error": error}
    return {f"llama_{name}": float(value) for name, value in (line.split() for line in printed.splitlines())}


def measured(what: dict[str, Any]) -> dict[str, Any]:
    """Loads a model as `what` says and times it."""
    from vkllm import LLM
    from vkllm.model.memory.plan import decode_bytes

    devices, n_prompt, n_generated = what["devices"], what["n_prompt"], what["n_generated"]
    start = time.monotonic()
    placing: dict[str, Any] = {"device": devices[0]}
    if len(devices) > 1:
        placing = {"device": ",".join(map(str, devices)), "split_mode": what["mode"]}
    n_users = what["n_users"]
    n_ctx = max(n_prompt + n_generated + 2, 64 + N_GREEDY, n_users * (16 + n_generated) + 64)
    with LLM(what["model"], n_ctx=n_ctx, n_parallel=n_users or None, spec="off", **placing) as llm:
        loaded_s = time.monotonic() - start
        numbers = random.Random(0)

        def tokens(n: int) -> list[int]:
            return [numbers.randrange(3, llm.tokenizer.n_vocab) for _ in range(n)]

        greedy = llm.generate(tokens(32), max_tokens=N_GREEDY, temperature=0)
        prompts, decodes, many = [], [], []
        for _ in range(what["n_repetitions"] + 1):  # the first warms up
            prompts.append(n_prompt / llm.benchmark_generate(tokens(n_prompt), 1).prompt_s)
            decodes.append(n_generated / llm.benchmark_generate(tokens(1), n_generated + 1).generate_s)
        if n_users:
            batch = [tokens(16) for _ in range(n_users)]
            llm.benchmark_batch([tokens(16) for _ in range(n_users)], 8)
            many.append(llm.benchmark_batch(batch, n_generated).generate_per_s)
        read = llm.measure_device().read_bytes_per_s
        n_bytes = decode_bytes(llm.spec, llm.tensors, n_generated / 2)
        tg = _mean(decodes[1:])
        return {
            "load_s": loaded_s,
            "pp": _mean(prompts[1:]),
            "tg": tg,
            "tg_all": decodes,
            "users": many[0] if many else None,
            "gb_per_s": tg * n_bytes / 1e9,
            "share": tg * n_bytes / (read * len(devices)),
            "read_gb_per_s": read / 1e9,
            "token_ids": greedy.token_ids,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_TITLES = [
    "model, cards, split",
    "tg",
    "of one card",
    "GB/s",
    "share",
    "pp",
    "of one card",
    "users",
    "load s",
    "same tokens",
    "llama.cpp tg",
    "pp",
]


def _cells(run: Run, row: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [run.name, row["error"]]

    def number(name: str, form: str = ".1f") -> str:
        return format(row[name], form) if row.get(name) is not None else ""

    def times(name: str) -> str:
        return f"{row[name] / alone[name]:.2f}" if alone.get(name) else ""

    same = ""
    if "token_ids" in alone:
        pairs = zip(row["token_ids"], alone["token_ids"], strict=False)
        n_same = next((i for i, (one, other) in enumerate(pairs) if one != other), len(alone["token_ids"]))
        same = f"{n_same} of {len(alone['token_ids'])}"
    return [
        run.name,
        number("tg"),
        times("tg"),
        number("gb_per_s", ".0f"),
        number("share", ".0%"),
        number("pp", ".0f"),
        times("pp"),
        number("users", ".0f"),
        number("load_s"),
        same,
        number("llama_tg"),
        number("llama_pp", ".0f"),
    ]


if __name__ == "__main__":
    main()
