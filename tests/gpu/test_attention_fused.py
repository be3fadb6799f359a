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
from vkllm.gpu.program.kernels import HEAD_VALUES, HEAD_WEIGHTS, KERNELS, KV_BLOCK, LINK_WORDS
from vkllm.model.reference import attention, rms_norm, rope_table, rotate
from vkllm.model.reference_states import sigmoid
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

# float32 throughout; what the cache keeps is the reference's input, but where float32 and float16 or a byte round a
# key of the new token to different sides, it is one step off: 2^-11 or 1/127 in one of its dimensions
BOUND = {"f16": 1e-8, "q8_0": 1e-6}
Q16_BOUND = 4e-9  # rounding to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


@dataclass(frozen=True)
class Way:
    """How a model attends; see vkllm/model/graph.py. eps: of the norm of queries and keys, 0: none. values_eps: of that
    of values. is_cached: the new token's key and value are in the cache already. latent_dim: see Scores."""

    softcap: float = 0.0
    window: int = 0
    n_window_blocks: int = 0
    weights: str = "none"
    has_factors: bool = False
    eps: float = 0.0
    is_rotated: bool = True
    values: str = "as they are"
    values_eps: float = 0.0
    is_cached: bool = False
    has_gates: bool = False
    has_sinks: bool = False
    chunk: int = 0
    latent_dim: int = 0


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
    gates = rng.normal(0, 2, (1, n_heads, head_dim)).astype(np.float32)
    sinks = rng.normal(0, 3, n_heads).astype(np.float32)
    n_before = position + way.is_cached
    before = [rng.normal(0, 1, (n_before, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2)]
    read = qkv[:, :n_heads] if way.is_cached else qkv
    if way.has_gates:
        queries = np.concatenate([read[:, :n_heads], gates], axis=-1).reshape(1, 2 * n_heads, head_dim)
        read = np.concatenate([queries, read[:, n_heads:]], axis=1)
    table = [int(block) for block in rng.permutation(position // KV_BLOCK + 1)]
    where = [i % way.n_window_blocks for i in range(len(table))] if way.n_window_blocks else table
    caches = [poisoned(device, cache_words(fmt, max(where) + 2, n_kv_heads, head_dim)) for _ in range(2)]
    for cache, x in zip(caches, before, strict=True):
        write_cache(cache.words, x, where, fmt)
    value_dim = way.latent_dim or head_dim
    size = n_heads * value_dim
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
                        filled(device, read),
                        filled(device, np.append(turns, np.float32(0))),
                        *caches,
                        partials,
                        *outputs,
                    ),
                    *(
                        step_buffer(device, [position], [0], table, 0, where if way.n_window_blocks else ()),
                        chain,
                        failure,
                    ),
                    *(filled(device, weights), filled(device, factors), filled(device, sinks)),
                ),
                constants=constants(
                    "attention_fused",
                    **dict(local_size=64, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),
                    **dict(lanes=lanes_of_key(head_dim, device.info.subgroup_size), heads_per_workgroup=heads),
                    # what large heads unroll takes long to compile
                    **dict(rope_dims=rope_dims, is_interleaved=pairing == "interleaved"),
                    keys_at_once=4 if head_dim <= 64 else 2,
                    **dict(k_q8_0=fmt == "q8_0", v_q8_0=fmt == "q8_0", most_polls=100 * is_chained),
                    **dict(scale=float_bits(0.1), softcap=float_bits(way.softcap) if way.softcap else 0),
                    **dict(window=way.window, table=2 if way.n_window_blocks else 0, quantizes=value_dim % 32 == 0),
                    **dict(head_weights=HEAD_WEIGHTS.index(way.weights), has_q_factors=way.has_factors),
                    **dict(norms=way.eps > 0, eps=float_bits(way.eps or way.values_eps)),
                    **dict(values=HEAD_VALUES.index(way.values), is_newest_cached=way.is_cached),
                    **dict(has_gates=way.has_gates, has_sinks=way.has_sinks, chunk=way.chunk),
                    latent_dim=way.latent_dim,
                ),
                groups=(n_groups, 1),
                push=(n_parts, arrivals, 1, 3),
                is_chained=is_chained,
            )
        ]
    )
    new_value = qkv[:, n_heads:-n_kv_heads] if way.values == "keys" else qkv[:, -n_kv_heads:]
    if way.values != "as they are":
        new_value = rms_norm(new_value, 1.0, way.eps or way.values_eps)
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
    for cache, x in zip(caches, () if way.is_cached else (new_key, new_value), strict=False):
        stored = read_cache(words(cache, (cache.n_words,)), [position], where, fmt, x.shape[1:])
        assert nmse(stored, x) < (1e-6 if fmt == "f16" else 1e-4)  # 2^-12 and up to 1/254 of a block's largest
    k, v = (np.concatenate([x, new])[: position + 1] for x, new in zip(before, (new_key, new_value), strict=True))
    k, v = cached(k, fmt), cached(v, fmt)
    v = k[..., : way.latent_dim] if way.latent_dim else v
    of_scores = (0.1, way.softcap, way.window, True, way.chunk, sinks if way.has_sinks else None)
    wanted = attention(query, k, v, np.array([position]), *of_scores)
    if way.has_gates:
        wanted = wanted * sigmoid(gates)
    y, y_q16, y_scales = outputs
    assert nmse(floats(y, wanted.shape), wanted) < BOUND[fmt]
    if value_dim % 32:
        assert (words(y_q16, (y_q16.n_words,)) == 0x7FC00000).all()
    else:
        n_blocks = size // 32
        got = dequantize_q16(words(y_q16, (1, 4, n_blocks, 4)), floats(y_scales, (1, n_blocks, 2)))
        assert nmse(got.reshape(wanted.shape), floats(y, wanted.shape)) < Q16_BOUND
    told = words(chain, (chain.n_words,))
    assert told[2 * LINK_WORDS] == (n_groups if is_chained else 0), "workgroups that told their end"
    assert told[0] == words(failure, (1,))[0] == 0


SMALL = [((9, 3, 64), 3, "half"), ((4, 4, 32), 1, "interleaved")]


@pytest.mark.parametrize(
    ("shape", "heads", "pairing", "fmt", "is_chained"),
    [  # the larger the heads, the longer their kernels take to compile
        *[(*of, fmt, is_chained) for of in SMALL for fmt in ("f16", "q8_0") for is_chained in (False, True)],
        *[((8, 1, 128), 4, "half", "f16", True), ((8, 1, 128), 4, "half", "q8_0", False)],
        *[((2, 1, 96), 2, "interleaved", "f16", False), ((2, 1, 96), 2, "interleaved", "q8_0", True)],
    ],
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
        ((4, 2, 256), 2, 300, 4, "q8_0", Way(weights="before", eps=1e-6, window=64, n_window_blocks=3)),
        ((4, 2, 64), 2, 700, 8, "f16", Way(softcap=50.0, window=400, n_window_blocks=14)),
        ((4, 2, 64), 2, 50, 2, "f16", Way(window=400, n_window_blocks=14)),
        ((2, 1, 96), 2, 95, 1, "f16", Way(window=1, has_factors=True)),
    ],
    ids=str,
)
def test_norms_weights_windows(
    device: Device, shape: tuple[int, int, int], heads: int, position: int, n_parts: int, fmt: str, way: Way
) -> None:
    check(device, shape, heads, "half", position, n_parts, fmt, True, way)


@pytest.mark.parametrize(
    ("shape", "heads", "position", "n_parts", "fmt", "way"),
    [
        ((4, 2, 64), 2, 700, 8, "f16", Way(has_sinks=True)),
        ((4, 2, 64), 2, 300, 4, "q8_0", Way(has_sinks=True, window=128, n_window_blocks=6)),
        ((4, 1, 64), 4, 20, 4, "f16", Way(has_sinks=True, has_gates=True)),
        ((4, 2, 128), 2, 150, 3, "f16", Way(weights="before", eps=1e-6, has_gates=True)),
        ((4, 2, 64), 2, 255, 4, "f16", Way(chunk=256)),
        ((4, 2, 64), 2, 256, 4, "f16", Way(chunk=256)),
        ((4, 2, 64), 2, 400, 4, "q8_0", Way(chunk=256, has_factors=True)),
        ((2, 1, 512), 1, 130, 2, "q8_0", Way(weights="before", eps=1e-6, values="keys")),
        ((4, 2, 128), 2, 70, 2, "f16", Way(weights="before", eps=1e-6, values="norm")),
        ((2, 2, 40), 1, 0, 1, "f16", Way(values="norm", values_eps=1e-6)),
        ((4, 2, 128), 2, 200, 3, "f16", Way(weights="before", eps=1e-6, is_cached=True, window=64, n_window_blocks=4)),
        ((4, 2, 64), 2, 31, 1, "q8_0", Way(is_cached=True, has_gates=True)),
        ((8, 1, 576), 2, 200, 3, "f16", Way(is_rotated=False, is_cached=True, latent_dim=512)),
        ((8, 1, 576), 2, 64, 3, "q8_0", Way(is_rotated=False, is_cached=True, latent_dim=512)),
        ((16, 1, 48), 4, 300, 4, "f16", Way(is_rotated=False, is_cached=True, latent_dim=32)),
    ],
    ids=str,
)
def test_sinks_gates_values_and_other_caches(
    device: Device, shape: tuple[int, int, int], heads: int, position: int, n_parts: int, fmt: str, way: Way
) -> None:
    check(device, shape, heads, "half", position, n_parts, fmt, not way.is_cached, way)
