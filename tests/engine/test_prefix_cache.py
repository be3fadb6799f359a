"""How much of a prompt is found, to the token where one sequence goes on, to the block where texts part."""

from __future__ import annotations

import pytest

from vkllm.engine.prefix_cache import Held, PrefixCache

LONG = list(range(1000, 1200))


def run(cache: PrefixCache, tokens: list[int], n_run: int | None = None, origin: str = "", *, end: bool = True) -> Held:
    """Runs a sequence; of its tokens, the last is not run."""
    n_run = len(tokens) - 1 if n_run is None else n_run
    held = cache.begin(origin, tokens)
    assert cache.can_grow(held, held.n_cached, n_run)
    cache.grow(held, held.n_cached, n_run)
    if cache.states.are_there and n_run > held.n_cached:
        cache.states.store(
            held.chain, held.n_cached, n_run - held.n_cached, is_prompt=True, is_end=True, needed_from=held.n_cached
        )
    cache.known(held, tokens, n_run)
    if end:
        cache.end(held, tokens[:n_run])
    return held


def n_cached(cache: PrefixCache, tokens: list[int], origin: str = "") -> int:
    held = cache.begin(origin, tokens)
    cache.end(held, tokens[: held.n_cached])
    return held.n_cached


def test_what_goes_on_from_a_sequence_goes_on_at_its_last_token() -> None:
    cache = PrefixCache(20)
    run(cache, LONG[:78])
    assert n_cached(cache, [*LONG[:78], 1, 2, 3]) == 77
    assert n_cached(cache, LONG[:78]) == 77, "the last token is run again"
    assert n_cached(cache, [*LONG[:50], 1]) == 50, "little is lost behind"
    assert n_cached(cache, LONG[:78], "other") == 0
    assert n_cached(cache, [1, *LONG[1:78]]) == 0


def test_equal_beginnings_are_stored_once_and_held_by_both() -> None:
    cache = PrefixCache(20)
    first = run(cache, LONG[:100], end=False)
    second = cache.begin("", [*LONG[:90], 1])
    assert second.n_cached == 64 and second.blocks == first.blocks[:2], "the third block is being written"
    cache.grow(second, 64, 90)
    assert second.blocks[2] not in first.blocks
    cache.end(first, LONG[:99])
    cache.end(second, LONG[:90])
    assert cache.pool.n_free == 20
    assert n_cached(cache, [*LONG[:100], 1]) == 99


def test_a_text_of_another_loses_nothing_where_little_is_shared() -> None:
    cache = PrefixCache(20)
    run(cache, LONG)
    assert n_cached(cache, LONG[:35] + [1] * 50) == 32, "three more tokens would cost the other one 165"
    assert n_cached(cache, LONG) == 199
    assert n_cached(cache, LONG[:36]) == 35, "the same prompt again, without its answer"


def test_blocks_of_a_window_are_given_back_when_it_has_passed() -> None:
    cache = PrefixCache(20, n_window_blocks=20, window=40)
    held = run(cache, LONG, end=False)
    cache.grow(held, 199, 200)
    assert held.first_window_block == 5 and cache.windows.n_free == 18
    cache.end(held, LONG)
    assert cache.windows.n_free == 20
    assert n_cached(cache, LONG[:97]) == 96, "blocks that nobody holds remain"
    assert n_cached(cache, [*LONG, 1]) == 200
    for _ in range(18):
        cache.windows.take()
    assert n_cached(cache, [*LONG, 1]) == 200
    assert n_cached(cache, LONG[:101]) == 0, "its window is gone"


@pytest.mark.parametrize("window", [1, 31, 32, 33, 64])
def test_the_window_is_needed_up_to_the_token_before(window: int) -> None:
    cache = PrefixCache(20, 20, window)
    run(cache, LONG[:129])
    held = cache.begin("", LONG[:129])
    assert held.n_cached == 128
    assert held.first_window_block == (128 - window + 1) // 32


def test_a_sequence_with_states_goes_on_from_one() -> None:
    cache = PrefixCache(40, n_state_slots=8)
    run(cache, LONG)
    assert cache.states.n_available == 8
    assert n_cached(cache, [*LONG, 1]) == 199
    assert n_cached(cache, LONG[:195] + [1] * 9) == 192, "shortly before its end"
    assert n_cached(cache, LONG[:191] + [1] * 9) == 0
    held = cache.begin("", LONG[:140] + [1] * 20)
    assert held.share_at == 128 and cache.chunk_end(held, 0, 160) == 128, "here two texts part"
    assert cache.chunk_end(held, 128, 160) == 160 and cache.chunk_end(held, 0, 100) == 100


def test_nothing_is_kept_of_what_is_not_to_be_kept() -> None:
    cache = PrefixCache(20)
    held = cache.begin("", LONG)
    cache.grow(held, 0, 200)
    cache.end(held, LONG, is_kept=False)
    assert n_cached(cache, LONG) == 0 and cache.pool.n_free == 20
