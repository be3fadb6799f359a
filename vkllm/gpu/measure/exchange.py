"""How fast devices hand each other numbers, measured: exchanges of one row and of many, as models make them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vkllm.gpu.device.kompute import Device, Recording
from vkllm.gpu.program.exchange import Exchange, placed
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.step import Part, StepSlots
from vkllm.model.memory.exchange_memory import Exchanged, is_packed, sum_fours
from vkllm.model.memory.step_time import ExchangeSpeed

ROW_COLUMNS: Final = (4096, 8192)
"""Widths of the rows that are timed one by one: models of 7B and of 70B."""

WIDE: Final = (512, 4096)
"""Rows and columns of the large exchange."""

CPU_WIDE: Final = (32, 4096)

N_EXCHANGES, N_WIDE, N_CPU = 160, 12, 8
"""Exchanges of a submit: as many as a 70B model has, or fewer where they take long."""

N_TIMES, N_CPU_TIMES = 7, 1
"""Submits that are timed; the median counts."""


@dataclass(frozen=True)
class ExchangeTimes:
    """Seconds of an exchange among n_ranks devices. row_s: of a row, by its columns. wide_s: of wide_bytes a device."""

    n_ranks: int
    row_s: dict[int, float]
    wide_s: float
    wide_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Bytes that each device hands over a second in large exchanges."""
        return self.wide_bytes / self.wide_s

    @property
    def speed(self) -> ExchangeSpeed:
        """The same as plans take it: a fixed time, and the speed of a device at which the rest goes."""
        columns, row_s = min(self.row_s.items())
        bytes_per_s = ExchangeSpeed(0.0, 1.0, self.n_ranks).transfer_s(self.wide_bytes, self.n_ranks) / self.wide_s
        moving = ExchangeSpeed(0.0, bytes_per_s, self.n_ranks * bytes_per_s)
        latency_s = max(row_s - moving.sum_s(4 * columns, self.n_ranks), 0.0)
        return replace(moving, latency_s=latency_s, is_measured=True)


def exchange_times(devices: Sequence[Device]) -> ExchangeTimes:
    """Of devices that run at once. Raises UnsupportedDevice if a driver cannot import memory, DeviceError."""
    has_cpu = any(device.info.type == "cpu" for device in devices)
    n_rows, columns = CPU_WIDE if has_cpu else WIDE
    n_fours, n = sum_fours(n_rows, columns), N_CPU if has_cpu else N_WIDE
    exchange = Exchange(devices, Exchanged(n_fours, max(ROW_COLUMNS) // 4, n + 1))
    timed = _Timed(devices, exchange)
    row_s = {width: timed.exchange_s(1, width, N_CPU if has_cpu else N_EXCHANGES) for width in ROW_COLUMNS}
    wide_s = timed.exchange_s(n_rows, columns, n)
    return ExchangeTimes(len(devices), row_s, wide_s, 16 * n_fours)


class _Timed:
    """Runs exchanges whose numbers go on from submit to submit."""

    def __init__(self, devices: Sequence[Device], exchange: Exchange) -> None:
        self._devices = devices
        self._exchange = exchange
        self._slots = [StepSlots(device, 1, 1) for device in devices]
        self._n_times = N_CPU_TIMES if any(device.info.type == "cpu" for device in devices) else N_TIMES
        self._n_done = 0

    def exchange_s(self, n_rows: int, columns: int, n: int) -> float:
        """Seconds of one of n exchanges in a submit, without what the submit itself costs. Raises DeviceError."""
        one, all_of_them = self._recordings(n_rows, columns, 1), self._recordings(n_rows, columns, n + 1)
        for recordings in (one, all_of_them):  # compiles, and wakes the devices up
            self._run(recordings, n_rows, 1 if recordings is one else n + 1)
        seconds = [self._run(all_of_them, n_rows, n + 1) - self._run(one, n_rows, 1) for _ in range(self._n_times)]
        return max(statistics.median(seconds), 1e-9) / n

    def _recordings(self, n_rows: int, columns: int, n: int) -> list[list[Recording]]:
        return [self._recording(rank, n_rows, columns, n) for rank in range(len(self._devices))]

    def _recording(self, rank: int, n_rows: int, columns: int, n: int) -> list[Recording]:
        device, slots = self._devices[rank], self._slots[rank]
        part, y = device.buffer(n_rows * columns), device.buffer(n_rows * columns)
        begin = device.dispatch(  # from host memory, once a submit
            KERNELS["copy_words"],
            (slots.buffer, slots.on_device),
            constants=(64,),
            groups=(1, 1),
            push=(slots.slot_words, 0, 0),
        )
        made = self._exchange.ranks[rank]
        packs = is_packed(n_rows, columns)
        exchanges = [made.all_reduce(part, y, slots.on_device, columns, n_rows, packs=packs) for _ in range(n)]
        return [device.record(piece) for piece in placed([begin, *exchanges], self._exchange.half_lines)]

    def _run(self, recordings: Sequence[Sequence[Recording]], n_rows: int, n: int) -> float:
        """Seconds from the first submit until all devices are done."""
        for slots in self._slots:
            slots.write(0, [Part(0, [0] * n_rows, 0, [0])], self._n_done)
        self._n_done += n
        start_s = time.perf_counter()
        for pieces in zip(*recordings, strict=True):
            tickets = [device.submit(piece) for device, piece in zip(self._devices, pieces, strict=True)]
        for device, ticket in zip(self._devices, tickets, strict=True):
            device.wait(ticket)
        took_s = time.perf_counter() - start_s
        for rank in self._exchange.ranks:
            rank.check()
        return took_s


def groups_of(n_devices: int) -> Iterator[tuple[int, ...]]:
    """Which of so many devices are measured together: each pair, then all."""
    yield from itertools.combinations(range(n_devices), 2)
    if n_devices > 2:
        yield tuple(range(n_devices))
