"""attention against numpy: grouped heads, scattered cache blocks, one key and several splits; looping and merged."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, poisoned, step_buffer, words

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device import Buffer, Device
from vkllm.gpu.kernels import ATTENTION_SPLIT, KERNELS, KV_BLOCK
from vkllm.model.reference import attention

pytestmark = pytest.mark.gpu

BOUND = 1e-10  # float32 throughout; the cache's float16 numbers are the reference's input too
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


def scattered(device: Device, stored: np.ndarray, table: list[int]) -> Buffer:
    """A cache whose blocks lie where the table says, NaN elsewhere."""
    n_keys, n_kv_heads, head_dim = stored.shape
    cache = np.full((max(table) + 2, n_kv_heads, KV_BLOCK, head_dim), np.nan, np.float16)
    for position in range(n_keys):
        cache[table[position // KV_BLOCK], :, position % KV_BLOCK] = stored[position]
    return filled(device, cache)


@pytest.mark.parametrize("loops", [True, False], ids=["loops", "merged"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "heads"),
    [(9, 3, 64, 3), (4, 4, 32, 1), (8, 1, 128, 4), (2, 1, 96, 2), (2, 2, 256, 1)],
)
@pytest.mark.parametrize("positions", [[0], [63], [64], [200], [0, 1, 2], [150, 151, 152, 153, 154]], ids=str)
def test_attention(
    device: Device, n_heads: int, n_kv_heads: int, head_dim: int, heads: int, positions: list[int], loops: bool
) -> None:
    tokens = 2 if loops else 1
    rng = np.random.default_rng(positions[-1])
    n_rows, n_keys = len(positions), positions[-1] + 1
    q = rng.normal(0, 2, (n_rows, n_heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(0, 1, (n_keys, n_kv_heads, head_dim)).astype(np.float16) for _ in range(2))
    table = [int(block) for block in rng.permutation(-(-n_keys // KV_BLOCK))]
    step = step_buffer(device, positions, [0] * n_rows, table)
    size, max_splits = n_rows * n_heads * head_dim, -(-n_keys // ATTENTION_SPLIT) + 1
    outputs = [poisoned(device, n) for n in (size, size // 2, size // 16)]
    partials = poisoned(device, n_rows * n_heads * max_splits * (head_dim + 2))
    lanes = min(1 << (head_dim // 8 - 1).bit_length(), device.info.subgroup_size)
    dispatches = [
        device.dispatch(
            KERNELS["attention"],
            (filled(device, q), scattered(device, k, table), scattered(device, v, table), partials, *outputs, step),
            constants=(64, n_heads, n_kv_heads, head_dim, lanes, heads, tokens, 2 + 2 * tokens, int(loops)),
            groups=(n_heads // heads * (1 if loops else max_splits), -(-n_rows // tokens)),
            push=(max_splits,),
        )
    ]
    if not loops:
        dispatches.append(
            device.dispatch(
                KERNELS["attention_merge"],
                (partials, *outputs, step),
                constants=(64, n_heads, head_dim),
                groups=(-(-n_heads * head_dim // 4 // 64), n_rows),
                push=(max_splits,),
            )
        )
    device.run(dispatches)
    wanted = attention(q, k.astype(np.float32), v.astype(np.float32), np.array(positions))
    y, y_q16, y_scales = outputs
    assert nmse(floats(y, q.shape), wanted) < BOUND
    n_blocks = n_heads * head_dim // 32
    got = dequantize_q16(words(y_q16, (n_rows, 4, n_blocks, 4)), floats(y_scales, (n_rows, n_blocks, 2)))
    assert nmse(got.reshape(q.shape), wanted) < Q16_BOUND
