"""attention_fused against numpy: rope, the store and attention of one token, in one part of the context and in many."""

import numpy as np
import pytest
from kernel_case import (
    cache_words,
    cached,
    filled,
    floats,
    nmse,
    poisoned,
    read_cache,
    step_buffer,
    words,
    write_cache,
)

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK, LINK_WORDS
from vkllm.gpu.program.operations import lanes_of_key
from vkllm.model.reference import attention, rope_table, rotate
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

# float32 throughout; what the cache keeps is the reference's input, but where float32 and float16 or a byte round a
# key of the new token to different sides, it is one step off: 2^-11 or 1/127 in one of its dimensions
BOUND = {"f16": 1e-8, "q8_0": 1e-6}
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@pytest.mark.parametrize("is_chained", [False, True], ids=["barriers", "chained"])
@pytest.mark.parametrize("fmt", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "heads", "pairing"),
    [(9, 3, 64, 3, "half"), (4, 4, 32, 1, "interleaved"), (8, 1, 128, 4, "half"), (2, 1, 96, 2, "interleaved")],
)
@pytest.mark.parametrize(("position", "n_parts"), [(0, 4), (31, 1), (63, 4), (64, 4), (200, 1), (200, 2), (700, 8)])
def test_attention_fused(
    device: Device,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    heads: int,
    pairing: str,
    position: int,
    n_parts: int,
    fmt: str,
    is_chained: bool,
) -> None:
    rng = np.random.default_rng(position)
    turns = rope_table(Rope(10000.0, head_dim // 2), position + 1)
    qkv = rng.normal(0, 1.5, (1, n_heads + 2 * n_kv_heads, head_dim)).astype(np.float32)
    before = [rng.normal(0, 1, (position, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2)]
    table = [int(block) for block in rng.permutation(position // KV_BLOCK + 1)]
    caches = [poisoned(device, cache_words(fmt, len(table) + 1, n_kv_heads, head_dim)) for _ in range(2)]
    for cache, x in zip(caches, before, strict=True):
        write_cache(cache.words, x, table, fmt)
    size = n_heads * head_dim
    outputs = [poisoned(device, n) for n in (size, size // 2, size // 16)]
    partials = poisoned(device, n_heads * n_parts * (head_dim + 4))
    arrivals, failure = 2 * LINK_WORDS, device.buffer(1, is_host=True)
    chain = filled(device, np.zeros(LINK_WORDS + arrivals + n_heads, np.uint32))
    chain.words[LINK_WORDS] = 3  # workgroups of link 0, before link 1, have ended
    lanes = lanes_of_key(head_dim, device.info.subgroup_size)
    is_q8_0 = int(fmt == "q8_0")
    n_groups = n_heads // heads * n_parts
    device.run(
        [
            device.dispatch(
                KERNELS["attention_fused"],
                (
                    *(filled(device, qkv), filled(device, turns), *caches, partials, *outputs),
                    *(step_buffer(device, [position], [0], table), chain, failure),
                ),
                constants=(
                    *(64, n_heads, n_kv_heads, head_dim, lanes, heads, head_dim // 2, int(pairing == "interleaved")),
                    *(4, is_q8_0, is_q8_0, 100 * is_chained),
                ),
                groups=(n_groups, 1),
                push=(n_parts, arrivals, 1, 3),
                is_chained=is_chained,
            )
        ]
    )
    rotated = rotate(qkv, turns[position:], pairing)
    new_key, new_value = rotated[:, n_heads:-n_kv_heads], qkv[:, -n_kv_heads:]
    for cache, x in zip(caches, (new_key, new_value), strict=True):
        stored = read_cache(words(cache, (cache.n_words,)), [position], table, fmt, x.shape[1:])
        assert nmse(stored, x) < (1e-6 if fmt == "f16" else 1e-4)  # 2^-12 and up to 1/254 of a block's largest
    k, v = (np.concatenate([x, new]) for x, new in zip(before, (new_key, new_value), strict=True))
    wanted = attention(rotated[:, :n_heads], cached(k, fmt), cached(v, fmt), np.array([position]))
    y, y_q16, y_scales = outputs
    assert nmse(floats(y, wanted.shape), wanted) < BOUND[fmt]
    n_blocks = size // 32
    got = dequantize_q16(words(y_q16, (1, 4, n_blocks, 4)), floats(y_scales, (1, n_blocks, 2)))
    assert nmse(got.reshape(wanted.shape), floats(y, wanted.shape)) < Q16_BOUND
    told = words(chain, (chain.n_words,))
    assert told[2 * LINK_WORDS] == (n_groups if is_chained else 0), "workgroups that told their end"
    assert told[0] == words(failure, (1,))[0] == 0
