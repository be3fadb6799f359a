"""Blocks are never lost and never given away while somebody holds them; what is found has the tokens that it should."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vkllm.engine.blocks import BlockPool, key_behind, root_key

N_BLOCKS = 6
TOKENS = st.sampled_from([tuple([value] * 32) for value in (1, 2)] + [(1, 1, 1), (1, 2), (2,) * 31])


class Pool(RuleBasedStateMachine):
    """Sequences take, share and release blocks of a pool. written: what was last kept of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(N_BLOCKS)
        self.held: list[int] = []
        self.written: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self.keys = [root_key(""), root_key("other")]

    @precondition(lambda self: self.pool.n_free)
    @rule()
    def take(self) -> None:
        block = self.pool.take()
        assert block not in self.held and self.pool.n_holders(block) == 1
        self.held.append(block)
        self.written.pop(block, None)

    @precondition(lambda self: self.held)
    @rule(i=st.integers(0, 99), before=st.integers(0, 99), token_ids=TOKENS)
    def keep(self, i: int, before: int, token_ids: tuple[int, ...]) -> None:
        block, before_key = self.held[i % len(self.held)], self.keys[before % len(self.keys)]
        key = key_behind(before_key, token_ids) if len(token_ids) == 32 else None
        is_new = block not in self.written and (key is None or self.pool.full(key) is None)
        self.pool.keep(block, before_key, token_ids, key)
        if is_new:
            self.written[block] = before_key, token_ids
        if key is not None and key not in self.keys:
            self.keys.append(key)

    @rule(before=st.integers(0, 99), token_ids=TOKENS)
    def share(self, before: int, token_ids: tuple[int, ...]) -> None:
        before_key = self.keys[before % len(self.keys)]
        block = self.pool.full(key_behind(before_key, token_ids)) if len(token_ids) == 32 else None
        if block is not None:
            assert self.written[block] == (before_key, token_ids)
            self.pool.hold(block)
            self.held.append(block)

    @rule(before=st.integers(0, 99), token_ids=TOKENS)
    def take_over(self, before: int, token_ids: tuple[int, ...]) -> None:
        before_key = self.keys[before % len(self.keys)]
        block, n = self.pool.longest_match(before_key, token_ids, 31)
        best = max((same(found, token_ids) for b, found in self.free_behind(before_key)), default=0)
        assert n == min(best, 31)
        if n:
            assert block not in self.held and self.written[block][0] == before_key
            self.pool.take_over(block)
            self.held.append(block)
            del self.written[block]

    @precondition(lambda self: self.held)
    @rule(i=st.integers(0, 99))
    def release(self, i: int) -> None:
        self.pool.release([self.held.pop(i % len(self.held))])

    def free_behind(self, before: bytes) -> list[tuple[int, tuple[int, ...]]]:
        return [(b, t) for b, (key, t) in self.written.items() if key == before and b not in self.held]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.pool.n_free + len(set(self.held)) == N_BLOCKS
        assert all(self.pool.n_holders(block) == self.held.count(block) for block in range(N_BLOCKS))


def same(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return n


Pool.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


def test_the_block_unused_for_longest_is_given_away_first_and_empty_ones_before_it() -> None:
    pool, root = BlockPool(4), root_key("")
    blocks = [pool.take() for _ in range(3)]
    for i, block in enumerate(blocks):
        pool.keep(block, root, [i] * 32, key_behind(root, [i] * 32))
    pool.release([blocks[1], blocks[0], blocks[2]])
    found = pool.full(key_behind(root, [1] * 32))
    assert found == blocks[1]
    pool.hold(found)
    pool.release([found])  # used again, so it is the newest now
    assert pool.take() not in blocks
    assert [pool.take() for _ in range(3)] == [blocks[0], blocks[2], blocks[1]]
    assert pool.full(key_behind(root, [1] * 32)) is None


def test_tokens_that_would_be_lost_behind_a_block_are_counted() -> None:
    pool, keys = BlockPool(4), [root_key("")]
    blocks = [pool.take() for _ in range(3)]
    for block in blocks[:2]:
        keys.append(key_behind(keys[-1], [block] * 32))
        pool.keep(block, keys[-2], [block] * 32, keys[-1])
    pool.keep(blocks[2], keys[2], [5] * 7, None)
    assert [pool.n_lost(block, 1000) for block in blocks] == [39, 7, 0]
    assert pool.n_lost(blocks[0], 10) >= 32
