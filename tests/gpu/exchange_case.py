"""What tests of exchanges share: ranks that a test plays itself, by writing into the memory what a device would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from kernel_case import filled, poisoned

from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.exchange import Exchange
from vkllm.gpu.program.step import Part, StepSlots
from vkllm.model.shards.shared_exponent import packed, rounded

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
FAILED_MARK = 0x464B4C56


def lines_of(n_fours: int) -> int:
    """Lines of so many 16-byte words."""
    return -(-n_fours // 8)


def block_of(exchange: Exchange, rank: int, group: int, number: int, n_fours: int, n_copies: int) -> tuple[int, int]:
    """Where a rank's block of a workgroup begins, in lines, and the lines of a copy, as lib/exchange.glsl says. The
    exchange begins at the first line of a half."""
    n_ranks, n_groups = len(exchange.devices), exchange.layout.n_groups(n_fours)
    share = -(-n_fours // n_groups)
    copy_lines = -(-share // 8)
    block_lines = exchange.layout.n_lines + n_copies * copy_lines
    if exchange.layout.is_scattered(n_fours):
        block_lines += exchange.layout.n_lines + n_copies * lines_of(-(-share // n_ranks))
    return number % 2 * exchange.half_lines + (rank * n_groups + group) * block_lines, copy_lines


def hand_over(
    exchange: Exchange,
    rank: int,
    number: int,
    fours: Words,
    n_room: int,
    n_copies: int,
    n_damaged: int = 0,
    totals: Words | None = None,
) -> None:
    """Does what a device of a rank does: writes fours (F, 4), as they are handed over, and the flags. n_room: fours
    that the exchange has room for. n_damaged: of the copies, from the first on, whose last word is another than was
    written. totals: the sums of all ranks, where each hands over a piece of them in a second phase; then it is there
    that copies are damaged."""
    n_groups, n_ranks = exchange.layout.n_groups(n_room), len(exchange.devices)
    share = -(-len(fours) // n_groups)
    for group in range(n_groups):
        block, copy_lines = block_of(exchange, rank, group, number, n_room, n_copies)
        own, place = fours[group * share : (group + 1) * share], (block, copy_lines)
        if totals is None:
            _write(exchange, number, place, own, n_copies, n_damaged, [own])
            continue
        n = -(-len(own) // n_ranks)
        _write(exchange, number, place, own, n_copies, 0, [own[i * n : (i + 1) * n] for i in range(n_ranks)])
        second = block + exchange.layout.n_lines + n_copies * copy_lines
        piece = totals[group * share :][: len(own)][rank * n : (rank + 1) * n]
        room = -(-n_room // n_groups)
        _write(exchange, number, (second, lines_of(-(-room // n_ranks))), piece, n_copies, n_damaged, [piece])


def _write(
    exchange: Exchange,
    number: int,
    place: tuple[int, int],
    own: Words,
    n_copies: int,
    n_damaged: int,
    read: Sequence[Words],
) -> None:
    """A phase. place: first line, and lines of a copy. read: what each reader of a flag reads."""
    lines, (block, copy_lines) = exchange.memory.words.reshape(-1, 32), place
    for copy in range(n_copies):
        at = block + exchange.layout.n_lines + copy * copy_lines
        lines[at : at + copy_lines].reshape(-1)[: own.size] = own.reshape(-1)
        if copy < n_damaged and own.size:
            lines[at : at + copy_lines].reshape(-1)[own.size - 1] ^= 1
    for i, part in enumerate(read):
        total = int(part.sum(dtype=np.uint64)) % 2**32
        flag = (number, total, number ^ 0xFFFFFFFF, total ^ 0xFFFFFFFF)
        lines[block : block + exchange.layout.n_lines, 4 * i : 4 * i + 4] = flag


def step_of_rows(device: Device, n_rows: int, first_exchange: int = 0) -> Buffer:
    """The step buffer of a step of so many rows."""
    slots = StepSlots(device, 1, 1)
    slots.write(0, [Part(0, [0] * n_rows, 0, [0])], first_exchange)
    return slots.buffer


def drawn(n_ranks: int, n_rows: int, columns: int, seed: int = 1) -> Floats:
    """Parts (n_ranks, n_rows, columns) whose sum depends on the order of additions."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_ranks, n_rows, columns)) * 10.0 ** rng.integers(-4, 4, (n_ranks, 1, 1))).astype(
        np.float32
    )


def added_up(parts: Floats, add: Floats | None = None, *, packs: bool = False, is_scattered: bool = False) -> Floats:
    """What `all_reduce` computes: rank by rank, then add. packs: parts are rounded, and sums that are handed over."""
    rounds = rounded if packs else np.copy
    total = rounds(parts[0])
    for part in parts[1:]:
        total += rounds(part)
    total = rounds(total) if is_scattered else total
    return total if add is None else add + total


def fours_of(numbers: Floats, *, packs: bool) -> Words:
    """Numbers as they are handed over, (F, 4)."""
    return (packed(numbers) if packs else numbers.view(np.uint32)).reshape(-1, 4)


def run_at_once(devices: Sequence[Device], recordings: Sequence[Any]) -> None:
    """Submits a recording of each device, then waits for all."""
    tickets = [device.submit(recording) for device, recording in zip(devices, recordings, strict=True)]
    for device, ticket in zip(devices, tickets, strict=True):
        device.wait(ticket)


class Rank:
    """A rank's buffers for `all_reduce`: part, add and y (n_rows, columns)."""

    def __init__(self, device: Device, part: Floats, add: Floats | None = None, first_exchange: int = 0) -> None:
        self.shape = part.shape
        self.part = filled(device, part)
        self.add = None if add is None else filled(device, add)
        self.y = poisoned(device, part.size)
        self.step = step_of_rows(device, len(part), first_exchange)
