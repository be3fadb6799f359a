"""One unit of size everywhere: what people read is binary, with its own names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vkllm
from vkllm.sizes import size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1000, "1000 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (98_362_432, "93.8 MiB"),
        (4_920_000_000, "4.6 GiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (99.96 * 2**20, "100 MiB"),
        (1023.4 * 2**20, "1023 MiB"),
        (80 * 2**30, "80.0 GiB"),
        (512 * 2**30, "512 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_sizes_are_binary_and_say_so(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


def test_no_message_names_a_decimal_unit() -> None:
    """Speeds of memory alone (GB/s) are decimal, as everywhere."""
    package = Path(vkllm.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = ast.unparse(node)
                assert not re.search(r"\}\s*[kMGT]B\b(?!/s)", text), f"{path}: {text}"
