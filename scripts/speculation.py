"""How fast answers are with drafts and without: a text that is repeated with small edits, and a free text.

Run: python scripts/speculation.py [--model smollm2] [-n 400] [--free 256] [--pairs 3] [--spec auto,mtp] [--device NAME]

The prompt of the repeated text is the text and the first quarter of its copy with edits, which the model goes on with.
Each answer is greedy, by a model that was loaded for it and has answered a short prompt before; answers with drafts
and without take turns, because other programs may have the machine. Prints, for each way of drafting, tokens a second
without drafts and with them (medians), their ratio (median and least), drafts, and whether the text is the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from vkllm import LLM, RunStats, plan_model

PROSE = Path(__file__).parents[1] / "docs" / "design.md"

PAUSE_S = 1.5
"""Behind the first answer, as before anybody's next question: the engine then gets ready for drafts."""

FREE = "Write a story about a lighthouse keeper who finds a letter in a bottle."


def text_of(n_bytes: int) -> str:
    """The beginning of a chapter of prose, in whole sentences."""
    text = PROSE.read_text().split("## How a step runs", 1)[1].strip().replace("**", "")[:n_bytes]
    return text[: text.rindex(".") + 1]


def edited(text: str) -> str:
    """The text with the fifth word of every fourth line replaced."""
    lines = text.split("\n")
    for i in range(1, len(lines), 4):
        words = lines[i].split(" ")
        words[4:5] = ["granite"]
        lines[i] = " ".join(words)
    return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """An answer: its token ids, and its counts."""

    token_ids: tuple[int, ...]
    stats: RunStats


def run(options: argparse.Namespace, spec: str, prompt: str, n: int) -> Run:
    """A greedy answer of a model that has just been loaded, behind one that warms it up."""
    with LLM(options.model, n_ctx=options.ctx, device=options.device, spec=spec) as llm:
        llm.generate("One, two, three, four, five, one, two, three, four, five, one, two", max_tokens=24, temperature=0)
        time.sleep(PAUSE_S)
        answer = llm.generate(prompt, max_tokens=n, temperature=0, ignore_eos=True)
        return Run(tuple(answer.token_ids), answer.stats)


def has_head(options: argparse.Namespace) -> bool:
    """Whether the model's file has a head for further tokens that fits."""
    made = plan_model(options.model, n_ctx=options.ctx, device=options.device, measures=False)
    return made.plan.n_predictors > 0


def row(name: str, spec: str, pairs: Sequence[tuple[Run, Run]]) -> str:
    """A line of the table. pairs: an answer without drafts, and one with them right behind it."""
    ratios = [with_drafts.stats.generate_per_s / off.stats.generate_per_s for off, with_drafts in pairs]
    off, last = pairs[-1]
    places = enumerate(zip(off.token_ids, last.token_ids, strict=False))
    n_same = next((i for i, (a, b) in places if a != b), len(off.token_ids))
    same = "yes" if off.token_ids == last.token_ids else f"first {n_same} tokens"
    speeds = [median(each[i].stats.generate_per_s for each in pairs) for i in (0, 1)]
    return (
        f"{name:9} {spec:5} {speeds[0]:7.1f} {speeds[1]:7.1f}  {median(ratios):5.2f}  {min(ratios):5.2f}  "
        f"{last.stats.n_drafted:7} {last.stats.n_accepted:9}  {same}"
    )


def main() -> None:
    """Measures and prints both texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("-n", type=int, default=400, help="tokens of the repeated text")
    parser.add_argument("--free", type=int, default=256, help="tokens of the free text")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--bytes", type=int, default=4096, help="length of the text that is repeated")
    parser.add_argument("--pairs", type=int, default=3, help="answers without and with drafts, in turn")
    parser.add_argument("--spec", help="modes with commas; the default is auto, and mtp where the file has a head")
    parser.add_argument("--device")
    options = parser.parse_args()
    text = text_of(options.bytes)
    copied = edited(text)
    cases = {
        "repeated": (f"{text}\n\nThe same with small edits:\n\n{copied[: len(copied) // 4]}", options.n),
        "free": (FREE, options.free),
    }
    modes = options.spec.split(",") if options.spec else ["auto", *(["ngram", "mtp"] if has_head(options) else [])]
    print("text      spec      off    with  ratio  least  drafted  accepted  same text")
    for name, (prompt, n) in cases.items():
        for spec in modes:
            pairs = [(run(options, "off", prompt, n), run(options, spec, prompt, n)) for _ in range(options.pairs)]
            print(row(name, spec, pairs), flush=True)


if __name__ == "__main__":
    main()
