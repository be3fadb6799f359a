"""attention against numpy: grouped heads, scattered cache blocks, one key and several tiles of keys."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device import Device
from vkllm.gpu.kernels import KERNELS, KV_BLOCK
from vkllm.model.reference import attention

pytestmark = pytest.mark.gpu

BOUND = 1e-10  # float32 throughout; the cache's float16 numbers are the reference's input too
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 128), (2, 1, 96), (2, 2, 256)]
)
@pytest.mark.parametrize("positions", [[0], [63], [64], [200], [0, 1, 2], [150, 151, 152, 153]], ids=str)
def test_attention(device: Device, n_heads: int, n_kv_heads: int, head_dim: int, positions: list[int]) -> None:
    rng = np.random.default_rng(positions[-1])
    n_rows, n_keys = len(positions), positions[-1] + 1
    q = rng.normal(0, 2, (n_rows, n_heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(0, 1, (n_keys, n_kv_heads, head_dim)).astype(np.float16) for _ in range(2))
    n_blocks = -(-n_keys // KV_BLOCK) + 1
    table = list(rng.permutation(n_blocks)[: n_blocks - 1])
    caches = []
    for stored in (k, v):
        cache = np.full((n_blocks, n_kv_heads, KV_BLOCK, head_dim), np.nan, np.float16)
        for position in range(n_keys):
            cache[table[position // KV_BLOCK], :, position % KV_BLOCK] = stored[position]
        caches.append(filled(device, cache))
    size = n_rows * n_heads * head_dim
    y, y_q16, y_scales = (poisoned(device, n) for n in (size, size // 2, size // 16))
    device.run(
        [
            device.dispatch(
                KERNELS["attention"],
                (filled(device, q), *caches, y, y_q16, y_scales, step_buffer(device, positions, [0] * n_rows, table)),
                constants=(max(64, head_dim // 2), n_heads, n_kv_heads, head_dim),
                groups=(n_heads, n_rows),
            )
        ]
    )
    wanted = attention(q, k.astype(np.float32), v.astype(np.float32), np.array(positions))
    assert nmse(floats(y, q.shape), wanted) < BOUND
    got = dequantize_q16(words(y_q16, (size // 32, 16)), floats(y_scales, (size // 32, 2)))
    assert nmse(got.reshape(q.shape), wanted) < Q16_BOUND
