"""Widths of chunks over time, with a clock of our own: they shrink when a chunk was slow, and recover."""

from __future__ import annotations

import pytest

from vkllm.engine.chunks import CHUNK_S, FIRST_RETRY_S, LAST_RETRY_S, ChunkLengths
from vkllm.gpu.program.step import WIDTHS


class Machine:
    """Runs chunks one after the other. row_s: what a row takes."""

    def __init__(self, row_s: float) -> None:
        self.now_s, self.row_s = 1000.0, row_s
        self.lengths = ChunkLengths(0.1, lambda: self.now_s)

    def chunk(self, width_s: dict[int, float] | None = None) -> int:
        """Runs the next chunk and returns its width. width_s: what chunks of some widths take instead."""
        width = self.lengths.n_rows()
        took_s = (width_s or {}).get(width, width * self.row_s)
        self.now_s += took_s
        self.lengths.measured(width, took_s)
        return width

    def chunks(self, seconds: float, width_s: dict[int, float] | None = None) -> list[int]:
        end_s, widths = self.now_s + seconds, []
        while self.now_s < end_s:
            widths.append(self.chunk(width_s))
        return widths


def test_one_slow_chunk_is_forgotten_after_some_seconds() -> None:
    machine = Machine(row_s=0.0005)
    assert [machine.chunk() for _ in range(5)] == [8, 64, 256, 512, 512]
    assert machine.chunk({512: 3.0}) == 512, "another program had the device"
    assert set(machine.chunks(FIRST_RETRY_S - 0.2)) == {256}
    machine.chunks(0.4)
    assert machine.chunk() == 512 and machine.chunk() == 512


def test_a_device_that_was_slow_for_a_while_is_used_as_before_in_the_end() -> None:
    machine = Machine(row_s=0.0005)
    machine.chunks(2)
    machine.row_s = 0.2  # even eight rows take longer than a chunk may
    assert [machine.chunk() for _ in range(5)] == [512, 256, 64, 8, 8]
    machine.row_s = 0.0005
    assert machine.chunks(4 * FIRST_RETRY_S)[-1] == 512


def test_sleep_lets_every_width_recover_at_once() -> None:
    machine = Machine(row_s=0.0005)
    machine.chunks(2)
    slow = dict.fromkeys(WIDTHS, 30.0)
    assert [machine.chunk(slow) for _ in range(4)] == [512, 256, 64, 8]
    machine.now_s += 3600
    assert [machine.chunk() for _ in range(4)] == [8, 64, 256, 512]


def test_a_width_that_is_always_too_slow_is_tried_ever_more_seldom() -> None:
    machine = Machine(row_s=0.001)
    widths = machine.chunks(3600, {512: 1.5})
    tries = widths.count(512)
    assert 6 <= tries <= 14, "5, 10, 20 ... 640 s apart"
    assert set(widths[5:]) == {256, 512}
    start = len(widths)
    widths += machine.chunks(LAST_RETRY_S + 2)
    assert widths[start:].count(512) >= 1, "it does recover: 512 rows take 0.5 s now"
    assert widths[-1] == 512


def test_a_width_that_cannot_fit_is_not_tried_again_however_long_ago_it_was() -> None:
    machine = Machine(row_s=0.0012)
    machine.chunks(1)
    machine.lengths.measured(512, 5.0)
    machine.row_s = 0.02  # 64 rows take 1.3 s, and eight 0.16 s
    machine.chunks(30)
    machine.now_s += 10 * LAST_RETRY_S
    assert machine.lengths.n_rows() in (8, 64), "64 may be tried: half of the linear guess is 0.64 s"
    machine.row_s = 0.05
    machine.lengths.measured(8, 0.4)
    assert machine.lengths.n_rows() == 8, "the guess for 64 rows is 1.6 s"


@pytest.mark.parametrize("n_rows", [1, 7, 37, 300])
def test_chunks_that_fill_no_width_do_not_count(n_rows: int) -> None:
    lengths = ChunkLengths(0.1, lambda: 0.0)
    lengths.measured(8, 0.001)
    before = lengths.n_rows()
    lengths.measured(n_rows, 100 * CHUNK_S)
    assert lengths.n_rows() == before
    assert n_rows not in lengths.took_s


def test_forgetting_begins_anew() -> None:
    lengths = ChunkLengths(0.1, lambda: 0.0)
    lengths.measured(8, 0.001)
    lengths.measured(64, 2.0)
    lengths.forget()
    assert lengths.n_rows() == 8 and lengths.n_submits(8) == 1
    lengths.measured(8, 0.001)
    assert lengths.n_rows() == 64, "the slow chunk is forgotten too"
