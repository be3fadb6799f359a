"""attention against numpy: grouped heads, scattered blocks, both formats, windows, soft caps, several sequences."""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import AttentionCase, one_sequence
from kernel_case import Scores, nmse

from vkllm.gpu.device.kompute import Device

pytestmark = pytest.mark.gpu

BOUND = 1e-10  # float32 throughout; what the cache keeps is the reference's input too
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "heads", "k_format", "v_format"),
    [  # large heads take long to compile
        *[
            (*of, k, v)
            for of in [(9, 3, 64, 3), (4, 4, 32, 1)]
            for k, v in (("f16",) * 2, ("q8_0",) * 2, ("q8_0", "f16"))
        ],
        *[(8, 1, 128, 4, k, v) for k, v in (("f16", "f16"), ("q8_0", "q8_0"))],
        *[(2, 1, 96, 2, "q8_0", "f16"), (2, 2, 256, 1, "q8_0", "f16"), (2, 2, 256, 1, "f16", "f16")],
    ],
)
@pytest.mark.parametrize("positions", [[63], [200], [0, 1, 2], [150, 151, 152, 153, 154]], ids=str)
def test_attention(
    device: Device,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    heads: int,
    positions: list[int],
    k_format: str,
    v_format: str,
) -> None:
    case = one_sequence(device, (n_heads, n_kv_heads, head_dim), positions, (k_format, v_format))
    (y,), q16 = case.run(heads)
    assert nmse(y, case.wanted[0]) < BOUND
    assert q16 is not None and nmse(q16[0], case.wanted[0]) < Q16_BOUND


@pytest.mark.parametrize(
    ("shape", "heads", "first", "n_rows", "scores"),
    [
        pytest.param((4, 2, 8), 2, 70, 3, Scores(1.0, window=5), id="tiny heads"),
        pytest.param((3, 1, 40), 3, 150, 5, Scores(0.3, softcap=20.0), id="softcap"),
        pytest.param((2, 2, 80), 1, 198, 5, Scores(0.1, window=40, n_window_blocks=3), id="blocks of a window"),
        pytest.param(
            *((4, 2, 80), 2, 300, 3, Scores(0.1, softcap=30.0, window=64, n_window_blocks=4)),
            id="softcap and blocks of a window",
        ),
        pytest.param((4, 1, 32), 4, 10, 3, Scores(0.1, window=1000, n_window_blocks=2), id="window beyond the keys"),
        pytest.param((2, 1, 64), 2, 62, 4, Scores(0.0625, window=1), id="window of one key"),
        pytest.param((4, 2, 64), 2, 0, 7, Scores(0.125, ahead="all"), id="keys ahead"),
        pytest.param((4, 2, 64), 2, 0, 77, Scores(0.125, window=9, ahead="window"), id="window ahead"),
        pytest.param((4, 2, 64), 2, 0, 77, Scores(0.125, window=9, ahead="all"), id="window behind, keys ahead"),
        pytest.param((4, 2, 64), 2, 0, 3, Scores(0.125, has_sinks=True), id="sinks"),
        pytest.param(
            *((3, 1, 40), 3, 128, 5, Scores(0.3, window=20, n_window_blocks=3, has_sinks=True, has_gates=True)),
            id="sinks, gates and blocks of a window",
        ),
        pytest.param((4, 2, 64), 2, 200, 5, Scores(0.125, has_gates=True), id="gates"),
        pytest.param((4, 2, 32), 1, 98, 5, Scores(0.2, chunk=100), id="chunks"),
        pytest.param((4, 2, 64), 2, 250, 3, Scores(0.125, chunk=64, has_sinks=True), id="chunks and sinks"),
    ],
)
def test_scores_and_windows(
    device: Device, shape: tuple[int, int, int], heads: int, first: int, n_rows: int, scores: Scores
) -> None:
    case = one_sequence(device, shape, range(first, first + n_rows), scores=scores)
    (y,), q16 = case.run(heads)
    assert nmse(y, case.wanted[0]) < BOUND
    assert (q16 is None) == (heads * shape[2] % 32 > 0) and (q16 is None or nmse(q16[0], case.wanted[0]) < Q16_BOUND)


@pytest.mark.parametrize(
    ("shape", "heads", "fmt", "scores"),
    [  # two heads of 512 take half a minute to compile
        ((8, 1, 48), 2, "f16", Scores(0.14, latent_dim=32)),
        ((4, 1, 576), 2, "f16", Scores(0.04, latent_dim=512)),
        ((4, 1, 576), 1, "q8_0", Scores(0.04, latent_dim=512)),
        ((4, 2, 512), 1, "f16", Scores(0.04)),
        ((2, 1, 512), 1, "q8_0", Scores(0.04)),
    ],
    ids=str,
)
def test_large_heads_and_latent_vectors(
    device: Device, shape: tuple[int, int, int], heads: int, fmt: str, scores: Scores
) -> None:
    case = one_sequence(device, shape, range(100, 103), (fmt, fmt), scores)
    (y,), q16 = case.run(heads)
    assert nmse(y, case.wanted[0]) < BOUND
    assert q16 is not None and nmse(q16[0], case.wanted[0]) < Q16_BOUND


def test_a_row_is_the_same_however_the_step_is_cut(device: Device) -> None:
    case = one_sequence(device, (4, 2, 64), range(140, 147), scores=Scores(0.125, window=50, n_window_blocks=3))
    (whole,), _ = case.run(2)
    for n_rows in (1, 2, 4, 5):
        (part,), _ = case.run(2, [n_rows])
        assert np.array_equal(part, whole[-n_rows:])


SEQUENCES = [range(700, 701), range(0, 3), range(310, 312), range(95, 96)]
"""Positions of the rows of a step: one deep, others not; in all several parts of 64 keys or more, or one."""


@pytest.mark.parametrize(
    ("shape", "heads", "formats", "scores"),
    [
        ((8, 2, 64), 4, ("f16", "f16"), Scores(0.125)),
        ((4, 2, 128), 2, ("q8_0", "f16"), Scores(0.1, softcap=20.0, has_sinks=True, has_gates=True)),
        ((4, 4, 64), 1, ("f16", "f16"), Scores(0.125, window=200, n_window_blocks=8, has_sinks=True)),
        ((3, 1, 40), 3, ("f16", "f16"), Scores(0.3, chunk=300)),
        ((4, 1, 48), 2, ("f16", "f16"), Scores(0.14, latent_dim=32)),
        ((4, 2, 64), 2, ("q8_0", "q8_0"), Scores(0.125, ahead="all")),
    ],
    ids=str,
)
def test_rows_of_several_sequences(
    device: Device, shape: tuple[int, int, int], heads: int, formats: tuple[str, str], scores: Scores
) -> None:
    sequences = (
        SEQUENCES if scores.ahead == "none" else [range(12), range(1), range(7)]
    )  # all of a sequence is in the step
    case = AttentionCase(device, shape, sequences, formats, scores)
    shared, q16 = case.run(heads, n_sharing=3)
    for y, wanted in zip(shared, case.wanted, strict=True):
        assert nmse(y, wanted) < BOUND
    assert q16 is None or all(nmse(y, wanted) < Q16_BOUND for y, wanted in zip(q16, case.wanted, strict=True))
    for i, y in enumerate(shared):
        (alone,), _ = case.run(heads, [len(positions) * (i == j) for j, positions in enumerate(sequences)])
        assert np.array_equal(alone, y), "whoever takes the parts, and beside whom"
