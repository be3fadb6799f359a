"""all_reduce: sums over ranks, exchanged through host memory, against numpy; and how it ends if a rank is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from exchange_case import FAILED_MARK, Rank, added_up, block_of, drawn, fours_of, hand_over, run_at_once
from kernel_case import floats

from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.layer import Layer
from vkllm.gpu.program.exchange import Exchange, ExchangeDispatch, placed
from vkllm.gpu.program.kernels import KERNELS
from vkllm.model.memory.exchange_memory import MOST_BYTES, N_LINES, Exchanged, sum_fours

pytestmark = pytest.mark.gpu
COLUMNS, LOST = 96, -4


@pytest.fixture(scope="module")
def others(device: Device) -> Iterator[list[Device]]:
    """The same physical device, opened three times more."""
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    opened = [Device(str(device.info.index)) for _ in range(3)]
    yield opened
    for one in opened:
        one.close()


def alone(device: Device, others: list[Device], n_ranks: int, **options: int) -> Exchange:
    """An exchange whose ranks all are one device; a test plays all but one."""
    return Exchange(
        [device] * n_ranks, Exchanged(64 * COLUMNS // 4, 64 * COLUMNS // 4), **{"polls_in_place": 50, **options}
    )


@pytest.mark.parametrize(
    "n_ranks, own, n_rows, width, n_groups, polls_in_place, n_lines, is_scattered",
    [
        (2, 0, 1, 1, 1, 50, 1, False),
        (3, 1, 32, 32, 4, 0, 2, False),
        (4, 3, 2, 4, 3, 50, 3, False),
        (8, 5, 5, 8, 2, 0, 4, False),
        (3, 2, 31, 32, 4, 0, 2, True),
        (4, 0, 64, 64, 3, 50, 1, True),
        (8, 7, 1, 8, 3, 0, 4, True),
    ],
)
def test_the_sum_of_all_parts_has_the_bits_of_numpy(
    device: Device,
    others: list[Device],
    n_ranks: int,
    own: int,
    n_rows: int,
    width: int,
    n_groups: int,
    polls_in_place: int,
    n_lines: int,
    is_scattered: bool,
) -> None:
    """Some rows of a wider recording, in several workgroups, polled as on CPUs and as on GPUs, in one phase and in two;
    in the last case, the last pieces are empty."""
    exchange = alone(
        device,
        others,
        n_ranks,
        polls_in_place=polls_in_place,
        n_lines=n_lines,
        most_groups=n_groups,
        saved_fours=0 if is_scattered else 10**6,
    )
    parts, n_copies = drawn(n_ranks, n_rows, COLUMNS), exchange.layout.n_copies(width)
    totals = added_up(parts).view(np.uint32).reshape(-1, 4) if is_scattered else None
    add = drawn(1, n_rows, COLUMNS, seed=2)[0] if n_ranks % 2 == 0 else None
    rank = Rank(device, parts[own], add, first_exchange=2**32 - 2)
    for number in (1, 2, 3):  # past the largest number
        for other in {*range(n_ranks)} - {own}:
            fours = parts[other].view(np.uint32).reshape(-1, 4)
            n_exchange = (2**32 - 2 + number) % 2**32
            hand_over(exchange, other, n_exchange, fours, width * COLUMNS // 4, n_copies, totals=totals)
        dispatch = exchange.ranks[own].all_reduce(rank.part, rank.y, rank.step, COLUMNS, width, rank.add).at(number, 0)
        assert dispatch.kernel is KERNELS["all_reduce"] and dispatch.groups[0] == exchange.layout.n_groups(
            width * COLUMNS // 4
        )
        device.run([dispatch])
        exchange.ranks[own].check()
        np.testing.assert_array_equal(floats(rank.y, rank.shape), added_up(parts, add))
        assert rank.y.words is not None
        rank.y.words[:] = 0


@pytest.mark.parametrize("polls_in_place, n_ranks", [(0, 2), (50, 2), (0, 3)])
def test_numbers_that_come_after_their_flag_are_read_from_the_second_place(
    device: Device, others: list[Device], polls_in_place: int, n_ranks: int
) -> None:
    """With three ranks, those of the second phase."""
    exchange = alone(device, others, n_ranks, n_lines=3, polls_in_place=polls_in_place, saved_fours=0)
    parts, add = drawn(n_ranks, 2, COLUMNS), drawn(1, 2, COLUMNS, seed=2)[0]
    totals = added_up(parts).view(np.uint32).reshape(-1, 4) if n_ranks > 2 else None
    rank = Rank(device, parts[0], add)
    for n_damaged in (1, 2):
        for other in range(1, n_ranks):
            fours, n = parts[other].view(np.uint32).reshape(-1, 4), n_damaged if other == 1 else 0
            hand_over(exchange, other, n_damaged, fours, 2 * COLUMNS // 4, exchange.layout.n_copies(2), n, totals)
        dispatch = exchange.ranks[0].all_reduce(rank.part, rank.y, rank.step, COLUMNS, 2, rank.add)
        device.run([dispatch.at(n_damaged, 0)])
        if n_damaged == 1:
            exchange.ranks[0].check()
            assert exchange.ranks[0].n_retries() == 1
            np.testing.assert_array_equal(floats(rank.y, rank.shape), added_up(parts, add))
    with pytest.raises(DeviceError, match=r"\(rank 0\) read other numbers than .*\(rank 1\) had written in exchange 2"):
        exchange.ranks[0].check()


@pytest.mark.parametrize("polls_in_place, n_lines", [(50, 1), (0, 4)])
def test_a_rank_that_does_not_come_is_named_and_later_exchanges_end_at_once(
    device: Device, others: list[Device], polls_in_place: int, n_lines: int
) -> None:
    exchange = alone(device, others, 4, polls_in_place=polls_in_place, n_lines=n_lines)
    parts = drawn(4, 1, COLUMNS)
    rank, n_fours = Rank(device, parts[1]), COLUMNS // 4
    for other in (0, 3):
        hand_over(exchange, other, 1, parts[other].view(np.uint32).reshape(-1, 4), n_fours, exchange.layout.n_copies(1))
    reduced = exchange.ranks[1].all_reduce(rank.part, rank.y, rank.step, COLUMNS, 1)
    device.run([reduced.at(number, 0) for number in (1, 2)])
    for _ in range(2):
        with pytest.raises(
            DeviceTimeout, match=r"\(rank 1\) waited in vain for .*\(rank 2\) in exchange 1: .*-sm layer"
        ):
            exchange.ranks[1].check()
    # the others are told in place of the flag of the next exchange, with the rank that was missing
    line, _ = block_of(exchange, 1, 0, 2, n_fours, exchange.layout.n_copies(1))
    told = exchange.memory.words.reshape(-1, 32)[line : line + n_lines, :4]
    np.testing.assert_array_equal(told, [[2, 3, 2**32 - 3, 3 ^ FAILED_MARK]] * n_lines)
    again = Rank(device, parts[0])
    device.run([exchange.ranks[0].all_reduce(again.part, again.y, again.step, COLUMNS, 1).at(2, 0)])
    with pytest.raises(DeviceTimeout, match=r"\(rank 0\) waited in vain for .*\(rank 2\) in exchange 2"):
        exchange.ranks[0].check()


@pytest.mark.parametrize(
    "n_ranks, own, n_rows, n_groups, n_lines, is_scattered, adds",
    [
        (2, 1, 33, 3, 1, False, True),
        (2, 0, 64, 1, 3, False, False),
        (8, 3, 40, 4, 2, False, True),
        (3, 2, 33, 4, 2, True, True),
        (3, 0, 64, 2, 1, True, False),
        (8, 7, 34, 3, 1, True, True),
    ],
)
def test_rows_of_prompts_are_packed_and_their_sum_has_the_bits_of_numpy(
    device: Device,
    others: list[Device],
    n_ranks: int,
    own: int,
    n_rows: int,
    n_groups: int,
    n_lines: int,
    is_scattered: bool,
    adds: bool,
) -> None:
    """Added to the residual stream in its place. The rank's own part is rounded like the others'; of the last numbers
    some are infinite, which none may hide."""
    saved, polls = 0 if is_scattered else 10**6, 50 if n_lines == 1 else 0
    layout = {"n_lines": n_lines, "most_groups": n_groups, "saved_fours": saved, "wide_copies": 1}
    exchange = alone(device, others, n_ranks, polls_in_place=polls, **layout)
    parts = drawn(n_ranks, n_rows, COLUMNS)
    parts[0, -1, -1] = np.inf
    x = drawn(1, n_rows, COLUMNS, seed=2)[0]
    totals = added_up(parts, packs=True)
    rank, n_room = Rank(device, parts[own], x), sum_fours(64, COLUMNS)
    assert n_room == 64 * COLUMNS // 8 and exchange.layout.is_scattered(n_room) == is_scattered
    for other in {*range(n_ranks)} - {own}:
        handed = fours_of(parts[other], packs=True)
        summed = fours_of(totals, packs=True) if is_scattered else None
        hand_over(exchange, other, 1, handed, n_room, exchange.layout.n_copies(64), totals=summed)
    y = rank.add if adds else rank.y
    assert y is not None
    made = exchange.ranks[own].all_reduce(rank.part, y, rank.step, COLUMNS, 64, y if adds else None, packs=True)
    device.run([made.at(1, 0)])
    exchange.ranks[own].check()
    wanted = added_up(parts, x if adds else None, packs=True, is_scattered=is_scattered)
    np.testing.assert_array_equal(floats(y, rank.shape), wanted)
    assert np.isnan(wanted[-1, -8:]).all() and np.isfinite(wanted.reshape(-1)[:-8]).all()


def test_the_memory_has_room_for_the_largest_exchange_and_for_steps_of_few_rows(
    device: Device, others: list[Device]
) -> None:
    """With 68 lines a flag, as on GPUs, all exchanges of a step of 8 rows are one submit. Rows of prompts take half."""
    assert Exchanged.of(92, 0, 1).most_fours == 512 * 92 // 4, "not whole eights"
    for d_model, n_layers, most_lists in ((576, 30, 12), (2048, 32, 16)):
        most = Exchanged.of(d_model, most_lists, 2 * n_layers + 1)
        wide, narrow = most.most_fours, most.narrow_fours
        assert (wide, narrow) == (64 * d_model, max(8 * d_model, 1024 * most_lists))
        exchange = Exchange([device] * 2, most, n_lines=N_LINES, most_groups=32)
        assert exchange.layout.lines(wide, 1) <= exchange.half_lines
        assert exchange.layout.lines(narrow, 2) <= exchange.half_lines
        assert exchange.half_lines >= (n_layers + 1) * exchange.layout.lines(2 * d_model, 2)
        assert exchange.memory.n_bytes <= MOST_BYTES


def test_no_line_is_read_twice_in_a_submit(device: Device, others: list[Device]) -> None:
    """Sums and candidates of a step get numbers and lines in order, odd and even ones in halves of their own."""
    exchange = Exchange([device] * 2, Exchanged(64 * COLUMNS // 4, COLUMNS // 4, 4), n_lines=4, most_groups=2)
    rank, made = Rank(device, drawn(2, 40, COLUMNS)[0]), exchange.ranks[0]
    one, wide = (made.all_reduce(rank.part, rank.y, rank.step, COLUMNS, width) for width in (1, 40))
    other = device.dispatch(KERNELS["copy_words"], (rank.part, rank.y), constants=(64,), groups=(1, 1), push=(4, 0, 0))
    n_wide = 2 * (exchange.half_lines // wide.n_lines)
    pieces = placed([other, *[wide] * n_wide, other, wide, one, one, one], exchange.half_lines, first_number=7)
    assert [len(piece) for piece in pieces] == [n_wide + 2, 4]
    number = 7
    for piece in pieces:
        taken: list[set[int]] = [set(), set()]
        for dispatch in piece:
            if isinstance(dispatch, ExchangeDispatch):
                its_number, first, *_ = dispatch.push.tolist()
                lines = set(range(first, first + dispatch.n_lines))
                assert its_number == number and max(lines) < exchange.half_lines and not lines & taken[number % 2]
                taken[number % 2] |= lines
                number += 1
    assert number == 7 + n_wide + 4


@pytest.mark.parametrize("n_ranks, saved_fours, packs", [(2, 0, False), (2, 0, True), (3, 400, False), (4, 0, True)])
def test_devices_that_run_at_once_all_get_the_same_sums(
    device: Device, others: list[Device], n_ranks: int, saved_fours: int, packs: bool
) -> None:
    """Many exchanges in a submit, narrow and wide ones in turn in the same memory, each of what the last one gave; of
    three ranks, the wide ones in two phases, of four all."""
    devices = [device, *others][:n_ranks]
    exchange = Exchange(devices, Exchanged(64 * COLUMNS // 4, 64 * COLUMNS // 4), saved_fours=saved_fours)
    is_scattered = [exchange.layout.is_scattered(n * COLUMNS // 4) for n in (40, 64)]
    assert is_scattered == {2: [False, False], 3: [False, True], 4: [True, True]}[n_ranks]
    how = {"packs": packs, "is_scattered": packs and n_ranks == 4}
    parts, add = drawn(n_ranks, 40, COLUMNS) / 100, drawn(1, 40, COLUMNS, seed=3)[0]
    expected = parts
    n_steps, n_exchanges = 2, 6
    ranks = [Rank(one, part, add) for one, part in zip(devices, parts, strict=True)]
    recordings = []
    for one, made, rank in zip(devices, exchange.ranks, ranks, strict=True):
        odd = made.all_reduce(rank.part, rank.y, rank.step, COLUMNS, 40, rank.add, packs=packs)
        even = made.all_reduce(rank.y, rank.part, rank.step, COLUMNS, 64, rank.add, packs=packs)
        pieces = placed([odd, even] * (n_exchanges // 2), exchange.half_lines)
        recordings.append([one.record(piece) for piece in pieces])
    for step in range(n_steps):
        for rank in ranks:
            assert rank.step.words is not None
            rank.step.words[5] = step * n_exchanges
        for pieces_of_ranks in zip(*recordings, strict=True):
            run_at_once(devices, pieces_of_ranks)
        for _ in range(n_exchanges // 2):
            summed = added_up(expected, add, **how)
            expected = np.stack([added_up(np.stack([summed] * n_ranks), add, **how)] * n_ranks)
    for made, rank in zip(exchange.ranks, ranks, strict=True):
        made.check()
        np.testing.assert_array_equal(floats(rank.part, rank.shape), expected[0])


def test_what_ranks_save_decides_whether_sums_have_two_phases(device: Device, others: list[Device]) -> None:
    """Of 4096 columns: two ranks would move more; eight gain from few rows."""
    for n_ranks, least in ((2, None), (3, 64), (4, 16), (8, 4)):
        exchange = Exchange([device] * n_ranks, Exchanged(64 * 1024, 64 * 1024))
        scattered = [n_rows for n_rows in (1, 2, 4, 8, 16, 32, 64) if exchange.layout.is_scattered(n_rows * 1024)]
        assert (scattered[0] if scattered else None) == least


@pytest.mark.parametrize("is_told", [True, False])
def test_a_device_that_is_lost_ends_the_others_in_bounded_time(
    device: Device, others: list[Device], is_told: bool
) -> None:
    """Rank 1's submit fails: rank 0 waits until its polls are used up, or until it is told."""
    layer = Layer.activate()
    lost = Device(str(device.info.index))
    devices = [device, lost]
    try:
        exchange = Exchange(devices, Exchanged(COLUMNS // 4, COLUMNS // 4), polls_in_place=30_000 if is_told else 5000)
        parts = drawn(2, 1, COLUMNS)
        ranks = [Rank(one, part) for one, part in zip(devices, parts, strict=True)]
        recordings = []
        for one, made, rank in zip(devices, exchange.ranks, ranks, strict=True):
            reduced = made.all_reduce(rank.part, rank.y, rank.step, COLUMNS, 1)
            recordings.append(one.record([reduced.at(number, 0) for number in (1, 2, 3)]))
        run_at_once(devices, recordings)
        for rank in ranks:
            assert rank.step.words is not None
            rank.step.words[5] = 3
        layer.inject("submit", 1, LOST, lost.layer_id)
        ticket = device.submit(recordings[0])
        with pytest.raises(DeviceLost):
            lost.wait(lost.submit(recordings[1]))
        exchange.ranks[0].check()
        if is_told:
            exchange.abort(1)
        started = time.process_time()  # all of which a device that waits takes
        device.wait(ticket)
        assert time.process_time() - started < (1 if is_told else 20)  # 30,000 polls take 5 s
        with pytest.raises(DeviceTimeout, match=r"\(rank 0\) waited in vain for .*\(rank 1\) in exchange 4"):
            exchange.ranks[0].check()
    finally:
        layer.inject("submit", 0)
        lost.close()
