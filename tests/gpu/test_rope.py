"""rope against numpy: both pairings, heads partly rotated or not at all, weights, factors, the place in the cache."""

import numpy as np
import pytest
from kernel_case import cache_words, constants, filled, floats, nmse, poisoned, read_cache, step_buffer, words

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import HEAD_WEIGHTS, KERNELS
from vkllm.model.reference import rotate

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # a product and a sum of float32
# float16 keeps 11 bits: 2^-12 relative, squared; q8_0 rounds to 1/127 of a block's largest, up to 3 sigma, a twelfth
CACHE_BOUND = {"f16": 1e-6, "q8_0": 1e-4}


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "rope_dims", "fmt", "what"),
    [
        (9, 3, 64, 64, "f16", ""),
        (4, 4, 32, 16, "q8_0", ""),
        (8, 1, 128, 128, "q8_0", "window"),
        (8, 2, 128, 128, "f16", "weights, factors, first of two"),
        (3, 1, 40, 24, "f16", "window, factors"),
        (5, 5, 8, 8, "f16", ""),
        (3, 3, 80, 0, "f16", "weights"),
        (2, 1, 256, 64, "q8_0", "weights"),
        (4, 2, 64, 16, "f16", "gates"),
        (3, 0, 40, 40, "f16", "factors"),
        (2, 0, 64, 64, "q8_0", "gates, weights"),
    ],
)
def test_rope(
    device: Device, n_heads: int, n_kv_heads: int, head_dim: int, rope_dims: int, fmt: str, what: str, pairing: str
) -> None:
    rng = np.random.default_rng(head_dim)
    positions, table = [37, 38, 95], [2, 0, 1]  # the blocks of a sequence lie anywhere in the cache
    which = next((i for i, name in enumerate(("one table", "first of two", "window")) if name in what), 0)
    window_table = [0, 1, 0] if which else []
    in_cache = window_table if which == 2 else table
    n_rows, n_heads_all = len(positions), n_heads + 2 * n_kv_heads
    angles = rng.uniform(0, 6.3, (128, rope_dims // 2))
    turns = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    weights = rng.normal(1, 0.3, (2, head_dim)).astype(np.float32)
    factors = rng.uniform(0.5, 2, 128).astype(np.float32)
    qkv = rng.normal(0, 1, (n_rows, n_heads_all, head_dim)).astype(np.float32)
    read = qkv
    if "gates" in what:
        heads = np.stack([qkv[:, :n_heads], np.full_like(qkv[:, :n_heads], np.nan)], axis=2)
        read = np.concatenate([heads.reshape(n_rows, -1), qkv[:, n_heads:].reshape(n_rows, -1)], axis=1)
    q = poisoned(device, n_rows * n_heads * head_dim)
    caches = [poisoned(device, cache_words(fmt, max(in_cache) + 1, max(n_kv_heads, 1), head_dim)) for _ in range(2)]
    n_fours = n_heads_all * head_dim // 4
    device.run(
        [
            device.dispatch(
                KERNELS["rope"],
                (
                    *(filled(device, read), filled(device, np.append(turns, np.float32(0)))),
                    *(q, *caches, step_buffer(device, positions, [0] * 3, table, 0, window_table)),
                    *(filled(device, weights), filled(device, factors)),
                ),
                constants=constants(
                    "rope",
                    **dict(local_size=64, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),
                    **dict(rope_dims=rope_dims, is_interleaved=pairing == "interleaved"),
                    **dict(k_q8_0=fmt == "q8_0", v_q8_0=fmt == "q8_0", table=which),
                    head_weights=HEAD_WEIGHTS.index("after" if "weights" in what else "none"),
                    has_q_factors="factors" in what,
                    has_gates="gates" in what,
                ),
                groups=(-(-n_fours // 64), n_rows),
            )
        ]
    )
    rotated = rotate(qkv, turns[positions], pairing)
    queries, keys = rotated[:, :n_heads], rotated[:, n_heads : n_heads + n_kv_heads]
    if "weights" in what:
        queries, keys = queries * weights[0], keys * weights[1]
    if "factors" in what:
        queries = queries * factors[positions, None, None]
    assert nmse(floats(q, (n_rows, n_heads, head_dim)), queries) < BOUND
    if n_kv_heads == 0:
        return
    for cache, wanted in zip(caches, (keys, qkv[:, -n_kv_heads:]), strict=True):
        stored = read_cache(words(cache, (cache.n_words,)), positions, in_cache, fmt, (n_kv_heads, head_dim))
        assert nmse(stored, wanted) < CACHE_BOUND[fmt]
    untouched = words(caches[0], (caches[0].n_words,)) == 0x7FC00000
    n_blocks = max(in_cache) + 1
    assert untouched.sum() == caches[0].n_words * (1 - n_rows / 32 / n_blocks), "wrote elsewhere in the cache"
