"""The system memory through which ranks exchange numbers: how it is divided, and how much there is of it.

Pure arithmetic; shaders/lib/exchange.glsl does the same. Who writes what is gpu/program/exchange.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vkllm.model.memory.kernel_sizes import MAX_NARROW, MAX_ROWS, TOP_K, TOP_LOGITS

LINE_FOURS: Final = 8
"""16-byte words of a line, the least that devices write and read as a whole; `LINE_FOURS` in the shader."""

LINE_BYTES: Final = 16 * LINE_FOURS

N_LINES: Final = 68
"""Lines that a flag is written to, and so polls of a GPU that waits. Each delay is a quarter longer than the last one;
the longest is about half a second, and all together take two or three."""

GROUP_FOURS: Final = 512
"""Fours (16-byte words) that make another workgroup worth while."""

MOST_GROUPS, MOST_CPU_GROUPS = 32, 1
"""Most workgroups of an exchange: they must run at once. A CPU device has threads for other devices, too."""

SAVED_FOURS: Final = 16_384
"""Fours that a rank has to write and read less for a second phase, which takes a few microseconds, to be worth while:
at PCIe's speed they take ten."""

MOST_BYTES: Final = 256 << 20
"""Bytes of the memory, unless two of the largest exchanges need more."""

PAGE_BYTES: Final = 65536
"""Drivers take addresses and sizes that are multiples of a page of the system, which has at most as many bytes."""


@dataclass(frozen=True)
class Exchanged:
    """What a rank hands over at most, in 16-byte words: in any step, and in a narrow one. n_exchanges: of a step."""

    most_fours: int
    narrow_fours: int
    n_exchanges: int = 1

    @classmethod
    def of(cls, d_model: int, most_lists: int, n_exchanges: int) -> Exchanged:
        """Rows of d_model numbers, or most_lists lists of candidates for each result."""
        candidates = MAX_NARROW * most_lists * TOP_K // 2
        wide, narrow = (max(sum_fours(n_rows, d_model), candidates) for n_rows in (MAX_ROWS, MAX_NARROW))
        return cls(wide, narrow, n_exchanges)


def sum_fours(n_rows: int, columns: int) -> int:
    """16-byte words that a rank hands over for a sum in a step of n_rows rows: of four numbers, or, where there are
    many rows, of eight (`shards/shared_exponent.py`)."""
    return n_rows * columns // (8 if is_packed(n_rows, columns) else 4)


def is_packed(n_rows: int, columns: int) -> bool:
    """Whether sums of so many rows are handed over as eight numbers in 16 bytes."""
    return n_rows > MAX_NARROW and columns % 8 == 0


def n_lists(n_vocab: int) -> int:
    """Lists of candidates that `top_logits` makes of the logits of so many tokens."""
    return -(-n_vocab // TOP_LOGITS)


@dataclass(frozen=True)
class ExchangeLayout:
    """How ranks share the memory. n_lines: of a flag. most_groups: workgroups. wide_copies: how often GPUs write
    what they hand over in wide steps. saved_fours: what sums in two phases have to save."""

    n_ranks: int
    n_lines: int = N_LINES
    most_groups: int = MOST_GROUPS
    wide_copies: int = 1
    saved_fours: int = SAVED_FOURS

    @classmethod
    def of(cls, are_cpus: list[bool]) -> ExchangeLayout:
        """Of ranks of which these are drivers on the CPU."""
        n_lines, most_groups = 1 if all(are_cpus) else N_LINES, MOST_CPU_GROUPS if any(are_cpus) else MOST_GROUPS
        return cls(len(are_cpus), n_lines, most_groups)

    def n_groups(self, n_fours: int) -> int:
        """Workgroups of an exchange of so many fours of each rank: on all ranks the same."""
        return min(max(-(-n_fours // GROUP_FOURS), 1), self.most_groups)

    def n_copies(self, width: int) -> int:
        """How often ranks write what they hand over in steps of `width` rows."""
        if self.n_lines == 1:
            return 1
        return self.wide_copies if width > MAX_NARROW else 2

    def is_scattered(self, n_fours: int) -> bool:
        """Whether sums of so many fours of each rank have two phases: each rank adds up a piece, then hands it over.

        In one, a rank writes them once and reads those of all others. In two, it also writes its piece, and reads the
        others' parts of its piece and then their pieces; so only three ranks or more have less to do.
        """
        return n_fours * (self.n_ranks + 1 / self.n_ranks - 3) > self.saved_fours

    def lines(self, n_fours: int, n_copies: int) -> int:
        """Lines of an exchange of so many fours of each rank, at most."""
        n_groups = self.n_groups(n_fours)
        share = -(-n_fours // n_groups)
        shares = (share, -(-share // self.n_ranks)) if self.is_scattered(n_fours) else (share,)
        return self.n_ranks * n_groups * sum(self.n_lines + n_copies * -(-n // LINE_FOURS) for n in shares)

    def n_bytes(self, exchanged: Exchanged, most_bytes: int = MOST_BYTES) -> int:
        """Bytes of the memory, in whole pages: two halves, each with room for the largest exchange, and for half of
        a step's up to most_bytes."""
        wide = self.lines(exchanged.most_fours, self.n_copies(MAX_ROWS))
        narrow = self.lines(exchanged.narrow_fours, self.n_copies(MAX_NARROW))
        one = 2 * LINE_BYTES * max(wide, narrow)
        n_bytes = max(one, min(-(-exchanged.n_exchanges // 2) * one, most_bytes))
        return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True)
class ExchangeShare:
    """What a rank has of it: its part of the memory that all share, and its own memory for the candidates of all."""

    host_bytes: int = 0
    device_bytes: int = 0

    @classmethod
    def of(cls, n_bytes: int, n_ranks: int, most_lists: int) -> ExchangeShare:
        """n_bytes: of all ranks. most_lists: of a rank; 0 where each rank computes all logits."""
        return cls(-(-n_bytes // n_ranks), 8 * TOP_K * n_ranks * most_lists * MAX_NARROW)


NO_EXCHANGE: Final = ExchangeShare()
"""What a device needs that computes alone."""
