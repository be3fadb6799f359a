"""How fast answers are with drafts and without: a text that is repeated with small edits, and a free text.

Run: python scripts/speculation.py [--model smollm2] [-n 400] [--free 256] [--device NAME]

The prompt of the repeated text is the text and the first quarter of its copy with edits, which the model goes on with.
Each answer is greedy, by a model that was loaded for it and has answered a short prompt before. Prints tokens a second,
their ratio, drafts, and whether the text is the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vkllm import LLM, RunStats

PROSE = Path(__file__).parents[1] / "docs" / "design.md"

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
        answer = llm.generate(prompt, max_tokens=n, temperature=0, ignore_eos=True)
        return Run(tuple(answer.token_ids), answer.stats)


def main() -> None:
    """Measures and prints both texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("-n", type=int, default=400, help="tokens of the repeated text")
    parser.add_argument("--free", type=int, default=256, help="tokens of the free text")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--bytes", type=int, default=4096, help="length of the text that is repeated")
    parser.add_argument("--device")
    options = parser.parse_args()
    text = text_of(options.bytes)
    copied = edited(text)
    cases = {
        "repeated": (f"{text}\n\nThe same with small edits:\n\n{copied[: len(copied) // 4]}", options.n),
        "free": (FREE, options.free),
    }
    print("text      spec  tok/s   ratio  drafted  accepted  same text")
    for name, (prompt, n) in cases.items():
        off, auto = (run(options, spec, prompt, n) for spec in ("off", "auto"))
        for spec, each in (("off", off), ("auto", auto)):
            ratio = each.stats.generate_per_s / off.stats.generate_per_s
            n_same = next((i for i, (a, b) in enumerate(zip(off.token_ids, each.token_ids, strict=False)) if a != b), n)
            same = "yes" if off.token_ids == each.token_ids else f"first {n_same} tokens"
            print(
                f"{name:9} {spec:5} {each.stats.generate_per_s:6.1f}  {ratio:5.2f}  {each.stats.n_drafted:7} "
                f"{each.stats.n_accepted:9}  {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
