"""rope against numpy: both pairings, partly rotated heads, and the place of keys and values in the cache."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words
from model_specs import TINY_SPEC

from vkllm.gpu.device import Device
from vkllm.gpu.kernels import KERNELS, KV_BLOCK
from vkllm.model.reference import rope_table, rotate

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # a product and a sum of float32
CACHE_BOUND = 1e-6  # float16 keeps 11 bits: 2^-12 relative, squared


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "rope_dims"), [(9, 3, 64, 64), (4, 4, 32, 16), (8, 1, 128, 128)]
)
def test_rope(device: Device, pairing: str, n_heads: int, n_kv_heads: int, head_dim: int, rope_dims: int) -> None:
    rng = np.random.default_rng(head_dim)
    positions, table = [37, 38, 95], [2, 0, 1]  # the blocks of a sequence lie anywhere in the cache
    n_rows, n_heads_all = len(positions), n_heads + 2 * n_kv_heads
    spec = replace(TINY_SPEC, rope_dims=rope_dims, head_dim=head_dim)
    turns = rope_table(spec, 128)
    qkv = rng.normal(0, 1, (n_rows, n_heads_all, head_dim)).astype(np.float32)
    q = poisoned(device, n_rows * n_heads * head_dim)
    cache_shape = (len(table), n_kv_heads, KV_BLOCK, head_dim)
    caches = [poisoned(device, int(np.prod(cache_shape)) // 2) for _ in range(2)]
    n_pairs = n_heads_all * head_dim // 2
    device.run(
        [
            device.dispatch(
                KERNELS["rope"],
                (
                    filled(device, qkv),
                    filled(device, turns),
                    q,
                    *caches,
                    step_buffer(device, positions, [0] * 3, table),
                ),
                constants=(64, n_heads, n_kv_heads, head_dim, rope_dims, int(pairing == "interleaved")),
                groups=(-(-n_pairs // 64), n_rows),
            )
        ]
    )
    rotated = rotate(qkv, turns[positions], pairing)
    assert nmse(floats(q, (n_rows, n_heads, head_dim)), rotated[:, :n_heads]) < BOUND
    for cache, wanted in zip(caches, (rotated[:, n_heads:-n_kv_heads], qkv[:, -n_kv_heads:]), strict=True):
        stored = words(cache, (cache.n_words,)).view(np.float16).reshape(cache_shape).astype(np.float32)
        for row, position in enumerate(positions):
            got = stored[table[position // KV_BLOCK], :, position % KV_BLOCK]
            assert nmse(got, wanted[row]) < CACHE_BOUND
    untouched = words(caches[0], (caches[0].n_words,)) == 0x7FC00000
    assert untouched.sum() >= caches[0].n_words - n_rows * n_kv_heads * head_dim // 2, "wrote elsewhere in the cache"
