"""rope against numpy: both pairings, partly rotated heads, and the place of keys and values in the cache."""

import numpy as np
import pytest
from kernel_case import cache_words, filled, floats, nmse, poisoned, read_cache, step_buffer, words

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS
from vkllm.model.reference import rope_table, rotate
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

BOUND = 1e-12  # a product and a sum of float32
# float16 keeps 11 bits: 2^-12 relative, squared; q8_0 rounds to 1/127 of a block's largest, up to 3 sigma, a twelfth
CACHE_BOUND = {"f16": 1e-6, "q8_0": 1e-4}


@pytest.mark.parametrize("fmt", ["f16", "q8_0"])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "rope_dims"), [(9, 3, 64, 64), (4, 4, 32, 16), (8, 1, 128, 128)]
)
def test_rope(
    device: Device, pairing: str, n_heads: int, n_kv_heads: int, head_dim: int, rope_dims: int, fmt: str
) -> None:
    rng = np.random.default_rng(head_dim)
    positions, table = [37, 38, 95], [2, 0, 1]  # the blocks of a sequence lie anywhere in the cache
    n_rows, n_heads_all = len(positions), n_heads + 2 * n_kv_heads
    turns = rope_table(Rope(10000.0, rope_dims), 128)
    qkv = rng.normal(0, 1, (n_rows, n_heads_all, head_dim)).astype(np.float32)
    q = poisoned(device, n_rows * n_heads * head_dim)
    caches = [poisoned(device, cache_words(fmt, len(table), n_kv_heads, head_dim)) for _ in range(2)]
    n_fours = n_heads_all * head_dim // 4
    is_q8_0 = int(fmt == "q8_0")
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
                constants=(
                    *(64, n_heads, n_kv_heads, head_dim, rope_dims, int(pairing == "interleaved"), is_q8_0, is_q8_0),
                ),
                groups=(-(-n_fours // 64), n_rows),
            )
        ]
    )
    rotated = rotate(qkv, turns[positions], pairing)
    assert nmse(floats(q, (n_rows, n_heads, head_dim)), rotated[:, :n_heads]) < BOUND
    for cache, wanted in zip(caches, (rotated[:, n_heads:-n_kv_heads], qkv[:, -n_kv_heads:]), strict=True):
        stored = read_cache(words(cache, (cache.n_words,)), positions, table, fmt, (n_kv_heads, head_dim))
        assert nmse(stored, wanted) < CACHE_BOUND[fmt]
    untouched = words(caches[0], (caches[0].n_words,)) == 0x7FC00000
    assert untouched.sum() == caches[0].n_words * (1 - n_rows / 32 / len(table)), "wrote elsewhere in the cache"
