"""Keys, values and states of a sequence between a device and the host: blocks of every layer's caches, in their order.

Knows how a cache is laid out (shaders/lib/kvcache.glsl); one staging buffer serves memory of all tiers. Does not know
which tokens are cached, nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Buffer, Words
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.predictions import Predictions
from vkllm.gpu.program.program import Program
from vkllm.model.memory.states import slot_words
from vkllm.model.spec import ModelSpec

_Index = slice | tuple[slice, slice] | tuple[slice, list[int]]

LOCAL_SIZE = 64
GROUPS = 1024


@dataclass(frozen=True)
class CachePlace:
    """Where the tokens of a sequence lie. blocks: block i holds those from KV_BLOCK * i on; window_blocks: the same in
    the caches of layers with a window; state_slot: the states behind the last token, if layers have any."""

    blocks: Sequence[int]
    window_blocks: Sequence[int] = ()
    state_slot: int | None = None


@dataclass(frozen=True)
class _Part:
    """The keys or the values of a layer: blocks of a buffer.

    rows: which rows of these blocks hold tokens that are still needed. of_head: the head for further tokens that the
    layer is of.
    """

    buffer: Buffer
    cache_type: str
    n_kv_heads: int
    head_dim: int
    blocks: Sequence[int]
    rows: npt.NDArray[np.bool_]
    of_head: Predictions | None = None

    @property
    def n_blocks(self) -> int:
        """How many blocks."""
        return len(self.blocks)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First word and number of words of the parts of the buffer, in order."""
        size = self.n_kv_heads * self.unit_words
        starts = [i for i, block in enumerate(self.blocks) if not i or block != self.blocks[i - 1] + 1]
        return [(self.blocks[i] * size, (j - i) * size) for i, j in pairwise([*starts, len(self.blocks)])]

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

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First word and number of words of the parts of the buffer: of one."""
        return [(self.first_word, self.n_words)]

    def shaped(self, words: Words) -> Words:
        """Words of the state."""
        return words

    def is_finite(self, words: Words) -> bool:
        """Whether all are numbers."""
        return bool(np.isfinite(words.view(np.float32)).all())

    def clear_unused(self, words: Words) -> None:
        """All of a state is used."""


class CachedBlocks:
    """What the cache holds of a sequence of n_tokens tokens, on all devices of a program. names: of the parts, the keys
    and the values of each layer, or its state. names_of_head: of the parts of a head for further tokens, if it is
    loaded: without them, it guesses worse, and answers are the same."""

    def __init__(self, program: Program | ProgramGroup, n_tokens: int, place: CachePlace) -> None:
        """Waits for what was submitted. Raises DeviceError."""
        program.settle()
        self._spec = program.spec
        self._blocks: dict[str, list[_BlocksOfDevice]] = {}
        for rank in program.ranks:
            blocks = _BlocksOfDevice(rank, n_tokens, place)
            for name in blocks.names:
                self._blocks.setdefault(name, []).append(blocks)
        heads = {f".{predictor.number}" for rank in program.ranks for predictor in rank.spec.predictors}
        self.names = [name for name in self._blocks if not name.endswith(tuple(heads))]
        self.names_of_head = [name for name in self._blocks if name not in self.names]

    def read(self, name: str) -> Words:
        """The words of a part (n_blocks, n_kv_heads, words of a unit), of a state (words,), valid until the next call.

        Rows that hold none of the tokens are zero. Raises DeviceError.
        """
        holders = self._blocks[name]
        if not holders[0].places(name, self._spec):  # whole on each of them
            return holders[0].read(name)
        joined = np.zeros(holders[0].whole_shape(name, self._spec), np.uint32)
        for each in holders:
            words = each.read(name)
            for own, place in each.places(name, self._spec):
                joined[place] = words[own]
        return joined

    def write(self, name: str, fill: Callable[[Words], None]) -> None:
        """Replaces a part by what `fill` writes into an array of the shape that `read` returns.

        Raises DeviceError, what `fill` raises, and ValueError for a number that no model computes: infinity or NaN.
        """
        holders = self._blocks[name]
        if len(holders) == 1:
            holders[0].write(name, fill)
            return
        words = self.read(name).copy()
        fill(words)
        for each in holders:
            each.write(name, partial(_copy_to, words, each.places(name, self._spec)))


def _copy_to(words: Words, places: list[tuple[_Index, _Index]], target: Words) -> None:
    """places: in a device's part, and in the whole; none: it is all of it."""
    if not places:
        np.copyto(target, words)
        return
    target.fill(0)
    for own, place in places:
        target[own] = words[place]


class _BlocksOfDevice:
    """What one device has of it."""

    def __init__(self, program: Program, n_tokens: int, place: CachePlace) -> None:
        self._device = program.device
        self._spec = program.spec
        self._share = program.share
        self._parts: dict[str, _Part | _State] = {}
        for number, (layer, buffers) in enumerate(zip(program.spec.all_layers, program.caches, strict=True)):
            # the next token sees those before it and itself, in its window
            first = max(n_tokens - layer.window + 1, 0) if layer.window else 0
            all_blocks = place.window_blocks if layer.window else place.blocks
            blocks = all_blocks[first // KV_BLOCK : -(-n_tokens // KV_BLOCK)]
            rows = np.zeros(len(blocks) * KV_BLOCK, np.bool_)
            rows[first % KV_BLOCK :][: n_tokens - first] = True
            of_head = program.predictions if number >= program.spec.n_layers else None
            if of_head is not None:
                rows &= np.repeat([block in of_head.read_blocks for block in blocks], KV_BLOCK)
            for name, buffer, cache_type in zip(("keys", "values"), buffers, program.cache_types, strict=False):
                self._parts[f"{name}.{number}"] = _Part(
                    buffer, cache_type, layer.n_kv_heads, layer.head_dim, blocks, rows, of_head
                )
        for number, buffer in program.states.items():
            n_words = slot_words(program.spec.layers[number])[1]
            assert place.state_slot is not None
            self._parts[f"state.{number}"] = _State(buffer, n_words, place.state_slot * n_words)
        most = max((part.n_words for part in self._parts.values()), default=1)
        self._staging = self._device.buffer(most, tier="readback")

    @property
    def names(self) -> list[str]:
        return list(self._parts)

    def places(self, name: str, whole: ModelSpec) -> list[tuple[_Index, _Index]]:
        """Where numbers of a part lie, and where in that of the whole model; nothing where these are the same."""
        kind, number = name.split(".")
        if self._share is None:
            return []
        if kind == "state":
            state = self._share.cached.states.get(int(number))
            found = state.pieces(whole.layers[int(number)], self._spec.layers[int(number)]) if state else []
            return [(slice(own.start, own.stop), slice(place.start, place.stop)) for own, place in found]
        heads = self._share.cached.keys.get(int(number))
        return [] if heads is None else [((slice(None), slice(None)), (slice(None), list(heads)))]

    def whole_shape(self, name: str, whole: ModelSpec) -> tuple[int, ...]:
        """Of the words that the whole model has of a part."""
        layer, part = whole.layers[int(name.split(".")[1])], self._parts[name]
        if isinstance(part, _State):
            return (slot_words(layer)[1],)
        return part.n_blocks, layer.n_kv_heads, part.unit_words

    def read(self, name: str) -> Words:
        part = self._parts[name]
        self._copy(part.buffer, self._staging, part.pieces)
        words = self._staged(part)
        part.clear_unused(words)
        return words

    def write(self, name: str, fill: Callable[[Words], None]) -> None:
        part = self._parts[name]
        words = self._staged(part)
        fill(words)
        if not part.is_finite(words):
            raise ValueError(f"{name} has a number that is not finite")
        self._copy(self._staging, part.buffer, part.pieces)
        if isinstance(part, _Part) and part.of_head is not None:
            part.of_head.read_blocks.update(part.blocks)

    def _staged(self, part: _Part | _State) -> Words:
        assert self._staging.words is not None
        return part.shaped(self._staging.words[: part.n_words])

    def _copy(self, source: Buffer, target: Buffer, pieces: list[tuple[int, int]]) -> None:
        """Copies pieces of the cache to the staging buffer, one behind the other, or from it."""
        copies, staged = [], 0
        for first, n_words in pieces:
            words = (first, staged) if target is not self._staging else (staged, first)
            copies.append(
                self._device.dispatch(
                    KERNELS["copy_words"],
                    (source, target),
                    constants=(LOCAL_SIZE,),
                    groups=(min(GROUPS, -(-n_words // LOCAL_SIZE)), 1),
                    push=(n_words, *words),
                )
            )
            staged += n_words
        if copies:
            self._device.run(copies)
