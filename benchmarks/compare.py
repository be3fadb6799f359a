"""Times two or more versions of vkllm in turn on the same models, and says whether they give the same texts.

    benchmarks/compare.py old=FOLDER new=. -m MODEL.gguf... [--rounds 3] [--prompt 512] [--generate 128]
        [--depths 0,4096] [--users 4,8,32] [--device 0] [--option n_ctx=8192...] [--seconds 450] [--out results.jsonl]

A FOLDER is a checkout whose shaders and layer are built. Each round runs every version once, in a process of its own,
every other round in the opposite order, so that a device that warms up or is disturbed favours none. A version that
does not know an option or fails is told by its last line; the others go on. Speeds are tok/s, mean and deviation of all
rounds. `first pp` is the first prompt after loading. Texts are compared by greedy tokens, a seeded sample and the
scores of a text, bit for bit, with the version that is named first.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apart import found_by, keep, table_line

Numbers = dict[str, Any]


def main() -> None:
    """Runs what was asked for."""
    options = _options()
    if options.one:
        print(json.dumps(measured(json.loads(options.one))))
        return
    end = time.monotonic() + options.seconds
    n_failed = 0
    for model in options.models:
        found: dict[str, list[Numbers]] = {name: [] for name in options.versions}
        for name in _turns(list(options.versions), options.rounds):
            left_s = end - time.monotonic()
            if left_s < max((row["seconds"] for rows in found.values() for row in rows), default=1.0):
                print(f"left out for want of time: {model.stem}, {name}", flush=True)
                continue
            row = _run(options.versions[name], model, options, left_s)
            if "error" in row:
                n_failed += 1
                print(f"{model.stem}, {name}: {row['error']}", flush=True)
                continue
            found[name].append(row)
            keep(options.out, {"model": model.name, "version": name, **row})
        _print_table(model, found)
    sys.exit(1 if n_failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("-m", "--models", nargs="+", type=Path, default=[], metavar="MODEL.gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3, help="within a round, after the one that warms up")
    parser.add_argument("--depths", default="0", help="tokens in the context before decoding is timed")
    parser.add_argument("--users", default="", help="numbers of requests at once, such as 4,8,32")
    parser.add_argument("--device", default="0")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of `LLM`")
    parser.add_argument("--seconds", type=float, default=450, help="for everything")
    parser.add_argument("--out", type=Path, help="a file to append every result to, as a line of JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return options
    if not options.versions or not options.models:
        parser.error("name at least one version, as NAME=FOLDER, and one model")
    if unclear := [each for each in options.versions + options.option if "=" not in each]:
        parser.error(f"{unclear[0]} has no '='")
    options.versions = {
        name: Path(folder).resolve() for name, folder in (each.split("=", 1) for each in options.versions)
    }
    for folder in options.versions.values():
        if not (folder / "vkllm" / "__init__.py").is_file():
            parser.error(f"{folder} is no checkout of vkllm")
    if missing := [str(model) for model in options.models if not model.is_file()]:
        parser.error(f"there is no file {', '.join(missing)}")
    return options


def _turns(names: list[str], n_rounds: int) -> Iterator[str]:
    for number in range(n_rounds):
        yield from reversed(names) if number % 2 else names


def _run(folder: Path, model: Path, options: argparse.Namespace, left_s: float) -> Numbers:
    """What a process of its own measured, or the last line of its complaint."""
    what = {
        "model": str(model.resolve()),
        "n_prompt": options.prompt,
        "n_generated": options.generate,
        "n_repetitions": options.repetitions,
        "depths": _whole_numbers(options.depths),
        "users": _whole_numbers(options.users),
        "options": {"device": options.device} | dict(map(_option, options.option)),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(what)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = time.monotonic()
    row = found_by(command, left_s, folder, PYTHONPATH=path)
    return row | {"seconds": time.monotonic() - start}


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _option(text: str) -> tuple[str, Any]:
    name, value = text.split("=", 1)
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def measured(what: Numbers) -> Numbers:
    """Loads a model with the version that is first in PYTHONPATH, and times it as `what` says."""
    import vkllm

    n_prompt, n_generated, depths, users = what["n_prompt"], what["n_generated"], what["depths"], what["users"]
    per_user = 16 + n_generated
    n_ctx = max(n_prompt + 2, 256, max(depths) + n_generated + 2, per_user * max(users, default=0) + 64)
    options = {"n_ctx": n_ctx, "spec": "off", "n_parallel": max(users, default=0) or None} | what["options"]
    start = time.monotonic()
    with vkllm.LLM(what["model"], **options) as llm:
        row: Numbers = {"load s": time.monotonic() - start}
        numbers = random.Random(0)

        def tokens(n: int) -> list[int]:
            return [numbers.randrange(3, llm.tokenizer.n_vocab) for _ in range(n)]

        prompts = [
            n_prompt / llm.benchmark_generate(tokens(n_prompt), 1).prompt_s for _ in range(what["n_repetitions"] + 1)
        ]
        row |= {"first pp": prompts[0], "pp": statistics.fmean(prompts[1:])}
        for depth in depths:
            before = tokens(max(depth, 1))
            times = [
                llm.benchmark_generate(before, n_generated + 1).generate_s for _ in range(what["n_repetitions"] + 1)
            ]
            row[f"tg at {depth}" if depth else "tg"] = n_generated / statistics.fmean(times[1:])
        for n_users in users:
            llm.benchmark_batch([tokens(16) for _ in range(n_users)], 8)
            speeds = [
                llm.benchmark_batch([tokens(16) for _ in range(n_users)], n_generated).generate_per_s for _ in range(2)
            ]
            row[f"{n_users} users"] = statistics.fmean(speeds)
        text = tokens(200)
        greedy = llm.generate(text[:32], max_tokens=64, temperature=0).token_ids
        sample = llm.generate(text[:32], max_tokens=64, temperature=0.8, seed=1).token_ids
        row["texts"] = [_digest(greedy), _digest(sample), _digest(llm.score(text))]
        row["version"] = str(Path(vkllm.__file__).parent)
        return row


def _digest(values: Sequence[float]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:12]


def _print_table(model: Path, found: dict[str, list[Numbers]]) -> None:
    """A line a version; a speed has its mean and deviation, and how much of the first version's it is."""
    rows = {name: rows for name, rows in found.items() if rows}
    if not rows:
        return
    first = next(iter(rows.values()))
    titles = [name for name, value in first[0].items() if isinstance(value, float) and name != "seconds"]
    print("", table_line([model.stem, *titles, "same greedy, sample, scores"]), sep="\n")
    print(table_line(["---", *["---:"] * len(titles), "---"]))
    for name, each in rows.items():
        cells = []
        for title in titles:
            values, before = [row[title] for row in each], statistics.fmean(row[title] for row in first)
            mean, deviation = statistics.fmean(values), statistics.pstdev(values)
            cells.append(f"{mean:.1f} ± {deviation:.1f} ({mean / before:.2f})")
        same = ["yes" if all(row["texts"][i] == first[0]["texts"][i] for row in each) else "no" for i in range(3)]
        print(table_line([name, *cells, ", ".join(same)]), flush=True)


if __name__ == "__main__":
    main()
