"""Blocks of a cache, shared by sequences: who holds each, what free ones still hold, which is given away next.

A block is known by what its tokens are and what comes before them: a key stands for a whole beginning of a sequence and
whose text it is (`root_key`, `key_behind`), so equal beginnings are stored once. Full blocks are shared. A block that
is not full belongs to one sequence; when that has ended, a sequence that goes on from its tokens may take it over.
Knows numbers and token ids, nothing of devices.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from vkllm.model.memory.kernel_sizes import KV_BLOCK

Key = bytes
"""Stands for the tokens from a sequence's beginning to the end of one of its blocks, and for whose they are."""

KEY_BYTES = 16


def root_key(origin: str) -> Key:
    """The key of the beginning of all sequences of an origin."""
    return blake2b(origin.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def key_behind(key: Key, token_ids: Sequence[int]) -> Key:
    """The key behind a full block of tokens, which comes behind `key`."""
    return blake2b(key + array("I", token_ids).tobytes(), digest_size=KEY_BYTES).digest()


@dataclass(frozen=True)
class _Content:
    """What a block holds that can be used again: KV_BLOCK tokens or fewer, behind a key."""

    before: Key
    token_ids: tuple[int, ...]
    key: Key | None  # behind them; None: they are fewer


class BlockPool:
    """n_blocks blocks, each held by a number of sequences. Those that nobody holds are free, whatever they hold."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._n_holders = [0] * n_blocks
        self._empty = list(range(n_blocks - 1, -1, -1))  # free blocks that hold nothing
        self._unused: OrderedDict[int, None] = OrderedDict()  # free blocks that hold something, longest unused first
        self._contents: dict[int, _Content] = {}
        self._full: dict[Key, int] = {}  # by the key behind it
        self._behind: dict[Key, set[int]] = {}  # blocks with a content, by the key before it

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._unused)

    @property
    def n_empty(self) -> int:
        """How many of these hold nothing."""
        return len(self._empty)

    def n_holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._n_holders[block]

    def take(self) -> int:
        """A free block, now held once: an empty one, or else the one unused for longest. There must be one."""
        if self._empty:
            block = self._empty.pop()
        else:
            block = self._unused.popitem(last=False)[0]
            self._forget(block)
        self._n_holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One more sequence holds a block that has a content."""
        self._unused.pop(block, None)
        self._n_holders[block] += 1

    def take_over(self, block: int) -> None:
        """Holds a free block in order to write behind some of its tokens; nobody else finds it from now on."""
        assert not self._n_holders[block]
        self.hold(block)
        self._forget(block)

    def release(self, blocks: Iterable[int]) -> None:
        """One sequence holds these blocks no longer. Those released first are given away first."""
        for block in blocks:
            assert self._n_holders[block] > 0
            self._n_holders[block] -= 1
            if self._n_holders[block]:
                continue
            if block in self._contents:
                self._unused[block] = None
            else:
                self._empty.append(block)

    def keep(self, block: int, before: Key, token_ids: Sequence[int], key: Key | None) -> None:
        """A held block has these tokens, behind the key `before`, so that others find it. key: as `key_behind` gives
        it, if the block is full. What is there already is not kept twice."""
        if (key is not None and key in self._full) or block in self._contents or not token_ids:
            return
        self._contents[block] = _Content(before, tuple(token_ids), key)
        self._behind.setdefault(before, set()).add(block)
        if key is not None:
            self._full[key] = block

    def full(self, key: Key) -> int | None:
        """The full block with that key behind it, if there is one."""
        return self._full.get(key)

    def longest_match(self, before: Key, token_ids: Sequence[int], most: int) -> tuple[int, int]:
        """The free block behind a key that has the most of these tokens at its beginning, and how many, at most `most`;
        (-1, 0) if none has any."""
        best, n_best = -1, 0
        for block in self._behind.get(before, ()):
            if self._n_holders[block]:
                continue
            n_same = _n_same(self._contents[block].token_ids, token_ids, most)
            if n_same > n_best or (n_same == n_best and n_same and self._is_better_lost(block, best)):
                best, n_best = block, n_same
        return best, n_best

    def n_lost(self, block: int, most: int) -> int:
        """How many tokens that are cached behind a block could not be found without it; it counts up to about most."""
        n, keys = 0, [self._contents[block].key]
        while keys and n <= most:
            for behind in self._behind.get(keys.pop() or b"", ()):
                n += len(self._contents[behind].token_ids)
                keys.append(self._contents[behind].key)
        return n

    def _is_better_lost(self, block: int, other: int) -> bool:
        return self.n_lost(block, 1) == 0 < self.n_lost(other, 1)

    def _forget(self, block: int) -> None:
        """A block's content is going to be replaced."""
        if (content := self._contents.pop(block, None)) is None:
            return
        others = self._behind[content.before]
        others.discard(block)
        if not others:
            del self._behind[content.before]
        if content.key is not None:
            del self._full[content.key]


def _n_same(cached: Sequence[int], wanted: Sequence[int], most: int) -> int:
    n = 0
    for one, other in zip(cached[:most], wanted, strict=False):
        if one != other:
            break
        n += 1
    return n


def n_blocks_of(n_tokens: int) -> int:
    """Blocks that n_tokens tokens take."""
    return -(-n_tokens // KV_BLOCK)
