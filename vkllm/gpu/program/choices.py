"""Choices that depend on the device: how many invocations, rows and tokens a workgroup takes.

A table by kind of device, with what was measured. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vkllm.gpu.device.probe import AMD, NVIDIA, NVIDIA_DRIVER, DeviceInfo


@dataclass(frozen=True)
class DecodeTuning:
    """Choices for steps of one token (matvec_fused and attention_fused).

    size: invocations of a workgroup of matvec_fused. rows: rows of a matrix that a subgroup computes together, sharing
    the activations in registers. unroll: blocks of a row whose loads are under way together. groups: most workgroups,
    each of which quantizes the activations and then takes rows until none are left; 0: no limit. steps_touched: steps
    of that loop whose weights are fetched into the cache while a workgroup waits. doubles: whether all loads of such a
    step begin before the products of the previous one, which takes twice the registers. attention_size: invocations of
    a workgroup of attention. attention_groups: parts of all heads that it is cut into, if the context is long enough;
    heads that share keys share a workgroup. keys_at_once: keys whose loads a few lanes have under way together.
    is_chained: whether dispatches wait for each other in the shader (shaders/lib/chain.glsl).
    """

    size: int
    rows: int
    unroll: int
    groups: int
    attention_size: int
    attention_groups: int
    keys_at_once: int
    steps_touched: int = 0
    doubles: bool = False
    is_chained: bool = False


@dataclass(frozen=True)
class Tuning:
    """local_size: invocations of a workgroup, a power of two; attention_size: of attention's.

    attention_queries: heads and tokens that a workgroup of attention takes together (a few more heads, where so many
    share a key head). keys_at_once: keys whose loads a few lanes have under way together.
    tile_rows, tile_tokens: rows of a matrix that a subgroup computes together, sharing the activations in registers,
    and tokens that share a weight block. has_matmul: whether steps of several tokens multiply by cooperative matrices;
    narrow_rows: rows of matmul's tiles for up to 64 tokens, 32, 64 or 128; fewer make more workgroups of longer steps.
    steps_ahead, steps_ahead_wide: steps of matmul's loop whose loads are under way together, for up to 64 tokens and
    for more; matmul_size: invocations of its workgroups for more than 64 tokens, 128 or 256.
    has_tiled_attention: whether attention takes cooperative matrices too, where the model's heads suit it.
    part_keys: keys of the first parts that attention cuts a context into, at least.
    """

    local_size: int
    attention_size: int
    attention_queries: int
    keys_at_once: int
    tile_rows: int
    tile_tokens: int
    decode: DecodeTuning
    has_matmul: bool = False
    narrow_rows: int = 128
    steps_ahead: int = 1
    steps_ahead_wide: int = 1
    matmul_size: int = 256
    has_tiled_attention: bool = False
    part_keys: int = 128


# lavapipe loads words lane by lane, which takes longer than all else, and eight rows share the loads of activations:
# a token of SmolLM2 Q4_1 takes 0.35 s of processor time, not 0.44 as with four rows. In steps of several tokens,
# tiles of eight tokens are four times slower than of two; of four they take a quarter less time than of two with eight
# rows (SmolLM2 Q4_1, processor time of a step: 1 row 424 ms, 4 rows 632 instead of 832, 8 rows 1.25 s instead of 1.65),
# but 10 % more with four rows. Parts of 128 keys cost attention 15 % (8B, depth 1000).
CPU = Tuning(
    local_size=32,
    attention_size=32,
    attention_queries=1,
    keys_at_once=4,
    tile_rows=8,
    tile_tokens=4,
    part_keys=512,
    decode=DecodeTuning(size=32, rows=8, unroll=1, groups=8, attention_size=32, attention_groups=24, keys_at_once=4),
)
GPU = Tuning(
    local_size=64,
    attention_size=128,
    attention_queries=4,
    keys_at_once=4,
    tile_rows=2,
    tile_tokens=8,
    decode=DecodeTuning(
        size=256, rows=2, unroll=2, groups=512, attention_size=128, attention_groups=256, keys_at_once=4
    ),
)


VENDORS = {
    NVIDIA: replace(
        GPU,
        keys_at_once=8,
        narrow_rows=64,
        steps_ahead=4,
        steps_ahead_wide=2,
        matmul_size=128,
        has_tiled_attention=True,
        decode=replace(
            GPU.decode,
            size=512,
            groups=132,
            attention_size=256,
            keys_at_once=2,
            steps_touched=1,
            doubles=True,
            is_chained=True,
        ),
    ),
    # By Mesa's compiler (docs/amd.md), measured on no GPU. With two rows of a block each the two workgroups of 512
    # below fit on a core, whatever the format. With two blocks or four rows a SIMD has room for 6 of their 8 subgroups
    # in some formats; a 7B Q4_0 step then computes 12.8 or 12.5 ms on a Steam Deck, not 13.1, beside 42 of reading.
    # Attention with four keys at once and four heads spills registers on an RX 7900. There matmul's tiles of 64 rows
    # take fewer than those of 128 (72, not 84, for 16 tokens of Q4_0, Mesa 25.0.7), and make twice the workgroups.
    AMD: replace(
        GPU, keys_at_once=2, narrow_rows=64, decode=replace(GPU.decode, size=512, unroll=1, groups=96, keys_at_once=2)
    ),
}


GROUPS_PER_CORE = {NVIDIA: 1, AMD: 2}
"""Workgroups of matvec_fused that run on a core at once. Any more would quantize the activations again for nothing."""

ATTENTION_GROUPS_PER_CORE = {NVIDIA: 4, AMD: 8}
"""On an H100, 4 are the best for four heads a key head (a workgroup a core), and nearly so for one; AMD is a guess."""


def may_chain(info: DeviceInfo) -> bool:
    """Whether dispatches may be chained, if the device passes the test of gpu/program/chains.py when a model is loaded.

    Vulkan does not guarantee that dispatches start in order; under NVIDIA's own driver they were seen to.
    """
    return info.driver_id == NVIDIA_DRIVER


def tuning(info: DeviceInfo) -> Tuning:
    """The table's choices for a device; `gpu/tuning/cache.py` may have better ones."""
    if info.type == "cpu":
        return CPU
    choices = VENDORS.get(info.vendor_id, GPU)
    if info.n_cores and info.vendor_id in GROUPS_PER_CORE:
        groups = GROUPS_PER_CORE[info.vendor_id] * info.n_cores
        attention_groups = ATTENTION_GROUPS_PER_CORE[info.vendor_id] * info.n_cores
        choices = replace(choices, decode=replace(choices.decode, groups=groups, attention_groups=attention_groups))
    if choices.decode.is_chained and not may_chain(info):
        choices = replace(choices, decode=replace(choices.decode, is_chained=False))
    # Intel's need a subgroup size of their own, which is untested
    has_matmul = info.matrix_shape is not None and info.vendor_id in (NVIDIA, AMD)
    return replace(choices, has_matmul=has_matmul, has_tiled_attention=has_matmul and choices.has_tiled_attention)
