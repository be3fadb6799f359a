"""attention_fused against numpy: norm, rope, store and attention of one token, in one part and in many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_case import (
    cache_words,
    cached,
    constants,
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
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.attention_operations import lanes_of_key
from vkllm.gpu.program.kernels import HEAD_WEIGHTS, KERNELS, KV_BLOCK, LINK_WORDS
from vkllm.model.reference import attention, rms_norm, rope_table, rotate
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

# float32 throughout; what the cache keeps is the reference's input, but where float32 and float16 or a byte round a
# key of the new token to different sides, it is one step off: 2^-11 or 1/127 in one of its dimensions
BOUND = {"f16": 1e-8, "q8_0": 1e-6}
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@dataclass(frozen=True)
class Way:
    """How a model attends; see vkllm/model/graph.py. eps: of the norm of queries and keys, 0: none."""

    softcap: float = 0.0
    window: int = 0
    n_ring_blocks: int = 0
    weights: str = "none"
    has_factors: bool = False
    eps: float = 0.0
    is_rotated: bool = True


def check(
    device: Device,
    shape: tuple[int, int, int],
    heads: int,
    pairing: str,
    position: int,
    n_parts: int,
    fmt: str,
    is_chained: bool,
    way: Way,
) -> None:
    n_heads, n_kv_heads, head_dim = shape
    rng = np.random.default_rng(position)
    rope_dims = head_dim // 16 * 8 if way.is_rotated else 0
    turns = (
        rope_table(Rope(10000.0, rope_dims), position + 1) if rope_dims else np.zeros((position + 1, 0, 2), np.float32)
    )
    weights = rng.normal(1, 0.3, (2, head_dim)).astype(np.float32)
    factors = rng.uniform(0.5, 2, position + 1).astype(np.float32)
    qkv = rng.normal(0, 1.5, (1, n_heads + 2 * n_kv_heads, head_dim)).astype(np.float32)
    before = [rng.normal(0, 1, (position, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2)]
    table = [int(block) for block in rng.permutation(position // KV_BLOCK + 1)]
    where = [i % way.n_ring_blocks for i in range(len(table))] if way.n_ring_blocks else table
    caches = [poisoned(device, cache_words(fmt, max(where) + 2, n_kv_heads, head_dim)) for _ in range(2)]
    for cache, x in zip(caches, before, strict=True):
        write_cache(cache.words, x, where, fmt)
    size = n_heads * head_dim
    outputs = [poisoned(device, n) for n in (size, size // 2, size // 16 + 1)]
    partials = poisoned(device, n_heads * n_parts * (head_dim + 4))
    arrivals, failure = 2 * LINK_WORDS, device.buffer(1, is_host=True)
    chain = filled(device, np.zeros(LINK_WORDS + arrivals + n_heads, np.uint32))
    chain.words[LINK_WORDS] = 3  # workgroups of link 0, before link 1, have ended
    n_groups = n_heads // heads * n_parts
    device.run(
        [
            device.dispatch(
                KERNELS["attention_fused"],
                (
                    *(
                        filled(device, qkv),
                        filled(device, np.append(turns, np.float32(0))),
                        *caches,
                        partials,
                        *outputs,
                    ),
                    *(step_buffer(device, [position], [0], table), chain, failure),
                    *(filled(device, weights), filled(device, factors)),
                ),
                constants=constants(
                    "attention_fused",
                    **dict(local_size=64, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),
                    **dict(lanes=lanes_of_key(head_dim, device.info.subgroup_size), heads_per_workgroup=heads),
                    **dict(rope_dims=rope_dims, is_interleaved=pairing == "interleaved", keys_at_once=4),
                    **dict(k_q8_0=fmt == "q8_0", v_q8_0=fmt == "q8_0", most_polls=100 * is_chained),
                    **dict(scale=float_bits(0.1), softcap=float_bits(way.softcap) if way.softcap else 0),
                    **dict(window=way.window, n_ring_blocks=way.n_ring_blocks, quantizes=head_dim % 32 == 0),
                    **dict(head_weights=HEAD_WEIGHTS.index(way.weights), has_q_factors=way.has_factors),
                    **dict(norms=way.eps > 0, eps=float_bits(way.eps)),
                ),
                groups=(n_groups, 1),
                push=(n_parts, arrivals, 1, 3),
                is_chained=is_chained,
            )
        ]
    )
    new_value = qkv[:, -n_kv_heads:]
    heads_of = qkv[:, :n_heads], qkv[:, n_heads:-n_kv_heads]
    if way.eps:
        heads_of = tuple(rms_norm(x, 1.0, way.eps) for x in heads_of)
    if way.weights == "before":
        heads_of = tuple(x * w for x, w in zip(heads_of, weights, strict=True))
    heads_of = tuple(rotate(x, turns[position:], pairing) for x in heads_of)
    if way.weights == "after":
        heads_of = tuple(x * w for x, w in zip(heads_of, weights, strict=True))
    query, new_key = heads_of
    if way.has_factors:
        query = query * factors[position]
    for cache, x in zip(caches, (new_key, new_value), strict=True):
        stored = read_cache(words(cache, (cache.n_words,)), [position], where, fmt, x.shape[1:])
        assert nmse(stored, x) < (1e-6 if fmt == "f16" else 1e-4)  # 2^-12 and up to 1/254 of a block's largest
    k, v = (np.concatenate([x, new]) for x, new in zip(before, (new_key, new_value), strict=True))
    wanted = attention(query, cached(k, fmt), cached(v, fmt), np.array([position]), 0.1, way.softcap, way.window)
    y, y_q16, y_scales = outputs
    assert nmse(floats(y, wanted.shape), wanted) < BOUND[fmt]
    if head_dim % 32:
        assert (words(y_q16, (y_q16.n_words,)) == 0x7FC00000).all()
    else:
        n_blocks = size // 32
        got = dequantize_q16(words(y_q16, (1, 4, n_blocks, 4)), floats(y_scales, (1, n_blocks, 2)))
        assert nmse(got.reshape(wanted.shape), floats(y, wanted.shape)) < Q16_BOUND
    told = words(chain, (chain.n_words,))
    assert told[2 * LINK_WORDS] == (n_groups if is_chained else 0), "workgroups that told their end"
    assert told[0] == words(failure, (1,))[0] == 0


@pytest.mark.parametrize("is_chained", [False, True], ids=["barriers", "chained"])
@pytest.mark.parametrize("fmt", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("shape", "heads", "pairing"),
    [((9, 3, 64), 3, "half"), ((4, 4, 32), 1, "interleaved"), ((8, 1, 128), 4, "half"), ((2, 1, 96), 2, "interleaved")],
    ids=str,
)
@pytest.mark.parametrize(("position", "n_parts"), [(0, 4), (31, 1), (64, 4), (200, 1), (700, 8)])
def test_attention_fused(
    device: Device,
    shape: tuple[int, int, int],
    heads: int,
    pairing: str,
    position: int,
    n_parts: int,
    fmt: str,
    is_chained: bool,
) -> None:
    check(device, shape, heads, pairing, position, n_parts, fmt, is_chained, Way())


@pytest.mark.parametrize(
    ("shape", "heads", "position", "n_parts", "fmt", "way"),
    [
        ((4, 2, 128), 2, 70, 2, "q8_0", Way(weights="before", eps=1e-6)),
        ((4, 1, 40), 4, 0, 1, "f16", Way(weights="before", eps=1e-6)),
        ((3, 1, 80), 3, 140, 3, "f16", Way(weights="after", eps=1e-5, has_factors=True)),
        ((2, 2, 8), 1, 33, 2, "f16", Way(is_rotated=False, softcap=20.0)),
        ((4, 2, 256), 2, 300, 4, "q8_0", Way(weights="before", eps=1e-6, window=64, n_ring_blocks=3)),
        ((4, 2, 64), 2, 700, 8, "f16", Way(softcap=50.0, window=400, n_ring_blocks=14)),
        ((4, 2, 64), 2, 50, 2, "f16", Way(window=400, n_ring_blocks=14)),
        ((2, 1, 96), 2, 95, 1, "f16", Way(window=1, has_factors=True)),
    ],
    ids=str,
)
def test_norms_weights_windows(
    device: Device, shape: tuple[int, int, int], heads: int, position: int, n_parts: int, fmt: str, way: Way
) -> None:
    check(device, shape, heads, "half", position, n_parts, fmt, True, way)
