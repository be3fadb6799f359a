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
