"""attention against numpy: grouped heads, scattered blocks, both formats of the cache, windows, rings, soft caps."""

from __future__ import annotations

from collections.abc import Sequence

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
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.attention_operations import lanes_of_key
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.model.reference import attention
from vkllm.model.reference_states import sigmoid

pytestmark = pytest.mark.gpu

Floats = npt.NDArray[np.float32]

BOUND = 1e-10  # float32 throughout; what the cache keeps is the reference's input too
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


class Case:
    """Random queries at the last positions of a sequence, and its cache on the device."""

    def __init__(
        self, device: Device, shape: tuple[int, int, int], positions: Sequence[int], formats: tuple[str, str], s: Scores
    ) -> None:
        n_heads, n_kv_heads, head_dim = shape
        rng = np.random.default_rng(positions[-1])
        n_keys = positions[-1] + 1
        self.q = rng.normal(0, 2, (len(positions), n_heads, head_dim)).astype(np.float32)
        k, v = (rng.normal(0, 1, (n_keys, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2))
        self.sinks, self.gates = s.sinks(n_heads), s.gates(len(positions), n_heads, head_dim)
        self.table = [int(block) for block in rng.permutation(-(-n_keys // KV_BLOCK))]
        where = [i % s.n_ring_blocks for i in range(len(self.table))] if s.n_ring_blocks else self.table
        self.caches: list[Buffer] = []
        for x, fmt in zip((k, v), formats, strict=True):
            cache = poisoned(device, cache_words(fmt, max(where) + 2, n_kv_heads, head_dim))
            write_cache(cache.words, x, where, fmt)
            self.caches.append(cache)
        keys, values = cached(k, formats[0]), cached(v, formats[1])
        if s.latent_dim:
            values = keys[..., : s.latent_dim]
            self.caches[1] = self.caches[0]
        of_scores = (s.scale, s.softcap, s.window, s.is_causal, s.chunk, self.sinks)
        self.wanted = attention(self.q, keys, values, np.array(positions), *of_scores)
        if self.gates is not None:
            self.wanted = self.wanted * sigmoid(self.gates[:, :n_heads, 1])


def attended(
    device: Device,
    shape: tuple[int, int, int],
    heads: int,
    positions: Sequence[int],
    formats: tuple[str, str] = ("f16", "f16"),
    scores: Scores | None = None,
    n_rows: int = 0,
) -> tuple[Floats, Floats | None, Floats]:
    """Results (T, H, D) of the last n_rows positions (0: all): as float32, as q16, and those of the reference."""
    n_heads, n_kv_heads, head_dim = shape
    scores = scores or Scores(head_dim**-0.5)
    case = Case(device, shape, positions, formats, scores)
    q, positions = case.q[-n_rows:], positions[-n_rows:]
    value_dim = scores.latent_dim or head_dim
    y_shape = (len(q), n_heads, value_dim)
    size = len(q) * n_heads * value_dim
    outputs = [poisoned(device, n) for n in (size, size // 2, size // 16 + 1)]
    gates = None if case.gates is None else case.gates[-n_rows:]
    # scores need room in the _plain modules
    sizes = dict(local_size=32, keys_at_once=2) if device.is_plain else dict(local_size=64, keys_at_once=6)
    quantizes = heads * value_dim % 32 == 0
    device.run(
        [
            device.dispatch(
                KERNELS["attention"],
                (
                    *(filled(device, q), *case.caches, *outputs),
                    step_buffer(device, positions, [0] * len(positions), case.table),
                    *(outputs[0] if x is None else filled(device, x) for x in (case.sinks, gates)),
                ),
                constants=constants(
                    "attention",
                    **sizes,
                    **dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),
                    **dict(lanes=lanes_of_key(head_dim, device.info.subgroup_size), heads_per_workgroup=heads),
                    **dict(tokens_per_workgroup=2, k_q8_0=formats[0] == "q8_0", v_q8_0=formats[1] == "q8_0"),
                    **scores.constants(n_heads, head_dim),
                    latent_dim=scores.latent_dim,
                    quantizes=quantizes,
                ),
                groups=(n_heads // heads, -(-len(positions) // 2)),
            )
        ]
    )
    y, y_q16, y_scales = outputs
    if not quantizes:
        assert (words(y_q16, (y_q16.n_words,)) == 0x7FC00000).all()
        return floats(y, y_shape), None, case.wanted[-n_rows:]
    n_blocks = n_heads * value_dim // 32
    q16 = dequantize_q16(words(y_q16, (len(q), 4, n_blocks, 4)), floats(y_scales, (len(q), n_blocks, 2)))
    return floats(y, y_shape), q16.reshape(y_shape), case.wanted[-n_rows:]


@pytest.mark.parametrize(("k_format", "v_format"), [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16")])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "heads"),
    [(9, 3, 64, 3), (4, 4, 32, 1), (8, 1, 128, 4), (2, 1, 96, 2), (2, 2, 256, 1)],
)
@pytest.mark.parametrize("positions", [[0], [63], [200], [0, 1, 2], [150, 151, 152, 153, 154]], ids=str)
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
    y, q16, wanted = attended(device, (n_heads, n_kv_heads, head_dim), heads, positions, (k_format, v_format))
    assert nmse(y, wanted) < BOUND
    assert q16 is not None and nmse(q16, wanted) < Q16_BOUND


@pytest.mark.parametrize(
    ("shape", "heads", "first", "n_rows", "scores"),
    [
        ((4, 2, 8), 2, 70, 3, Scores(1.0, window=5)),
        ((3, 1, 40), 3, 150, 5, Scores(0.3, softcap=20.0)),
        ((2, 2, 80), 1, 198, 5, Scores(0.1, window=40, n_ring_blocks=3)),
        ((4, 2, 80), 2, 300, 3, Scores(0.1, softcap=30.0, window=64, n_ring_blocks=4)),
        ((4, 1, 96), 4, 10, 3, Scores(0.1, window=1000, n_ring_blocks=2)),
        ((2, 1, 256), 2, 62, 4, Scores(0.0625, window=1)),
        ((4, 2, 64), 2, 0, 7, Scores(0.125, is_causal=False)),
        ((4, 2, 64), 2, 0, 77, Scores(0.125, window=9, is_causal=False)),
        ((4, 2, 64), 2, 0, 3, Scores(0.125, has_sinks=True)),
        ((3, 1, 40), 3, 128, 5, Scores(0.3, window=20, n_ring_blocks=3, has_sinks=True, has_gates=True)),
        ((4, 2, 64), 2, 200, 5, Scores(0.125, has_gates=True)),
        ((4, 2, 32), 1, 98, 5, Scores(0.2, chunk=100)),
        ((4, 2, 64), 2, 250, 3, Scores(0.125, chunk=64, has_sinks=True)),
    ],
    ids=str,
)
def test_scores_and_windows(
    device: Device, shape: tuple[int, int, int], heads: int, first: int, n_rows: int, scores: Scores
) -> None:
    y, q16, wanted = attended(device, shape, heads, range(first, first + n_rows), scores=scores)
    assert nmse(y, wanted) < BOUND
    assert (q16 is None) == (heads * shape[2] % 32 > 0) and (q16 is None or nmse(q16, wanted) < Q16_BOUND)


@pytest.mark.parametrize(
    ("shape", "fmt", "scores"),
    [
        ((8, 1, 48), "f16", Scores(0.14, latent_dim=32)),
        ((4, 1, 576), "f16", Scores(0.04, latent_dim=512)),
        ((4, 1, 576), "q8_0", Scores(0.04, latent_dim=512)),
        ((4, 2, 512), "f16", Scores(0.04)),
        ((2, 1, 512), "q8_0", Scores(0.04)),
    ],
    ids=str,
)
def test_large_heads_and_latent_vectors(device: Device, shape: tuple[int, int, int], fmt: str, scores: Scores) -> None:
    y, q16, wanted = attended(device, shape, 2, range(100, 103), (fmt, fmt), scores)
    assert nmse(y, wanted) < BOUND
    assert q16 is not None and nmse(q16, wanted) < Q16_BOUND


def test_a_row_is_the_same_however_the_step_is_cut(device: Device) -> None:
    scores, positions = Scores(0.125, window=50, n_ring_blocks=3), range(140, 147)
    whole, _, _ = attended(device, (4, 2, 64), 2, positions, scores=scores)
    for n_rows in (1, 2, 4, 5):
        part, _, _ = attended(device, (4, 2, 64), 2, positions, scores=scores, n_rows=n_rows)
        assert np.array_equal(part, whole[-n_rows:])
