"""Times the exchange of numbers between devices, and tries whether it is right, on real GPUs.

    python benchmarks/exchange.py 0,1        also 0,1,2,3; 0,0 opens one GPU twice, which then takes turns

Each line: ranks, rows and columns of an exchange; bits that a number is handed over in; how often numbers are written;
in how many phases, of three ranks or more in one and in two; host memory, and submits that it cuts the exchanges into,
because no line is read twice in one; time of one exchange, and bytes that a rank hands over a second; how often numbers
came after their flag; and whether all sums were right. Takes about a minute.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from vkllm.errors import VkllmError
from vkllm.gpu.device.kompute import Buffer, Device, Recording
from vkllm.gpu.device.requirements import described
from vkllm.gpu.measure.exchange import exchange_times, groups_of
from vkllm.gpu.program.exchange import Exchange, placed
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.step import Part, StepSlots
from vkllm.model.memory.exchange_memory import Exchanged
from vkllm.model.shards.shared_exponent import rounded

N_PARTS = 7
"""Different numbers to exchange in turn: what a line held before is seldom what it should hold."""

N_SUBMITS = 8


def copied(device: Device, source: Buffer, target: Buffer, n_words: int) -> None:
    device.run(
        [
            device.dispatch(
                KERNELS["copy_words"], (source, target), constants=(64,), groups=(256, 1), push=(n_words, 0, 0)
            )
        ]
    )


class Rank:
    """A device with numbers to exchange, in its own memory."""

    def __init__(self, exchange: Exchange, rank: int, drawn: np.ndarray, n_exchanges: int, *, packs: bool) -> None:
        self.device = exchange.devices[rank]
        self.made = exchange.ranks[rank]
        self.n_rows, self.columns = drawn.shape[1:]
        self.slots = StepSlots(self.device, 1, 1)
        n_words = self.n_rows * self.columns
        self.host = self.device.buffer(n_words, is_host=True)
        parts = [self.device.buffer(n_words) for _ in range(N_PARTS)]
        self.sums = [self.device.buffer(n_words) for _ in range(N_PARTS)]
        for part, numbers in zip(parts, drawn, strict=True):
            assert self.host.words is not None
            self.host.words[:] = numbers.reshape(-1).view(np.uint32)
            copied(self.device, self.host, part, n_words)
        begin = self.device.dispatch(
            KERNELS["copy_words"],
            (self.slots.buffer, self.slots.on_device),
            constants=(64,),
            groups=(1, 1),
            push=(self.slots.slot_words, 0, 0),
        )
        dispatches = [
            self.made.all_reduce(
                parts[i % N_PARTS], self.sums[i % N_PARTS], self.slots.on_device, self.columns, self.n_rows, packs=packs
            )
            for i in range(n_exchanges)
        ]
        pieces = placed([begin, *dispatches], exchange.half_lines)
        self.recordings: list[Recording] = [self.device.record(piece) for piece in pieces]

    def sum(self, i: int) -> np.ndarray:
        copied(self.device, self.sums[i], self.host, self.n_rows * self.columns)
        assert self.host.words is not None
        return self.host.words.view(np.float32).reshape(self.n_rows, self.columns)


def tried(
    devices: list[Device],
    n_rows: int,
    columns: int,
    n_exchanges: int,
    n_apart: int,
    copies: int,
    *,
    in_two: bool,
    packs: bool,
) -> str:
    """A line of the table. n_apart: exchanges with memory of their own, at most. copies: that wide exchanges write.
    in_two: whether sums have two phases. packs: whether eight numbers take 16 bytes."""
    n_fours = n_rows * columns // (8 if packs else 4)
    exchanged = Exchanged(n_fours, 0, n_apart)
    exchange = Exchange(devices, exchanged, wide_copies=copies, saved_fours=0 if in_two else 2**40)
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(len(devices), N_PARTS, n_rows, columns)).astype(np.float32)
    ranks = [Rank(exchange, rank, drawn[rank], n_exchanges, packs=packs) for rank in range(len(devices))]
    handed = rounded(drawn) if packs else drawn
    n_copies = exchange.layout.n_copies(n_rows)
    seconds, said = [], "right"
    try:
        for submit in range(N_SUBMITS):
            for rank in ranks:
                rank.slots.write(0, [Part(0, [0] * n_rows, 0, [0])], submit * n_exchanges)
            start_s = time.perf_counter()
            for pieces in zip(*(rank.recordings for rank in ranks), strict=True):
                tickets = [rank.device.submit(piece) for rank, piece in zip(ranks, pieces, strict=True)]
            for rank, ticket in zip(ranks, tickets, strict=True):
                rank.device.wait(ticket)
            seconds.append(time.perf_counter() - start_s)
            for rank in ranks:
                rank.made.check()
        expected = handed[0].copy()
        for part in handed[1:]:
            expected += part
        expected = rounded(expected) if packs and in_two else expected
        n_wrong = sum(int((rank.sum(i) != expected[i]).sum()) for rank in ranks for i in range(N_PARTS))
        said = "right" if n_wrong == 0 else f"{n_wrong} WRONG NUMBERS"
    except VkllmError as error:
        said = f"{type(error).__name__}: {error}"
    retries = sum(rank.made.n_retries() for rank in ranks)
    one_s = statistics.median(seconds or [float("nan")]) / n_exchanges
    speed = 16 * n_fours / one_s
    memory = f"{exchange.memory.n_bytes / 2**20:7.1f} MiB"
    return (
        f"{len(devices):5d} {n_rows:5d} {columns:7d} {16 if packs else 32:4d} {n_copies:6d} {1 + in_two:6d} {memory} "
        f"{len(ranks[0].recordings):7d} "
        f"{1e6 * one_s:9.2f} us {speed / 1e9:8.3f} GB/s {retries:7d} {said}"
    )


def main(wanted: str) -> None:
    devices = [Device(index) for index in wanted.split(",")]
    for rank, device in enumerate(devices):
        print(f"rank {rank}: {described(device.info)}")
    print("ranks  rows columns bits copies phases      memory submits  exchange    hands over retries sums")
    is_cpu = any(device.info.type == "cpu" for device in devices)
    n = 8 if is_cpu else 160
    for group in groups_of(len(devices)):
        chosen = [devices[rank] for rank in group]
        wide_rows, wide_columns, n_wide = (64, 1024, 7) if is_cpu else (512, 4096, 20)
        for n_rows, columns, n_exchanges, n_apart, copies, packs in (
            (1, 4096, n, n, 1, False),
            (1, 8192, n, n, 1, False),
            (1, 8192, n, n // 4, 1, False),
            (8, 4096, n, n, 1, False),
            (32, 4096, n, n, 1, False),
            (wide_rows, wide_columns, n_wide, n_wide, 1, False),
            (wide_rows, wide_columns, n_wide, n_wide, 1, True),
            (wide_rows, wide_columns, n_wide, 4, 1, True),
            (wide_rows, 2 * wide_columns, n_wide, n_wide, 1, False),
            (wide_rows, 2 * wide_columns, n_wide, n_wide, 1, True),
            (wide_rows, wide_columns, n_wide, n_wide, 2, True),
        ):
            for in_two in (False, True)[: 1 + (len(chosen) > 2)]:
                line = tried(chosen, n_rows, columns, n_exchanges, n_apart, copies, in_two=in_two, packs=packs)
                print(line, flush=True)
        print(f"as `vkllm devices --exchange` measures it: {exchange_times(chosen)}", flush=True)
    for device in devices:
        device.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "0,1")
