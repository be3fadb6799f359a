"""Keys, values and states between a device and the host: the first blocks of every layer's caches, as they lie there.

Knows how a cache is laid out (shaders/lib/kvcache.glsl); one staging buffer serves memory of all tiers. Does not know
which tokens are cached, nor files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Buffer, Words
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.model.memory.states import slot_words

LOCAL_SIZE = 64
GROUPS = 1024


@dataclass(frozen=True)
class _Part:
    """The keys or the values of a layer: the first n_blocks blocks of a buffer.

    rows: which rows of these blocks hold tokens that are still needed.
    """

    buffer: Buffer
    cache_type: str
    n_kv_heads: int
    head_dim: int
    n_blocks: int
    rows: npt.NDArray[np.bool_]
    first_word: int = 0

    def shaped(self, words: Words) -> Words:
        """Words of all blocks as (n_blocks, n_kv_heads, words of a unit)."""
        return words.reshape(self.n_blocks, self.n_kv_heads, -1)

    @property
    def unit_words(self) -> int:
        """Words that one head has in a block."""
        row_words = self.head_dim // 4 + self.head_dim // 32
        return KV_BLOCK * (row_words if self.cache_type == "q8_0" else self.head_dim // 2)

    @property
    def n_words(self) -> int:
        """Words of all blocks."""
        return self.n_blocks * self.n_kv_heads * self.unit_words

    @property
    def values_end(self) -> int:
        """Where a unit's values end; its scales, if it has any, follow."""
        return KV_BLOCK * self.head_dim // 4 if self.cache_type == "q8_0" else self.unit_words

    def is_finite(self, words: Words) -> bool:
        """Whether the float16 values, or the scales of q8_0, are numbers."""
        if self.cache_type == "q8_0":
            return bool(np.isfinite(words[:, :, self.values_end :].view(np.float32)).all())
        return all(bool(np.isfinite(block.view(np.float16)).all()) for block in words)

    def clear_unused(self, words: Words) -> None:
        """Zeroes the rows that hold other texts' tokens, tokens that no row sees any more, or what was there before."""
        for row in np.flatnonzero(~self.rows):
            block, within = words[row // KV_BLOCK], row % KV_BLOCK
            for rows in (block[:, : self.values_end], block[:, self.values_end :]):
                row_words = rows.shape[1] // KV_BLOCK
                rows[:, within * row_words : (within + 1) * row_words] = 0


@dataclass(frozen=True)
class _State:
    """What a layer has in a slot of its states: float32."""

    buffer: Buffer
    n_words: int
    first_word: int

    def shaped(self, words: Words) -> Words:
        """Words of the state."""
        return words

    def is_finite(self, words: Words) -> bool:
        """Whether all are numbers."""
        return bool(np.isfinite(words.view(np.float32)).all())

    def clear_unused(self, words: Words) -> None:
        """All of a state is used."""


class CachedBlocks:
    """What the cache holds of the first n_tokens tokens. names: of the parts, the keys and the values of each layer, or
    its state."""

    def __init__(self, program: Program, n_tokens: int, state_slot: int | None = None) -> None:
        """state_slot: with the states behind these tokens, if layers have any. Raises OutOfDeviceMemory."""
        self._device = program.device
        self._parts: dict[str, _Part | _State] = {}
        layers = zip(program.spec.layers, program.caches, program.n_ring_blocks, strict=True)
        for number, (layer, buffers, n_ring) in enumerate(layers):
            first = max(n_tokens - layer.window, 0) if n_ring else 0
            n_blocks = min(-(-n_tokens // KV_BLOCK), n_ring or n_tokens)
            rows = np.zeros(n_blocks * KV_BLOCK, np.bool_)
            rows[np.arange(first, n_tokens) % (n_ring * KV_BLOCK or n_tokens)] = True
            for name, buffer, cache_type in zip(("keys", "values"), buffers, program.cache_types, strict=False):
                self._parts[f"{name}.{number}"] = _Part(
                    buffer, cache_type, layer.n_kv_heads, layer.head_dim, n_blocks, rows
                )
        for number, buffer in program.states.items():
            n_words = slot_words(program.spec.layers[number])[1]
            assert state_slot is not None
            self._parts[f"state.{number}"] = _State(buffer, n_words, state_slot * n_words)
        most = max((part.n_words for part in self._parts.values()), default=1)
        self._staging = self._device.buffer(most, tier="readback")

    @property
    def names(self) -> list[str]:
        """Names of the parts."""
        return list(self._parts)

    def read(self, name: str) -> Words:
        """The words of a part (n_blocks, n_kv_heads, words of a unit), of a state (words,), valid until the next call.

        Rows that hold none of the tokens are zero. Raises DeviceError.
        """
        part = self._parts[name]
        self._copy(part.buffer, self._staging, part.n_words, source_word=part.first_word)
        words = self._staged(part)
        part.clear_unused(words)
        return words

    def write(self, name: str, fill: Callable[[Words], None]) -> None:
        """Replaces a part by what `fill` writes into an array of the shape that `read` returns.

        Raises DeviceError, what `fill` raises, and ValueError for a number that no model computes: infinity or NaN.
        """
        part = self._parts[name]
        words = self._staged(part)
        fill(words)
        if not part.is_finite(words):
            raise ValueError(f"{name} has a number that is not finite")
        self._copy(self._staging, part.buffer, part.n_words, target_word=part.first_word)

    def _staged(self, part: _Part | _State) -> Words:
        assert self._staging.words is not None
        return part.shaped(self._staging.words[: part.n_words])

    def _copy(
        self, source: Buffer, target: Buffer, n_words: int, *, target_word: int = 0, source_word: int = 0
    ) -> None:
        copy = self._device.dispatch(
            KERNELS["copy_words"],
            (source, target),
            constants=(LOCAL_SIZE,),
            groups=(min(GROUPS, -(-n_words // LOCAL_SIZE)), 1),
            push=(n_words, target_word, source_word),
        )
        self._device.run([copy])
