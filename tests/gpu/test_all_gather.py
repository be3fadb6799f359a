"""all_gather, and the choice of tokens by ranks that each have the logits of a part of the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from exchange_case import hand_over, run_at_once
from kernel_case import filled, poisoned, step_buffer, words
from test_results import N_SEQUENCES, N_SLOTS, N_VOCAB, random_result

from vkllm.engine.sampler import masked, pick
from vkllm.errors import DeviceTimeout
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.exchange import Exchange, VocabularyPart, placed
from vkllm.gpu.program.kernels import KERNELS, TOP_K
from vkllm.gpu.program.results import Gathering, Kinds, Results
from vkllm.gpu.program.step import Part, StepSlots
from vkllm.model.memory.exchange_memory import Exchanged

pytestmark = pytest.mark.gpu
NOTHING = (0, 0xFFFFFFFF)
FIRST_TOKENS, N_PARTS = (0, 4096, 6144), (4096, 2048, 300)  # three ranks with 2, 1 and 1 lists


def lists_of(rank: int, n_results: int) -> np.ndarray:
    """What top_logits leaves (n_results, lists, TOP_K, 2): keys and tokens of this part, past its end nothing."""
    rng, n_lists = np.random.default_rng(rank), -(-N_PARTS[rank] // 2048)
    tokens = rng.integers(0, 2048, (n_results, n_lists, TOP_K)) + 2048 * np.arange(n_lists)[:, None]
    keys = rng.integers(1, 2**32, tokens.shape) * (tokens < N_PARTS[rank])
    return np.stack([keys, tokens], axis=-1).astype(np.uint32)


def padded(lists: np.ndarray, rank: int) -> np.ndarray:
    """As a rank hands them over (n_results, 2 lists, TOP_K, 2): tokens of the whole vocabulary, or nothing."""
    full = np.full((len(lists), 2, TOP_K, 2), NOTHING, np.uint32)
    is_there = lists[..., 1] < N_PARTS[rank]
    whole = lists + np.array([0, FIRST_TOKENS[rank]], np.uint32)
    full[:, : lists.shape[1]] = np.where(is_there[..., None], whole, np.array(NOTHING, np.uint32))
    return full


@pytest.mark.parametrize(("own", "n_results", "width"), [(0, 1, 1), (1, 3, 4), (2, 2, 2)])
def test_every_rank_gets_the_lists_of_all_ranks(device: Device, own: int, n_results: int, width: int) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    exchange = Exchange([device] * 3, Exchanged(width * TOP_K, width * TOP_K), polls_in_place=20, most_groups=2)
    lists = [lists_of(rank, n_results) for rank in range(3)]
    n_room = width * TOP_K  # two lists of 32 fours
    for rank in {0, 1, 2} - {own}:
        fours = padded(lists[rank], rank).reshape(-1, 4)
        hand_over(exchange, rank, 6, fours, n_room, exchange.layout.n_copies(width))
    largest, gathered = filled(device, lists[own]), poisoned(device, width * 3 * 2 * TOP_K * 2)
    step = step_buffer(device, range(width), range(width), [0], n_results)
    assert step.words is not None
    step.words[5] = 4
    part = VocabularyPart(6444, FIRST_TOKENS[own], N_PARTS[own], 4096)
    dispatch = exchange.ranks[own].all_gather(largest, gathered, step, part, width).at(2, 0)
    assert dispatch.kernel is KERNELS["all_gather"]
    device.run([dispatch])
    exchange.ranks[own].check()
    got = words(gathered, (width, 3, 2, TOP_K, 2))
    for rank in range(3):
        np.testing.assert_array_equal(got[:n_results, rank], padded(lists[rank], rank))
    assert (got[n_results:] == 0x7FC00000).all()
    device.run([dispatch.at(3, 0)])  # the others do not come
    with pytest.raises(DeviceTimeout, match=r"in vain for .*\(rank [01]\) in exchange 7"):
        exchange.ranks[own].check()


def test_ranks_choose_the_tokens_of_one_device(device: Device) -> None:
    """Drawn, greedy, masked results and logits for the host, ties included, with the vocabulary in two parts."""
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    second = Device(str(device.info.index))
    devices, cuts = (device, second), (0, 2048, N_VOCAB)
    exchange = Exchange(devices, Exchanged(32 * TOP_K, 32 * TOP_K))
    rng = np.random.default_rng(7)
    logits = np.round(rng.normal(0, 3, (32, N_VOCAB)), 1).astype(np.float32)
    logits[:, 2050] = logits[:, 3] = logits.max() + 1  # both parts have a largest one
    slots, results, chain, own_logits = [], [], [], []
    for rank, one in enumerate(devices):
        part = VocabularyPart(N_VOCAB, cuts[rank], cuts[rank + 1] - cuts[rank], 2048)
        own = filled(one, logits[:, cuts[rank] : cuts[rank + 1]])
        assert own.words is not None
        own_logits.append((own.words, own.words.copy()))
        slots.append(StepSlots(one, N_SLOTS, 1))
        gathering = Gathering(exchange.ranks[rank], part)
        results.append(Results(one, own, part.n_part, N_SEQUENCES, N_SLOTS, slots[rank].on_device, gathering))
        chain.append((one.buffer(8), one.buffer(1)))
    n_exchanges = 0
    try:
        for n_results, letters in ((1, "g"), (1, "dm"), (2, "l"), (5, "dgm"), (13, "dglm")):
            made = [random_result(rng, letters) for _ in range(n_results)]
            kinds = Kinds.of(made)
            assert kinds is not None
            places, recordings = [], []
            for rank, one in enumerate(devices):
                now, was = own_logits[rank]
                now[:] = was  # masks were written into them
                places.append(results[rank].take(1, made))
                parts = [Part(s, [1], 0, [], results=[result]) for s, result in enumerate(made)]
                slots[rank].write(1, parts, n_exchanges)
                results[rank].write_masks(places[rank])
                begin = one.dispatch(
                    KERNELS["begin_step"],
                    (slots[rank].buffer, results[rank].next_token, slots[rank].on_device, *chain[rank]),
                    constants=(64, 8),
                    push=(slots[rank].slot_words,),
                )
                (dispatches,) = placed([begin, *results[rank].dispatches(kinds, 64)], exchange.half_lines)
                recordings.append(one.record(dispatches))
            run_at_once(devices, recordings)
            assert results[0].n_exchanges(kinds) == (letters != "l")
            n_exchanges += results[0].n_exchanges(kinds)
            rows = [row if r.mask is None else masked(row, r.mask) for row, r in zip(logits, made, strict=False)]
            chosen = [
                -1 if r.wants_logits else int(np.argmax(row)) if r.draw is None else pick(row, r.draw)
                for row, r in zip(rows, made, strict=True)
            ]
            for rank, one_rank in enumerate(results):
                exchange.ranks[rank].check()
                assert one_rank.tokens(places[rank]) == chosen, letters
                for i, result in enumerate(made):
                    if result.wants_logits:
                        expected = logits[i, cuts[rank] : cuts[rank + 1]]
                        np.testing.assert_array_equal(one_rank.logits(places[rank], i), expected)
    finally:
        second.close()
