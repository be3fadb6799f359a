"""Compares small random models of every family with llama.cpp's answers, and writes docs/models.md.

    scripts/models.py [-dev DEVICE] [--check]

Models and answers lie beside the checkout (../shared/tiny) and in tests/model. --check writes nothing. It fails where a
bound is exceeded; tests/gpu/test_tiny_models.py runs the same comparisons.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from family_models import VARIANTS, write_variant  # noqa: E402
from file_reference import file_reference, log_softmax  # noqa: E402

from vkllm.formats.gguf import ModelFile  # noqa: E402
from vkllm.formats.quants import FORMATS  # noqa: E402
from vkllm.gpu.device.kompute import Device  # noqa: E402
from vkllm.gpu.program.program import Program  # noqa: E402
from vkllm.gpu.program.step import LOGITS, Part  # noqa: E402
from vkllm.model.architectures import FAMILIES, model_spec  # noqa: E402
from vkllm.model.reference import Floats  # noqa: E402

TINY = ROOT.parent / "shared" / "tiny"
ANSWERS = ROOT / "tests" / "model" / "answers.json"
PAGE = ROOT / "docs" / "models.md"

BOUND = 0.02
"""Largest difference of a log-probability on a device, where keys, values and activations are rounded."""

NUMPY_BOUND = 2e-4
GELU_BOUND = 5e-3
"""Of the float32 reference; llama.cpp takes GELU from a table of float16 arguments."""

NEAR_TIES = {"mistral4": 6}
"""Rows where two experts are equally good within what float16 keys change, so that either may be chosen."""

PROMPTS = (8, 17, 40)
"""Lengths of prompts whose last row is compared; all rows are compared token by token."""


INTRODUCTION = """# Models

`general.architecture` of a GGUF file names its family. vkllm runs these, and refuses others by name, as it refuses a
file with a tensor or a setting that its family does not compute.

`scripts/models.py` wrote this page, on {device}. It runs small random models in which the options of a family are set,
and compares log-probabilities at 40 positions and greedy tokens with those of llama.cpp 0.5.0 in float32. The numbers
are the largest differences: of the reference in numpy, of prompts (keys, values and activations are rounded there), and
of decoding token by token.
"""

NOTES = """- `phi3`: like llama.cpp, every layer sees all keys, whatever sliding window the file names.
- YaRN's beta_fast, beta_slow and log_multiplier are read for `mistral3` only, as in llama.cpp; its ext_factor for none.
- `gpt-oss` and `olmo2`: files of ollama's registry, which name them `gptoss` and `olmo3`, run too.
- `mistral4`: decoding is compared at all positions but one, where two experts are equally good within what float16 keys
  change, so that another one is chosen there.
- `gemma-embedding`, and others with `attention.causal` = false, read in both directions: embeddings only, of texts as
  long as the context (512 tokens on several devices). Their embeddings are compared with llama.cpp's instead
  (tests/model/test_family_models.py), with the dense layers behind pooling that EmbeddingGemma's files may have.
- Layers with a sliding window cache that window and some more. A conversation that goes back by more than about 512
  tokens is therefore read again from its beginning.
- Layers with a state (`lfm2`, `qwen35`, `qwen3next`, `granitehybrid`, `nemotron_h` and theirs) keep a few states of
  earlier tokens. A prompt that differs from the last one is read again from the last of these that both share: where
  two prompts differed before, shortly before the end of the last prompt, or at chunks of it.
"""


@dataclass(frozen=True, eq=False)
class Case:
    """A small model and what llama.cpp says of it: answers["positions"] for each token of the prompt, or for those at
    answers["rows"]."""

    name: str
    path: Path
    answers: dict[str, Any]

    @property
    def architecture(self) -> str:
        """Its family."""
        return ModelFile.open(self.path).metadata.string("general.architecture")

    @property
    def is_format(self) -> bool:
        """Whether it is a llama in one format, made to compare that."""
        return self.name.startswith("quant-")

    @property
    def numpy_bound(self) -> float:
        """The bound of the reference."""
        return GELU_BOUND if self.architecture in ("gemma2", "gemma3", "gemma4", "starcoder2") else NUMPY_BOUND


@dataclass(frozen=True)
class Comparison:
    """Largest differences of log-probabilities from llama.cpp's, of the listed tokens, and whether the greedy tokens
    are the same."""

    numpy: float
    prompt: float
    decode: float
    has_same_greedy: bool


def cases(folder: Path) -> list[Case]:
    """The small models that vkllm runs. folder: for models that have to be written first."""
    found = [
        Case(path.stem, path, json.loads(path.with_suffix(".json").read_text()))
        for path in sorted(TINY.glob("*.gguf"))
        if _is_supported(ModelFile.open(path))
    ]
    kept = json.loads(ANSWERS.read_text())
    covered = {case.architecture for case in found}
    for name, answers in kept["models"].items():
        if VARIANTS[name].architecture not in covered:
            path = write_variant(folder / f"{name.replace(' ', '_')}.gguf", name)
            found.append(
                Case(name, path, answers | {"prompt_tokens": kept["prompt_tokens"], "rows": kept["rows"], "n_ctx": 256})
            )
            covered.add(VARIANTS[name].architecture)
    return found


def _is_supported(file: ModelFile) -> bool:
    architecture = file.metadata.string("general.architecture")
    formats = {tensor.format for tensor in file.tensors.values()}
    return architecture in FAMILIES and formats <= set(FORMATS)


def compare(device: Device, case: Case) -> Comparison:
    """Runs a small model in numpy and on a device. Raises VkllmError."""
    path, answers = case.path, case.answers
    file = ModelFile.open(path)
    spec, tokens = model_spec(file.metadata, file.tensors), answers["prompt_tokens"]
    reference = file_reference(path, answers["n_ctx"]).run(tokens)
    program = Program(device, spec, path, file.tensors, answers["n_ctx"])
    table = list(range(program.n_blocks))

    def logits(token_ids: list[int], start: int, *, is_prompt: bool = False) -> Floats:
        part = Part(0, token_ids, start, table, results=LOGITS)
        return program.logits(program.submit([part], is_prompt=is_prompt))

    positions = dict(zip(answers.get("rows", range(len(tokens))), answers["positions"], strict=True))
    prompts = [
        difference(logits(tokens[:n], 0, is_prompt=True), positions[n - 1]) for n in PROMPTS if n - 1 in positions
    ]
    steps = [logits([token], i) for i, token in enumerate(tokens)]
    token, greedy = int(steps[-1].argmax()), []
    for i in range(len(answers["greedy"])):
        greedy.append(token)
        token = int(logits([token], len(tokens) + i).argmax())
    return Comparison(
        max(difference(reference[row], top) for row, top in positions.items()),
        max(prompts),
        max(difference(steps[row], top) for row, top in positions.items() if row != NEAR_TIES.get(case.name)),
        greedy == [step if isinstance(step, int) else step["token"] for step in answers["greedy"]],
    )


def difference(logits: Floats, top: list[tuple[int, float]]) -> float:
    """The largest difference of a row's log-probabilities (V,) from those of some tokens."""
    row = log_softmax(logits)
    return max(abs(float(row[token]) - logprob) for token, logprob in top)


def page(device_name: str, results: dict[Case, Comparison]) -> str:
    """The text of docs/models.md."""
    families, formats = [], []
    for architecture, family in FAMILIES.items():
        of_family = [case for case in results if case.architecture == architecture and not case.is_format]
        rows = [(f"`{case.name}`", _row(results[case])) for case in of_family] or [("", "see below | | |")]
        for i, (what, row) in enumerate(rows):
            first = (f"`{architecture}`", family.models) if i == 0 else ("", "")
            families.append(f"| {' | '.join(first)} | {what} | {row} |")
    for case in results:
        if case.is_format:
            formats.append(f"| {case.name[6:].upper()} | {_row(results[case])} |")
    head = ("numpy", "prompts", "decoding", "greedy tokens")
    return "\n".join(
        [
            INTRODUCTION.format(device=device_name),
            f"| architecture | models | compared | {' | '.join(head)} |",
            "| --- | --- | --- | ---: | ---: | ---: | --- |",
            *families,
            "",
            NOTES,
            "Every matrix of a file may have any of these formats:",
            "",
            f"| format | {' | '.join(head)} |",
            "| --- | ---: | ---: | ---: | --- |",
            *formats,
            "",
        ]
    )


def _row(result: Comparison) -> str:
    greedy = "the same" if result.has_same_greedy else "differ"
    return f"{result.numpy:.0e} | {result.prompt:.4f} | {result.decode:.4f} | {greedy}"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where a comparison fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-dev", "--device", help="index or name")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options: Any = parser.parse_args(arguments)
    device = Device(options.device)
    results: dict[Case, Comparison] = {}
    fails = False
    with TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            results[case] = result = compare(device, case)
            is_close = max(result.prompt, result.decode) < BOUND and result.numpy < case.numpy_bound
            fails |= not (is_close and result.has_same_greedy)
            print(f"{case.name:20} {_row(result)}", flush=True)
        if not options.check:
            PAGE.write_text(page(device.info.name, results))
    device.close()
    return int(fails)


if __name__ == "__main__":
    sys.exit(main())
