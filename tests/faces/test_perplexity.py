"""`vkllm perplexity`: llama.cpp's chunks, halves and figures, and the default model's quality."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import FAKE, Command

from vkllm import LLM
from vkllm.faces.cli.perplexity import chunks, perplexity

GPL = Path("/usr/share/common-licenses/GPL-3")


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    assert command.leftovers() == []


def test_chunks_are_whole_and_bos_takes_the_first_place_of_each() -> None:
    assert list(chunks(range(11), 4, None)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(chunks(range(8), 4, 99)) == [[99, 1, 2, 3], [99, 5, 6, 7]]
    assert list(chunks(range(3), 4, 99)) == []


def test_perplexity_is_the_inverse_geometric_mean_with_its_standard_error() -> None:
    assert perplexity([math.log(0.25)] * 5) == pytest.approx((4, 0))
    value, error = perplexity([math.log(0.5), math.log(0.125)])
    assert value == pytest.approx(4)
    # the logarithms lie log(2) to both sides; of two, the mean's error is as large; times the perplexity
    assert error == pytest.approx(4 * math.log(2))


def test_the_second_half_of_each_chunk_is_scored(command: Command, tiny_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("aaaaabbb" + "aaaaaccc" + "too short\n")
    done = command.run([*FAKE, "perplexity", "-m", str(tiny_gguf), "-f", str(text), "-c", "8", "--chunks", "2"])
    # the fake engine says -n / 100 for token n; 4 tokens are the first half, and the fifth is predicted from it alone
    first, both = math.exp(ord("b") / 100), math.exp((ord("b") + ord("c")) / 200)
    error = both * 0.005 / math.sqrt(5)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"[1]{first:.4f},[2]{both:.4f},\nFinal estimate: PPL = {both:.4f} +/- {error:.5f}\n"


@pytest.mark.parametrize(
    ("options", "words"), [(["-c", "64"], "fewer than a chunk of 64"), (["-f", "missing"], "cannot read missing")]
)
def test_what_cannot_be_measured_is_one_line(
    command: Command, tiny_gguf: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "text").write_text("short")
    done = command.run([*FAKE, "perplexity", "-m", str(tiny_gguf), "-f", str(tmp_path / "text"), *options])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


# The same chunk in vkllm/model/reference.py, numpy float32 with nothing rounded but the file's own blocks. For three
# chunks of 512 tokens the reference says 16.2911, llama.cpp 16.290, and vkllm on lavapipe 16.2894; there a chunk of 256
# takes half a minute, so one stands for them.
EXACT = 16.7305
BOUND = 0.005  # what 16-bit activations and a float16 cache may cost; int8 activations cost more


@pytest.mark.gpu
@pytest.mark.weights
@pytest.mark.skipif(not GPL.exists(), reason="needs the licence text that Debian brings")
def test_the_default_models_perplexity_is_that_of_exact_arithmetic(smollm2: LLM) -> None:
    text = GPL.read_bytes()[:9000].decode()
    token_ids = smollm2.tokenizer.encode(text, parse_special=False)
    chunk = next(chunks(token_ids, 256, None))
    value, _ = perplexity(smollm2.score(chunk, first=129))
    assert value == pytest.approx(EXACT, rel=BOUND)
