"""How much of a sequence's beginning is cached, and what a running sequence holds: blocks, blocks of windows, states.

All that a sequence needs for its next token must be there: the blocks of all its tokens; of layers that see only the
last `window` tokens, the blocks of these; of layers with states, the states behind the last token. Knows token ids and
numbers of blocks and slots, nothing of devices or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vkllm.engine.blocks import BlockPool, Key, key_behind, n_blocks_of, root_key
from vkllm.engine.state_slots import Chain, StateSlots
from vkllm.model.memory.kernel_sizes import KV_BLOCK

FEWEST_SHARED = 8
"""A chunk of a prompt ends where the prompt before it went on otherwise, unless there are fewer tokens up to there."""

LOST_EACH = 8
"""A block whose last tokens are others is taken over unless more than so many cached tokens for each one that this
saves could not be found any more."""


@dataclass(eq=False)
class Held:
    """What a running sequence holds. n_cached: tokens that were there when it began.

    keys: keys[i] is the key before block i, as far as tokens are known. blocks: block i holds the tokens from
    KV_BLOCK * i on; window_blocks: the same for layers with a window, 0 where the window has passed.
    """

    n_cached: int
    keys: list[Key]
    chain: Chain
    blocks: list[int] = field(default_factory=list)
    window_blocks: list[int] = field(default_factory=list)
    first_window_block: int = 0
    share_at: int = 0


class PrefixCache:
    """n_blocks blocks, n_window_blocks blocks of the layers that see only the last `window` tokens (0: there are none),
    and n_state_slots slots for the states of layers that have one. window: of these layers, the longest."""

    def __init__(self, n_blocks: int, n_window_blocks: int = 0, window: int = 0, n_state_slots: int = 0) -> None:
        self.pool = BlockPool(n_blocks)
        self.windows = BlockPool(n_window_blocks if window else 0)
        self.states = StateSlots(n_state_slots)
        self.window = window

    def begin(self, origin: str, token_ids: Sequence[int], most: int | None = None) -> Held:
        """Holds the longest beginning of a sequence that is cached, of at most `most` tokens.

        By default all but the last one: what comes behind that is wanted."""
        most = len(token_ids) - 1 if most is None else most
        keys, blocks = [root_key(origin)], []
        while (end := KV_BLOCK * len(keys)) <= most:
            key = key_behind(keys[-1], token_ids[end - KV_BLOCK : end])
            if (block := self.pool.full(key)) is None:
                break
            keys.append(key)
            blocks.append(block)
        states = self.states.found(keys, token_ids, most)
        last, n_last = self._last_block(self.pool, keys, token_ids, most)
        window_last, n_window_last = self._last_block(self.windows, keys, token_ids, most)
        n_full = KV_BLOCK * len(blocks)
        for n in self._places(n_full, n_last, states):
            n_behind, in_full = n % KV_BLOCK, n < n_full
            if n_behind:
                # a state in the middle of a full block: its tokens are the same, but the block has to be written
                part, n_part = (blocks[n // KV_BLOCK], KV_BLOCK) if in_full else (last, n_last)
                gain = n - max([0, *(m for m in states if m < n)]) if self.states.are_there else n_behind
                is_end = most < (n // KV_BLOCK + 1) * KV_BLOCK
                if n_part < n_behind or not self._may_take_over(part, gain, is_end=is_end):
                    continue
                if self.window and (in_full or n_window_last < n_behind):
                    continue
            else:
                part = -1
            if not self._has_window(keys, n):
                continue
            return self._hold(keys, blocks, n, part, window_last, states)
        raise AssertionError("a sequence can always begin with nothing")

    def can_grow(self, held: Held, start: int, n_tokens: int) -> bool:
        """Whether there is room for a step from `start` on that makes a sequence n_tokens long."""
        needed = n_blocks_of(n_tokens)
        if needed - len(held.blocks) > self.pool.n_free or (self.states.are_there and not self.states.n_available):
            return False
        if not self.window:
            return True
        passed = self._passed(held, start)
        n_kept = sum(self.windows.n_holders(block) == 1 for block in passed)
        return needed - len(held.window_blocks) <= self.windows.n_free + n_kept

    def has_empty_room(self, n_tokens: int) -> bool:
        """Whether a sequence of so many tokens takes the place of nothing that is cached."""
        n = n_blocks_of(n_tokens)
        if self.states.are_there and self.pool.n_empty < self.pool.n_free:  # a state goes with each cached beginning
            return False
        return n <= self.pool.n_empty and (not self.window or n <= self.windows.n_empty)

    def grow(self, held: Held, start: int, n_tokens: int) -> None:
        """Takes what a step from `start` on needs; `can_grow` must be true."""
        while len(held.blocks) < n_blocks_of(n_tokens):
            held.blocks.append(self.pool.take())
        if self.window:
            passed = self._passed(held, start)
            self.windows.release(passed)
            for i in range(held.first_window_block, held.first_window_block + len(passed)):
                held.window_blocks[i] = 0
            held.first_window_block += len(passed)
            while len(held.window_blocks) < len(held.blocks):
                held.window_blocks.append(self.windows.take())

    def can_restore(self, held: Held, n_tokens: int) -> bool:
        """Whether there is room for a sequence that comes from a file."""
        n_window = n_blocks_of(n_tokens) - self._first_seen(n_tokens) if self.window else 0
        has_slot = not self.states.are_there or self.states.n_available > 0
        return has_slot and n_blocks_of(n_tokens) <= self.pool.n_free and n_window <= self.windows.n_free

    def restore(self, held: Held, n_tokens: int) -> None:
        """Takes what a sequence needs that comes from a file; `can_restore` must be true."""
        if self.window:
            held.first_window_block = self._first_seen(n_tokens)
            held.window_blocks = [0] * held.first_window_block
        self.grow(held, 0, n_tokens)
        self.states.store(held.chain, 0, n_tokens, is_prompt=True, needed_from=0)

    def chunk_end(self, held: Held, start: int, end: int) -> int:
        """Where the next chunk of a prompt ends, at most at `end`: also where the last prompt went on otherwise,
        because the next one may too, and then needs a state."""
        if start + FEWEST_SHARED <= held.share_at < end:
            held.chain.shared = held.share_at
            return held.share_at
        return end

    def known(self, held: Held, token_ids: Sequence[int], n_run: int) -> None:
        """The first n_run of a sequence's tokens have been run, or will be before anything else: others may use what
        is cached of them."""
        n_known = min(len(token_ids), n_run)
        while (end := KV_BLOCK * len(held.keys)) <= n_known:
            block_tokens = token_ids[end - KV_BLOCK : end]
            held.keys.append(key_behind(held.keys[-1], block_tokens))
            i = len(held.keys) - 2
            self.pool.keep(held.blocks[i], held.keys[i], block_tokens, held.keys[i + 1])
            if self.window and i >= held.first_window_block:
                self.windows.keep(held.window_blocks[i], held.keys[i], block_tokens, held.keys[i + 1])
        if self.states.are_there:
            self.states.known(held.chain, held.keys, token_ids[:n_known])

    def cut(self, held: Held, n_tokens: int) -> None:
        """A sequence goes on behind n_tokens tokens, maybe fewer than its last step ran; known ones are not cut."""
        self.states.cut(held.chain, n_tokens)

    def end(self, held: Held, token_ids: Sequence[int], *, is_kept: bool = True) -> None:
        """A sequence has ended, or gives back what it holds. token_ids: those whose keys and values are cached.
        is_kept: others may use them."""
        if is_kept:
            self.known(held, token_ids, len(token_ids))
            i = len(held.keys) - 1
            tail = token_ids[KV_BLOCK * i :]
            if tail:
                self.pool.keep(held.blocks[i], held.keys[i], tail, None)
                if self.window and i >= held.first_window_block:
                    self.windows.keep(held.window_blocks[i], held.keys[i], tail, None)
        # what comes last is given away first: what comes before it can be used without it
        self.pool.release(reversed(held.blocks))
        self.windows.release(reversed(held.window_blocks[held.first_window_block :]))
        self.states.end(held.chain, held.keys, token_ids if is_kept else ())

    def _places(self, n_full: int, n_last: int, states: Iterable[int]) -> list[int]:
        """Numbers of tokens that a sequence may go on behind, the largest first."""
        if self.states.are_there:
            return [*sorted(states, reverse=True), 0]
        return [n_full + n_last, *range(n_full, -1, -KV_BLOCK)]

    def _last_block(self, pool: BlockPool, keys: Sequence[Key], token_ids: Sequence[int], most: int) -> tuple[int, int]:
        """The block of a pool that goes on like these tokens behind those that are in full blocks, and how far."""
        start = KV_BLOCK * (len(keys) - 1)
        return pool.longest_match(keys[-1], token_ids[start : start + KV_BLOCK], min(most - start, KV_BLOCK - 1))

    def _may_take_over(self, block: int, gain: int, *, is_end: bool) -> bool:
        """Whether a sequence may write into a block behind the tokens that it shares with it."""
        if self.pool.n_holders(block):
            return False
        return is_end or self.pool.n_lost(block, LOST_EACH * gain) <= LOST_EACH * gain

    def _first_seen(self, n_tokens: int) -> int:
        """The first block that layers with a window need behind n_tokens tokens."""
        return max(n_tokens - self.window + 1, 0) // KV_BLOCK

    def _has_window(self, keys: Sequence[Key], n_tokens: int) -> bool:
        """Whether the full blocks of the window before that place are cached."""
        blocks = range(self._first_seen(n_tokens), n_tokens // KV_BLOCK) if self.window else ()
        return all(self.windows.full(keys[i + 1]) is not None for i in blocks)

    def _hold(
        self, keys: list[Key], blocks: list[int], n: int, part: int, window_part: int, states: dict[int, int]
    ) -> Held:
        n_full = n // KV_BLOCK
        held = Held(n, keys[: n_full + 1], self.states.begin(n, states), blocks[:n_full])
        for block in held.blocks:
            self.pool.hold(block)
        if self.states.are_there:
            held.share_at = KV_BLOCK * len(blocks)
        if self.window:
            held.first_window_block = min(self._first_seen(n), n_full)
            held.window_blocks = [0] * held.first_window_block
            for i in range(held.first_window_block, n_full):
                window_block = self.windows.full(keys[i + 1])
                assert window_block is not None
                self.windows.hold(window_block)
                held.window_blocks.append(window_block)
        if n % KV_BLOCK:
            self.pool.take_over(part)
            held.blocks.append(part)
            if self.window:
                self.windows.take_over(window_part)
                held.window_blocks.append(window_part)
        return held

    def _passed(self, held: Held, start: int) -> list[int]:
        """Blocks of windows that no row from `start` on sees."""
        end = min(self._first_seen(start), len(held.window_blocks))
        return held.window_blocks[held.first_window_block : end]
