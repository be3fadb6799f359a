"""Exchanges between ranks: the devices of one process that compute a model together, and what they hand each other.

Knows the kernels `all_reduce` and `all_gather` (shaders/lib/exchange.glsl says how they work) and the memory that they
need. Which operations exchange something, and when a step is submitted, is for others to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from vkllm.errors import DeviceError, DeviceTimeout
from vkllm.formats.tensor_bytes import SharedReads
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.device.shared_memory import SharedHostMemory
from vkllm.gpu.program.exchange_kernels import MOST_RANKS
from vkllm.gpu.program.kernels import KERNELS, TOP_K
from vkllm.model.memory.exchange_memory import LINE_BYTES, MOST_BYTES, Exchanged, ExchangeLayout, n_lists
from vkllm.model.shards.cuts import CachedParts

POLLS_IN_PLACE: Final = 40_000
"""Polls of an invocation on a CPU device: of CPU_LOCAL_SIZE invocations about eight seconds, if nothing else runs. Its
driver compiles a kernel when it first runs, while other ranks wait."""

LOCAL_SIZE, CPU_LOCAL_SIZE = 256, 512


_MISSING, _DAMAGED, _FAILED_MARK = 0, 256, 0x464B4C56
"""As in shaders/lib/exchange.glsl."""


@dataclass(frozen=True)
class VocabularyPart:
    """The part of a vocabulary of n_vocab tokens whose logits a rank computes: n_part tokens, from first_token on.
    most: tokens of the largest part of all ranks."""

    n_vocab: int
    first_token: int
    n_part: int
    most: int

    @property
    def most_lists(self) -> int:
        """Lists of candidates that `top_logits` makes of the largest part."""
        return n_lists(self.most)


@final
@dataclass(frozen=True)
class Share:
    """What makes a program one of several ranks that compute every step together. vocabulary: whose logits it computes;
    None where each rank computes all of them. cached: what it keeps of a sequence. reads: the file, as all ranks load
    it."""

    exchange: RankExchange
    vocabulary: VocabularyPart | None
    cached: CachedParts
    reads: SharedReads | None = None


@dataclass(frozen=True)
class ExchangeDispatch(Dispatch):
    """A dispatch that exchanges something, without its place yet. n_lines: that it takes in a half of the memory."""

    n_lines: int = 0

    def at(self, number: int, first_line: int) -> ExchangeDispatch:
        """The same as exchange `number` of its step, with these lines."""
        return self.with_push(number, first_line, *self.push[2:].tolist())


def placed(dispatches: Sequence[Dispatch], half_lines: int, first_number: int = 1) -> list[list[Dispatch]]:
    """Dispatches in pieces, each to be a submit; the exchanges among them have numbers and lines of their own.

    GPUs keep what they read of the memory until a submit ends, so no two exchanges of a piece have the same lines.
    """
    pieces: list[list[Dispatch]] = [[]]
    number, taken = first_number, [0, 0]
    for dispatch in dispatches:
        if isinstance(dispatch, ExchangeDispatch):
            first_line = taken[number % 2]
            if first_line + dispatch.n_lines > half_lines:
                pieces.append([])
                first_line, taken = 0, [0, 0]
            taken[number % 2] = first_line + dispatch.n_lines
            dispatch = dispatch.at(number, first_line)
            number += 1
        pieces[-1].append(dispatch)
    return pieces


class Exchange:
    """The memory of a group of devices, in the order of their ranks, and what each of them needs for exchanges.

    Raises UnsupportedDevice if a driver cannot import memory, OutOfDeviceMemory if a limit leaves no room for it.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        exchanged: Exchanged,
        *,
        polls_in_place: int = POLLS_IN_PLACE,
        **layout: int,
    ) -> None:
        """polls_in_place: of CPU devices; 0: they poll like GPUs. layout: fields of `ExchangeLayout` that are not to be
        as they are for these devices."""
        assert 0 < len(devices) <= MOST_RANKS
        self.devices = tuple(devices)
        self.layout = replace(ExchangeLayout.of([device.info.type == "cpu" for device in devices]), **layout)
        self.polls_in_place = polls_in_place
        bindable = (min(device.info.max_binding_bytes, device.info.max_allocation_bytes) for device in devices)
        self.memory = SharedHostMemory(self.layout.n_bytes(exchanged, min(MOST_BYTES, *bindable)))
        self.half_lines = self.memory.n_bytes // LINE_BYTES // 2
        self.ranks = [RankExchange(self, rank) for rank in range(len(devices))]

    def abort(self, rank: int) -> None:
        """Ends all waits of exchanges under way, and all later exchanges: rank is to blame for it.

        For a device that was lost: the others need not wait until their polls are used up.
        """
        code = _MISSING | (rank + 1)
        self.memory.words.reshape(-1, 4)[:] = (0, code, 0xFFFFFFFF, code ^ _FAILED_MARK)


class RankExchange:
    """Makes the dispatches of one rank. n_ranks: of all.

    `placed` gives them numbers, which count the exchanges of a step, from 1 on without gaps, the same on all ranks; the
    step says how many were in all steps before (`StepSlots.write`). An exchange begins when the one before has ended. A
    rank waits for two or three seconds only, so a step is to be submitted on all ranks at once, when all have
    recorded it.
    """

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange = exchange
        self._rank = rank
        self.n_ranks = len(exchange.devices)
        self._device = exchange.devices[rank]
        self._is_cpu = self._device.info.type == "cpu"
        self._shared = self._device.shared_buffer(exchange.memory)
        self._failure = self._device.buffer(4, is_host=True)
        self._state = self._device.buffer(4)
        self._device.run([self._copy(self._failure, self._state)])

    def all_reduce(
        self,
        part: Buffer,
        y: Buffer,
        step: Buffer,
        columns: int,
        width: int,
        add: Buffer | None = None,
        chain: tuple[Buffer, Buffer, int] | None = None,
        *,
        packs: bool = False,
    ) -> ExchangeDispatch:
        """y (width, columns) = (add +) the sum of all ranks' parts, for steps of `width` rows. y must be neither part
        nor add; with packs, where numbers are written once, it may be add. chain: the chain that it is a link of, where
        failures are told, and most polls of a wait. packs: parts, which may be overwritten, are rounded as
        model/shards/shared_exponent.py does."""
        n_copies, n_fours = self._exchange.layout.n_copies(width), width * columns // (8 if packs else 4)
        assert columns % (8 if packs else 4) == 0 and y is not part and (y is not add or (packs and n_copies == 1))
        is_scattered = self._exchange.layout.is_scattered(n_fours)
        chain_buffer, chain_failure, most_polls = chain or (self._state, self._failure, 0)
        made = self._device.dispatch(
            KERNELS["all_reduce"],
            (part, add or part, y, step, self._shared, self._state, self._failure, chain_buffer, chain_failure),
            constants=(
                *(self._local_size, columns, int(add is not None)),
                *self._constants(n_copies),
                *(int(is_scattered), most_polls, int(packs)),
            ),
            groups=(self._exchange.layout.n_groups(n_fours), 1),
            push=(0, 0, width, self._rank, 0, 0),
        )
        return self._to_place(made, n_fours, n_copies)

    def all_gather(
        self,
        largest: Buffer,
        gathered: Buffer,
        step: Buffer,
        vocabulary: VocabularyPart,
        width: int,
    ) -> ExchangeDispatch:
        """The candidates of all ranks, from those of this rank's part of the vocabulary, for steps of up to `width`
        results. gathered: (width, n_ranks * most_lists, TOP_K) candidates, for `sample`."""
        n_copies, n_fours = self._exchange.layout.n_copies(width), width * vocabulary.most_lists * TOP_K // 2
        made = self._device.dispatch(
            KERNELS["all_gather"],
            (largest, gathered, step, self._shared, self._state, self._failure),
            constants=(
                *(self._local_size, vocabulary.n_part, vocabulary.most_lists),
                *self._constants(n_copies),
            ),
            groups=(self._exchange.layout.n_groups(n_fours), 1),
            push=(0, 0, width, self._rank, vocabulary.first_token),
        )
        return self._to_place(made, n_fours, n_copies)

    def n_retries(self) -> int:
        """How often a workgroup has read numbers again, as they came after their flag. Nothing may be in flight."""
        seen = self._device.buffer(4, is_host=True)
        self._device.run([self._copy(self._state, seen)])
        assert seen.words is not None
        return int(seen.words[2])

    def check(self) -> None:
        """Raises what became of an exchange that failed, of those of steps that have ended: DeviceTimeout if a rank was
        missing, DeviceError if what it handed over was not what it had written."""
        assert self._failure.words is not None
        code, number = (int(word) for word in self._failure.words[:2])
        if code == 0:
            return
        other = code % _DAMAGED - 1
        names = [f"{self._exchange.devices[rank].info.name} (rank {rank})" for rank in (self._rank, other)]
        if code >= _DAMAGED:
            raise DeviceError(
                f"{names[0]} read other numbers than {names[1]} had written in exchange {number}; split the model by "
                "layers (`-sm layer`)"
            )
        raise DeviceTimeout(
            f"{names[0]} waited in vain for {names[1]} in exchange {number}: that device hangs, was lost or is too "
            "slow; try again, or split the model by layers (`-sm layer`)"
        )

    def _copy(self, source: Buffer, target: Buffer) -> Dispatch:
        kernel = KERNELS["copy_words"]
        return self._device.dispatch(kernel, (source, target), constants=(64,), groups=(1, 1), push=(4, 0, 0))

    @property
    def _local_size(self) -> int:
        return CPU_LOCAL_SIZE if self._is_cpu else LOCAL_SIZE

    def _constants(self, n_copies: int) -> tuple[int, ...]:
        exchange = self._exchange
        polls = exchange.polls_in_place if self._is_cpu else 0
        return len(exchange.devices), exchange.layout.n_lines, polls, n_copies, exchange.half_lines

    def _to_place(self, made: Dispatch, n_fours: int, n_copies: int) -> ExchangeDispatch:
        n_lines = self._exchange.layout.lines(n_fours, n_copies)
        assert n_lines <= self._exchange.half_lines
        return ExchangeDispatch(**vars(made), n_lines=n_lines)

    @property
    def half_lines(self) -> int:
        """Lines of a half of the memory, for `placed`."""
        return self._exchange.half_lines
