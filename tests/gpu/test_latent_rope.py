"""latent_rope against numpy: both pairings and formats of the cache, ragged ranks, scattered blocks and windows."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_case import cache_words, constants, filled, floats, nmse, poisoned, read_cache, step_buffer, words

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS
from vkllm.model.mixers import LatentAttention
from vkllm.model.reference import latent_rope

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # float32 throughout
CACHE_BOUND = {"f16": 1e-6, "q8_0": 1e-4}  # 2^-12 and up to 1/254 of a block's largest


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(
    ("n_heads", "kv_rank", "nope_dim", "rope_dim", "fmt", "what"),
    [
        (4, 32, 16, 16, "f16", ""),
        (16, 512, 128, 64, "f16", "window"),
        (20, 512, 192, 64, "q8_0", "factors"),
        (3, 24, 12, 8, "q8_0", ""),
        (1, 52, 4, 4, "f16", "factors, window"),
    ],
)
def test_latent_rope(
    device: Device, n_heads: int, kv_rank: int, nope_dim: int, rope_dim: int, fmt: str, what: str, pairing: str
) -> None:
    rng, eps = np.random.default_rng(n_heads), 1e-6
    latent = LatentAttention(0, kv_rank, nope_dim, rope_dim, 32)
    positions, table = [37, 38, 95], [2, 0, 1]
    which = next((i for i, name in enumerate(("one table", "first of two", "window")) if name in what), 0)
    window_table = [0, 1, 0] if which else []
    in_cache = window_table if which == 2 else table
    angles = rng.uniform(0, 6.3, (128, rope_dim // 2))
    turns = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    factors = rng.uniform(0.5, 2, 128).astype(np.float32)
    weight = rng.normal(1, 0.3, kv_rank).astype(np.float32)
    compressed = rng.normal(0, 3, (3, kv_rank + rope_dim)).astype(np.float32)
    queries, absorbed = (rng.normal(0, 1, (3, n_heads, n)).astype(np.float32) for n in (nope_dim + rope_dim, kv_rank))
    cached = kv_rank + rope_dim
    q, cache = poisoned(device, 3 * n_heads * cached), poisoned(device, cache_words(fmt, max(in_cache) + 1, 1, cached))
    device.run(
        [
            device.dispatch(
                KERNELS["latent_rope"],
                (
                    *(filled(device, x) for x in (compressed, turns, queries, absorbed)),
                    *(q, cache, step_buffer(device, positions, [0] * 3, table, 0, window_table)),
                    *(filled(device, weight), filled(device, factors)),
                ),
                constants=constants(
                    "latent_rope",
                    **dict(local_size=64, n_heads=n_heads, kv_rank=kv_rank, nope_dim=nope_dim, rope_dims=rope_dim),
                    **dict(is_interleaved=pairing == "interleaved", k_q8_0=fmt == "q8_0"),
                    **dict(table=which, has_q_factors="factors" in what, eps=float_bits(eps)),
                ),
                groups=(1 + -(-n_heads * cached // 4 // 64), 3),
            )
        ]
    )
    wanted, key = latent_rope(latent, compressed, weight, eps, queries, absorbed, turns[positions], pairing)
    if "factors" in what:
        wanted = wanted * factors[positions, None, None]
    assert nmse(floats(q, wanted.shape), wanted) < BOUND
    stored = read_cache(words(cache, (cache.n_words,)), positions, in_cache, fmt, (1, cached))
    assert nmse(stored, key) < CACHE_BOUND[fmt]
    untouched = words(cache, (cache.n_words,)) == 0x7FC00000
    assert untouched.sum() == cache.n_words * (1 - 3 / 32 / (max(in_cache) + 1)), "wrote elsewhere in the cache"
