"""Which states are kept: never one that a step reads or that is in flight, and those that requests go on from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vkllm.engine.kept_states import KeptStates
from vkllm.engine.kvcache import KVCache


def prompt(states: KeptStates, start: int, end: int, rows: int = 512) -> None:
    """Runs tokens of a prompt in chunks."""
    for first in range(start, end, rows):
        n = min(rows, end - first)
        stored = states.store(first, n, is_prompt=True, is_end=first + n == end)
        assert n - 1 in stored and states.slot(first) not in stored.values()


def answer(states: KeptStates, start: int, n_tokens: int) -> None:
    for first in range(start, start + n_tokens):
        (slot,) = states.store(first, 1, is_prompt=False, is_end=False).values()
        newest = range(first + 1, max(first - 2, start - 1), -1)
        assert slot != states.slot(first) and states.usable(first + 1)[: len(newest)] == list(newest)


def test_without_states_a_sequence_goes_on_anywhere() -> None:
    states = KeptStates(0)
    assert states.store(5, 3, is_prompt=True, is_end=True) == {} and states.slot(5) is None
    assert states.usable(7) == [7] and not states.are_there


def test_a_prompt_keeps_its_end_a_place_shortly_before_it_and_its_chunks() -> None:
    states = KeptStates(16)
    prompt(states, 0, 1300)
    assert states.usable(10**6) == [1300, 1280, 1024, 512, 0]
    assert states.usable(1299) == [1280, 1024, 512, 0]
    states.cut(1280)
    assert states.usable(10**6) == [1280, 1024, 512, 0]
    assert KeptStates(6).store(0, 64, is_prompt=True, is_end=True) == {63: 0}, (
        "nothing shortly before so short a prompt"
    )


@pytest.mark.parametrize("n_slots", [6, 9, 16])
def test_a_long_answer_leaves_what_a_repeated_prompt_goes_on_from(n_slots: int) -> None:
    states = KeptStates(n_slots)
    prompt(states, 0, 3000)
    answer(states, 3000, 2000)
    kept = states.usable(3000)
    assert 2900 < kept[0] <= 3000 and len(states.usable(10**6)) == n_slots + 1
    assert all(5000 - n <= n_slots or n % 512 == 0 or n <= 3000 for n in states.usable(10**6))


def test_states_of_earlier_tokens_become_fewer_the_farther_back_they_are() -> None:
    states = KeptStates(8)
    prompt(states, 0, 100_000)
    kept = states.usable(10**6)
    back = [100_000 - n for n in kept[1:-1]]
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(back)), back


def test_slots_are_never_shared_whatever_runs() -> None:
    rng = np.random.default_rng(1)
    for n_slots in (6, 7, 16):
        states, end = KeptStates(n_slots), 0
        for _ in range(300):
            start = int(rng.choice(states.usable(end)))
            states.cut(start)
            n = int(rng.integers(1, 1500))
            prompt(states, start, start + n, int(rng.choice([8, 64, 512])))
            answer_length = int(rng.integers(0, 9))
            for first in range(start + n, start + n + answer_length):
                assert states.slot(first) not in states.store(first, 1, is_prompt=False, is_end=False).values()
            end = start + n + answer_length
            slots = [states.slot(n) for n in states.usable(end)[:-1]]
            assert len({*slots}) == len(slots) <= n_slots and states.slot(end) is not None


def test_where_two_prompts_differed_a_third_one_goes_on() -> None:
    cache = KVCache(64, 32, n_state_slots=6)

    def run(tokens: list[int]) -> int:
        n_cached = cache.reuse(tokens)
        while (start := len(cache.tokens)) < len(tokens):
            end = cache.chunk_end(min(start + 512, len(tokens)))
            cache.states.store(start, end - start, is_prompt=True, is_end=end == len(tokens))
            cache.tokens += tokens[start:end]
        return n_cached

    assert run([1] * 700 + [2] * 300) == 0
    assert run([1] * 700 + [3] * 300) == 512
    assert run([1] * 700 + [4] * 300) == 700
    assert run([1] * 700 + [4] * 290 + [5] * 10) == 956
    assert run([1] * 705 + [6]) == 700
    cache.reuse([9, 9])
    assert cache.states.usable(10**6) == [0]


def test_a_restored_sequence_goes_on_only_at_its_end() -> None:
    cache = KVCache(64, 32, n_state_slots=6)
    cache.restored(range(80))
    assert cache.states.slot(80) == 0 and cache.reuse([*range(80), -1]) == 80
    assert cache.reuse([*range(79), -1]) == 0
