"""Choices that depend on the device: how many invocations, rows and tokens a workgroup takes.

A table by kind of device, with what was measured. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vkllm.gpu.probe import DeviceInfo


@dataclass(frozen=True)
class Tuning:
    """local_size: invocations of a workgroup, a power of two; attention_size: of attention's.

    attention_queries: heads and tokens that a workgroup of attention takes together in prefill (a few more heads, where
    so many share a key head); keys_at_once: keys whose loads a few lanes have under way together;
    loop_splits: pieces of the context up to which decode does without a merge of workgroups' results.
    matvec_rows: rows of a matrix that a subgroup computes together, sharing the activations in registers;
    tile_rows, tile_tokens: the same for steps of several tokens, and how many tokens share a weight block.
    unroll: weight blocks of a row whose loads are under way together.
    fused_size: invocations of a workgroup of matvec_fused; 0: decode has separate norms and activations.
    has_matmul: whether steps of several tokens multiply by cooperative matrices.
    """

    local_size: int
    attention_size: int
    attention_queries: int
    keys_at_once: int
    loop_splits: int
    matvec_rows: int
    tile_rows: int
    tile_tokens: int
    unroll: int
    fused_size: int = 0
    has_matmul: bool = False

    @property
    def has_decode_kernels(self) -> bool:
        """Whether steps of one row take other kernels than wider ones."""
        return self.has_matmul or self.fused_size > 0

    def matvec(self, width: int) -> tuple[int, int, int]:
        """Rows a subgroup, tokens a workgroup and unrolling, for steps of `width` rows."""
        if width == 1:
            return self.matvec_rows, 1, self.unroll
        return self.tile_rows, min(width, self.tile_tokens), 1


# lavapipe keeps few values in registers: many rows at once pay (0.9 ms for SmolLM2's gate and up instead of 1.6),
# tiles of eight tokens are four times slower than of two.
CPU = Tuning(
    local_size=32,
    attention_size=32,
    attention_queries=1,
    keys_at_once=4,
    loop_splits=64,
    matvec_rows=4,
    tile_rows=8,
    tile_tokens=2,
    unroll=1,
)
GPU = Tuning(
    local_size=64,
    attention_size=128,
    attention_queries=4,
    keys_at_once=4,
    loop_splits=2,
    matvec_rows=2,
    tile_rows=2,
    tile_tokens=8,
    unroll=2,
    fused_size=256,
)


NVIDIA, AMD = 0x10DE, 0x1002
# H100, 7B Q4_0 decode: 354 tok/s with fused workgroups of 512, 290 with 256, 305 without fusing; eight keys at once
# bring 0.5 %.
# AMD, counted in machine code (docs/amd.md): with fused workgroups of 256 a Steam Deck would compute longer than it
# reads, since each quantizes the activations again; 1024 and four keys at once would spill registers.
VENDORS = {
    NVIDIA: replace(GPU, fused_size=512, keys_at_once=8),
    AMD: replace(GPU, fused_size=512, keys_at_once=2),
}


def tuning(info: DeviceInfo) -> Tuning:
    """The choices for a device."""
    if info.type == "cpu":
        return CPU
    # these two are known to multiply float16 16x16x16 with float32 sums
    has_matrices = {"cooperative_matrix", "fp16"} <= info.features and info.vendor_id in (NVIDIA, AMD)
    has_matmul = has_matrices and info.max_shared_bytes >= 40_960
    return replace(VENDORS.get(info.vendor_id, GPU), has_matmul=has_matmul)
