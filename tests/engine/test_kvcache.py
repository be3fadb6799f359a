"""Which tokens of an earlier request are used again."""

from vkllm.engine.kvcache import KVCache


def test_a_shared_beginning_is_kept_and_the_rest_forgotten() -> None:
    cache = KVCache(4, 32)
    cache.tokens = [1, 2, 3, 4, 5]
    assert cache.reuse([1, 2, 9, 4]) == 2 and cache.tokens == [1, 2]


def test_the_last_prompt_token_runs_again() -> None:
    cache = KVCache(4, 32)
    cache.tokens = [1, 2, 3, 4]
    assert cache.reuse([1, 2, 3]) == 2 and cache.tokens == [1, 2]
    assert cache.reuse([7]) == 0 and cache.tokens == []


def test_the_table_names_enough_blocks() -> None:
    cache = KVCache(4, 32)
    assert cache.block_table(32) == [0] and cache.block_table(33) == [0, 1] and len(cache.block_table(128)) == 4


def test_another_origin_finds_nothing() -> None:
    cache = KVCache(4, 32)
    cache.belong_to("a")
    cache.tokens += [1, 2, 3]
    cache.belong_to("a")
    assert cache.tokens == [1, 2, 3]
    cache.belong_to("b")
    assert cache.tokens == [] and cache.reuse([1, 2, 3, 4]) == 0


def with_window() -> KVCache:
    """A window of 10 tokens in rings of 64, of which 100 have been written."""
    cache = KVCache(8, 32, window=10, ring_tokens=64)
    cache.tokens = list(range(100))
    cache.block_table(100)
    return cache


def test_a_sequence_goes_on_where_its_window_is_still_in_the_ring() -> None:
    # position 36 is the oldest in the ring; at 45, a row sees positions 36 to 45
    assert with_window().reuse([*range(45), -1]) == 45
    assert with_window().reuse([*range(44), -1]) == 0
    assert with_window().reuse([*range(100), -1]) == 100


def test_what_was_written_and_dropped_still_counts_until_the_sequence_begins_anew() -> None:
    cache = with_window()
    assert cache.reuse([*range(60), -1]) == 60
    assert cache.reuse([*range(44), -1]) == 0, "positions 60 to 99 have replaced what 44 needs"
    cache.tokens = list(range(50))
    cache.block_table(50)
    assert cache.reuse([*range(5), -1]) == 5


def test_a_restored_sequence_can_be_continued_only_at_its_end() -> None:
    cache = with_window()
    cache.restored(range(80))
    assert cache.reuse([*range(80), -1]) == 80
    assert cache.reuse([*range(79), -1]) == 0


def test_the_beginning_is_whole_until_the_ring_is_full() -> None:
    cache = KVCache(8, 32, window=10, ring_tokens=64)
    cache.tokens = list(range(64))
    cache.block_table(64)
    assert cache.reuse([0, 1, -1]) == 2
