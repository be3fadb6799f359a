"""attention_tiled against numpy on devices with cooperative matrices: grouped heads, ragged tiles, every cache."""

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import (
    Scores,
    cache_words,
    cached,
    constants,
    filled,
    floats,
    nmse,
    poisoned,
    step_buffer,
    words,
    write_cache,
)

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.attention_operations import value_splits
from vkllm.gpu.program.kernels import ATTENTION_TILE_ROWS, KERNELS, KV_BLOCK
from vkllm.model.reference import attention
from vkllm.model.reference_states import sigmoid

pytestmark = pytest.mark.gpu

# Scores of about 10 have an error of 2^-11.5 from queries and as much from keys, which the cache rounds before the
# reference sees them; weights and the scores' effect on them then miss by 3e-4 each, squared.
BOUND = 1e-6
Q16_BOUND = BOUND + 4e-9


def attended(
    device: Device,
    shape: tuple[int, int, int],
    positions: list[int],
    formats: tuple[str, str] = ("f16", "f16"),
    n_rows: int | None = None,
    scores: Scores | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Results (T, H, D) of the last n_rows positions: as float32, as q16, and those of the reference for all."""
    n_heads, n_kv_heads, head_dim = shape
    rng = np.random.default_rng(positions[-1])
    n_keys = positions[-1] + 1
    q = rng.normal(0, 2, (len(positions), n_heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(0, 1, (n_keys, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    scores = scores or Scores(head_dim**-0.5)
    table = [int(block) for block in rng.permutation(-(-n_keys // KV_BLOCK))]
    where = [i % scores.n_window_blocks for i in range(len(table))] if scores.n_window_blocks else table
    caches = []
    for x, fmt in zip((k, v), formats, strict=True):
        cache = poisoned(device, cache_words(fmt, max(where) + 2, n_kv_heads, head_dim))
        write_cache(cache.words, x, where, fmt)
        caches.append(cache)
    seen = (cached(k, formats[0]), cached(v, formats[1]), np.array(positions))
    sinks, gates = scores.sinks(n_heads), scores.gates(len(positions), n_heads, head_dim)
    of_scores = (scores.scale, scores.softcap, scores.window, scores.ahead, scores.chunk, sinks)
    wanted = attention(q, *seen, *of_scores)
    n_rows = n_rows or len(positions)
    if gates is not None:
        wanted = wanted * sigmoid(gates[:, :n_heads, 1])
        gates = gates[-n_rows:]
    q, positions = q[-n_rows:], positions[-n_rows:]
    step = step_buffer(device, positions, [0] * n_rows, table, 0, where if scores.n_window_blocks else ())
    outputs = [poisoned(device, n) for n in (q.size, q.size // 2, q.size // 16)]
    assert device.info.matrix_shape is not None
    tokens = ATTENTION_TILE_ROWS // (n_heads // n_kv_heads)
    size = ATTENTION_TILE_ROWS // device.info.matrix_shape[0] * device.info.subgroup_size
    device.run(
        [
            device.dispatch(
                KERNELS["attention_tiled"],
                (
                    *(filled(device, q), *caches, *outputs, step),
                    *(outputs[0] if x is None else filled(device, x) for x in (sinks, gates)),
                ),
                constants=constants(
                    "attention_tiled",
                    **dict(local_size=size, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),
                    **dict(
                        k_q8_0=formats[0] == "q8_0",
                        v_q8_0=formats[1] == "q8_0",
                        n_splits=value_splits(head_dim),
                        quantizes=1,
                    ),
                    **dict(zip(("matrix_m", "matrix_n", "matrix_k"), device.info.matrix_shape, strict=True)),
                    **scores.constants(n_heads, head_dim),
                ),
                groups=(n_kv_heads * value_splits(head_dim), -(-n_rows // tokens)),
            )
        ]
    )
    y, y_q16, y_scales = outputs
    n_blocks = n_heads * head_dim // 32
    q16 = dequantize_q16(words(y_q16, (n_rows, 4, n_blocks, 4)), floats(y_scales, (n_rows, n_blocks, 2)))
    return floats(y, q.shape), q16.reshape(q.shape), wanted


@pytest.fixture(autouse=True)
def _has_matrices(device: Device) -> None:
    if device.info.matrix_shape is None:
        pytest.skip("the device has no cooperative matrices")


@pytest.mark.parametrize("formats", [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16")], ids=str)
@pytest.mark.parametrize("shape", [(9, 3, 64), (4, 4, 32), (8, 1, 128), (14, 2, 64), (2, 1, 96), (4, 2, 256)], ids=str)
@pytest.mark.parametrize("start_and_rows", [(0, 1), (63, 2), (0, 70), (150, 33), (31, 130)], ids=str)
def test_attention_tiled(
    device: Device, shape: tuple[int, int, int], start_and_rows: tuple[int, int], formats: tuple[str, str]
) -> None:
    start, n_rows = start_and_rows
    y, q16, wanted = attended(device, shape, list(range(start, start + n_rows)), formats)
    assert nmse(y, wanted) < BOUND
    assert nmse(q16, wanted) < Q16_BOUND


@pytest.mark.parametrize(
    ("shape", "start", "n_rows", "scores"),
    [
        ((8, 2, 64), 300, 70, Scores(0.125, softcap=20.0, window=50, n_window_blocks=4)),
        ((4, 1, 128), 10, 90, Scores(0.1, window=64)),
        ((4, 2, 256), 95, 100, Scores(0.0625, softcap=50.0, window=1)),
        ((4, 4, 96), 33, 3, Scores(0.1, window=1000, n_window_blocks=3)),
        ((4, 2, 64), 0, 100, Scores(0.125, ahead="all")),
        ((4, 2, 64), 0, 100, Scores(0.125, window=9, ahead="window")),
        ((4, 2, 64), 0, 100, Scores(0.125, window=9, ahead="all")),
        ((8, 2, 64), 0, 70, Scores(0.125, has_sinks=True)),
        ((8, 1, 64), 100, 70, Scores(0.125, window=40, n_window_blocks=4, has_sinks=True)),
        ((4, 1, 256), 30, 40, Scores(0.0625, has_gates=True)),
        ((4, 4, 32), 60, 80, Scores(0.2, has_gates=True, has_sinks=True)),
        ((8, 2, 128), 60, 150, Scores(0.1, chunk=64)),
    ],
    ids=str,
)
def test_scores_and_windows_of_tiles(
    device: Device, shape: tuple[int, int, int], start: int, n_rows: int, scores: Scores
) -> None:
    y, q16, wanted = attended(device, shape, list(range(start, start + n_rows)), scores=scores)
    assert nmse(y, wanted) < BOUND
    assert nmse(q16, wanted) < Q16_BOUND


@pytest.mark.parametrize("scores", [Scores(0.125), Scores(0.125, window=30, n_window_blocks=7)], ids=str)
def test_a_row_is_the_same_however_the_step_is_cut(device: Device, scores: Scores) -> None:
    shape, positions = (8, 2, 64), list(range(40, 180))
    whole, _, _ = attended(device, shape, positions, scores=scores)
    for n_rows in (1, 8, 61, 100):
        part, _, _ = attended(device, shape, positions, n_rows=n_rows, scores=scores)
        assert np.array_equal(part, whole[-n_rows:])
