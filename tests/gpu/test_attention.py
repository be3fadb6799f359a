"""attention against numpy: grouped heads, scattered cache blocks, one key and many, both formats of the cache."""

import numpy as np
import pytest
from kernel_case import cache_words, cached, filled, floats, nmse, poisoned, step_buffer, words, write_cache

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.operations import lanes_of_key
from vkllm.model.reference import attention

pytestmark = pytest.mark.gpu

BOUND = 1e-10  # float32 throughout; what the cache keeps is the reference's input too
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


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
    rng = np.random.default_rng(positions[-1])
    n_rows, n_keys = len(positions), positions[-1] + 1
    q = rng.normal(0, 2, (n_rows, n_heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(0, 1, (n_keys, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    table = [int(block) for block in rng.permutation(-(-n_keys // KV_BLOCK))]
    step = step_buffer(device, positions, [0] * n_rows, table)
    size = n_rows * n_heads * head_dim
    outputs = [poisoned(device, n) for n in (size, size // 2, size // 16)]
    caches = []
    for x, fmt in ((k, k_format), (v, v_format)):
        cache = poisoned(device, cache_words(fmt, max(table) + 2, n_kv_heads, head_dim))
        write_cache(cache.words, x, table, fmt)
        caches.append(cache)
    lanes = lanes_of_key(head_dim, device.info.subgroup_size)
    size, at_once = (32, 2) if device.is_plain else (64, 6)  # scores need room there
    is_q8_0 = (int(k_format == "q8_0"), int(v_format == "q8_0"))
    device.run(
        [
            device.dispatch(
                KERNELS["attention"],
                (filled(device, q), *caches, *outputs, step),
                constants=(size, n_heads, n_kv_heads, head_dim, lanes, heads, 2, at_once, *is_q8_0),
                groups=(n_heads // heads, -(-n_rows // 2)),
            )
        ]
    )
    wanted = attention(q, cached(k, k_format), cached(v, v_format), np.array(positions))
    y, y_q16, y_scales = outputs
    assert nmse(floats(y, q.shape), wanted) < BOUND
    n_blocks = n_heads * head_dim // 32
    got = dequantize_q16(words(y_q16, (n_rows, 4, n_blocks, 4)), floats(y_scales, (n_rows, n_blocks, 2)))
    assert nmse(got.reshape(q.shape), wanted) < Q16_BOUND
