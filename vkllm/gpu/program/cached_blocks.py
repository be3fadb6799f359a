"""Keys and values between a device and the host: the first blocks of every layer's caches, as they lie there.

Knows how a cache is laid out (shaders/lib/kvcache.glsl); one staging buffer serves memory of all tiers. Does not know
which tokens are cached, nor files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vkllm.gpu.device.kompute import Buffer, Words
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.program import Program

LOCAL_SIZE = 64
GROUPS = 1024


class CachedBlocks:
    """The blocks that hold the first n_tokens tokens. names: of the parts, the keys and the values of each layer."""

    def __init__(self, program: Program, n_tokens: int) -> None:
        """Raises OutOfDeviceMemory."""
        self._device = program.device
        self._spec = program.spec
        self._n_tokens = n_tokens
        self._n_blocks = -(-n_tokens // KV_BLOCK)
        type_k, type_v = program.cache_types
        self._parts: dict[str, tuple[Buffer, str]] = {}
        for layer, (keys, values) in enumerate(program.caches):
            self._parts |= {f"keys.{layer}": (keys, type_k), f"values.{layer}": (values, type_v)}
        most = max(self._n_words(cache_type) for cache_type in program.cache_types)
        self._staging = self._device.buffer(most, tier="readback")

    @property
    def names(self) -> list[str]:
        """Names of the parts."""
        return list(self._parts)

    def read(self, name: str) -> Words:
        """The words of a part (n_blocks, n_kv_heads, words of a unit), valid until the next call.

        Rows that hold none of the tokens are zero. Raises DeviceError.
        """
        cache, cache_type = self._parts[name]
        self._copy(cache, self._staging, self._n_words(cache_type))
        words = self._staged(cache_type)
        self._clear_unused(words[-1], cache_type)
        return words

    def write(self, name: str, fill: Callable[[Words], None]) -> None:
        """Replaces a part by what `fill` writes into an array of the shape that `read` returns.

        Raises DeviceError, what `fill` raises, and ValueError for a number that no model computes: infinity or NaN.
        """
        cache, cache_type = self._parts[name]
        words = self._staged(cache_type)
        fill(words)
        if not self._is_finite(words, cache_type):
            raise ValueError(f"{name} has a number that is not finite")
        self._copy(self._staging, cache, self._n_words(cache_type))

    def _unit_words(self, cache_type: str) -> int:
        """Words that one head has in a block."""
        row_words = self._spec.head_dim // 4 + self._spec.head_dim // 32
        return KV_BLOCK * (row_words if cache_type == "q8_0" else self._spec.head_dim // 2)

    def _is_finite(self, words: Words, cache_type: str) -> bool:
        """Whether the float16 values, or the scales of q8_0, are numbers."""
        if cache_type == "q8_0":
            scales = words[:, :, KV_BLOCK * self._spec.head_dim // 4 :]
            return bool(np.isfinite(scales.view(np.float32)).all())
        return all(bool(np.isfinite(block.view(np.float16)).all()) for block in words)

    def _n_words(self, cache_type: str) -> int:
        return self._n_blocks * self._spec.n_kv_heads * self._unit_words(cache_type)

    def _staged(self, cache_type: str) -> Words:
        assert self._staging.words is not None
        words = self._staging.words[: self._n_words(cache_type)]
        return words.reshape(self._n_blocks, self._spec.n_kv_heads, -1)

    def _clear_unused(self, block: Words, cache_type: str) -> None:
        """Zeroes the rows of the last block that hold other texts' tokens, or whatever was in the memory."""
        n_used = self._n_tokens - (self._n_blocks - 1) * KV_BLOCK
        rows_end = KV_BLOCK * self._spec.head_dim // 4 if cache_type == "q8_0" else block.shape[1]
        for rows in (block[:, :rows_end], block[:, rows_end:]):  # a row's values, and of q8_0 its scales
            row_words = rows.shape[1] // KV_BLOCK
            rows[:, n_used * row_words :] = 0

    def _copy(self, source: Buffer, target: Buffer, n_words: int) -> None:
        copy = self._device.dispatch(
            KERNELS["copy_words"],
            (source, target),
            constants=(LOCAL_SIZE,),
            groups=(min(GROUPS, -(-n_words // LOCAL_SIZE)), 1),
            push=(n_words, 0),
        )
        self._device.run([copy])
