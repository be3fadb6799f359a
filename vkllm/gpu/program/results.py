"""What becomes of a step's results: which logits may be chosen, the choice of tokens, and what comes to the host.

Knows the kernels that follow the vocabulary projection, and their buffers. Each result has its own parameters in the
step (`step.py`); which kinds of results there are decides which dispatches are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vkllm.gpu.device.kompute import Buffer, Device, Dispatch
from vkllm.gpu.program.exchange import RankExchange, VocabularyPart
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW, TOP_K, TOP_LOGITS
from vkllm.gpu.program.step import Result

Floats = npt.NDArray[np.float32]

HEAD_WIDTHS = (1, 2, 4, 8, 16, MAX_NARROW)
"""Numbers of rows that logits are computed for; a step's results take the smallest that holds them."""


@dataclass(frozen=True)
class Kinds:
    """Which kinds of results a step has. width: of HEAD_WIDTHS."""

    width: int
    is_masked: bool
    is_greedy: bool
    is_drawn: bool
    wants_logits: bool

    @staticmethod
    def of(results: Sequence[Result]) -> Kinds | None:
        """Of these results; None if there are none."""
        if not results:
            return None
        return Kinds(
            next(width for width in HEAD_WIDTHS if width >= len(results)),
            any(result.mask is not None for result in results),
            any(result.draw is None and not result.wants_logits for result in results),
            any(result.draw is not None for result in results),
            any(result.wants_logits for result in results),
        )


@dataclass(frozen=True)
class Place:
    """Where the results of a submitted step come to. first_logits: row of host_logits (rows, V)."""

    results: tuple[Result, ...] = ()
    slot: int = 0
    host_logits: Buffer | None = None
    first_logits: int = 0


@dataclass(frozen=True)
class Gathering:
    """How ranks choose the same tokens, each with the logits of a part of the vocabulary."""

    exchange: RankExchange
    vocabulary: VocabularyPart


class Results:
    """Makes the dispatches. logits: (rows, V), of the results of a step. step: the step buffer on the device.

    next_token: what each sequence's last result has chosen.
    """

    def __init__(
        self,
        device: Device,
        logits: Buffer,
        n_vocab: int,
        n_sequences: int,
        n_slots: int,
        step: Buffer,
        gathering: Gathering | None = None,
    ) -> None:
        """n_vocab: of these logits, which are a part of the vocabulary where there is a gathering. Raises
        OutOfDeviceMemory."""
        self._device = device
        self._logits = logits
        self._n_vocab = n_vocab
        self._n_slots = n_slots
        self._step = step
        self._n_lists = -(-n_vocab // TOP_LOGITS)
        self._mask_words = -(-n_vocab // 32)
        self._n_rows = min(logits.n_words // n_vocab, MAX_NARROW)
        self._gathering = gathering
        self._part = gathering.vocabulary if gathering else VocabularyPart(n_vocab, 0, n_vocab, n_vocab)
        assert self._part.n_part == n_vocab and self._part.first_token % 32 == 0
        self.next_token = device.buffer(max(n_sequences, MAX_NARROW))
        self._chosen = device.buffer(n_slots * MAX_NARROW, is_host=True)
        self._largest = self._candidates = device.buffer(2 * TOP_K * self._n_lists * self._n_rows)
        self._n_gathered = 0
        if gathering is not None:
            self._n_gathered = gathering.exchange.n_ranks * self._part.most_lists
            self._candidates = device.buffer(2 * TOP_K * self._n_gathered * self._n_rows)
        self._masks = device.buffer(n_slots * MAX_NARROW * self._mask_words, is_host=True)
        self.n_places = 1
        self._host_logits = device.buffer(n_slots * n_vocab, is_host=True)

    def take(self, slot: int, results: Sequence[Result]) -> Place:
        """Checks the results of the next step of a slot, and makes room for their logits. Raises OutOfDeviceMemory."""
        assert len(results) <= self._n_rows
        for result in results:
            assert result.draw is None or (0 < result.draw.top_k <= TOP_K and not result.wants_logits)
            assert result.mask is None or (not result.wants_logits and len(result.mask) == -(-self._part.n_vocab // 32))
        n_wanted = sum(result.wants_logits for result in results)
        if n_wanted > self.n_places:  # steps in flight keep the other buffer
            n_places = next(width for width in HEAD_WIDTHS if width >= n_wanted)
            self._host_logits = self._device.buffer(self._n_slots * n_places * self._n_vocab, is_host=True)
            self.n_places = n_places
        return Place(tuple(results), slot, self._host_logits, slot * self.n_places)

    def write_masks(self, place: Place) -> None:
        """Puts the masks of results where the step reads them; no step in flight may have this slot."""
        assert self._masks.words is not None
        masks = self._masks.words[: self._n_slots * MAX_NARROW * self._mask_words]
        for i, result in enumerate(place.results):
            if result.mask is not None:
                own = result.mask[self._part.first_token // 32 :][: self._mask_words]
                masks.reshape(self._n_slots, MAX_NARROW, -1)[place.slot, i] = own

    def tokens(self, place: Place) -> list[int]:
        """What the results of a finished step have chosen, -1 for those that want logits."""
        assert self._chosen.words is not None
        chosen = self._chosen.words[MAX_NARROW * place.slot :][: len(place.results)].tolist()
        return [-1 if result.wants_logits else token for result, token in zip(place.results, chosen, strict=True)]

    def logits(self, place: Place, i: int) -> Floats:
        """A copy of the logits (V,) of result i of a finished step, which wanted them."""
        assert place.results[i].wants_logits and place.host_logits is not None and place.host_logits.words is not None
        row = place.first_logits + sum(result.wants_logits for result in place.results[:i])
        return place.host_logits.words[row * self._n_vocab :][: self._n_vocab].view(np.float32).copy()

    def dispatches(self, kinds: Kinds, local_size: int) -> list[Dispatch]:
        """What follows the vocabulary projection, in order."""
        masking = [self._loop_over_logits("mask_logits", self._masks, kinds, local_size)] if kinds.is_masked else []
        first, *then = self._sample(kinds, local_size)
        is_sampled = kinds.is_drawn or self.n_exchanges(kinds) > 0
        reading = [
            *([self._argmax(kinds, local_size)] if kinds.is_greedy and self._gathering is None else []),
            *(
                [self._loop_over_logits("read_logits", self._host_logits, kinds, local_size)]
                if kinds.wants_logits
                else []
            ),
            *([first] if is_sampled else []),
        ]
        side_by_side = [replace(dispatch, is_independent=i > 0) for i, dispatch in enumerate(reading)]
        return [*masking, *side_by_side, *(then if is_sampled else [])]

    def n_exchanges(self, kinds: Kinds) -> int:
        """How many of the dispatches are exchanges between ranks."""
        return int(self._gathering is not None and (kinds.is_greedy or kinds.is_drawn))

    def _loop_over_logits(self, kernel: str, host: Buffer, kinds: Kinds, local_size: int) -> Dispatch:
        """Masks or reads logits, with a buffer in host memory."""
        return self._device.dispatch(
            KERNELS[kernel],
            (self._logits, host, self._step),
            constants=(local_size, self._n_vocab),
            groups=(min(1024, -(-self._n_vocab // local_size)), kinds.width),
            push=(self.n_places,) if kernel == "read_logits" else (),
        )

    def _sample(self, kinds: Kinds, local_size: int) -> list[Dispatch]:
        """The candidates of each result, those of other ranks too, and the choice among them."""
        top_logits = self._device.dispatch(
            KERNELS["top_logits"],
            (self._logits, self._largest, self._step),
            constants=(4 * local_size, self._n_vocab, int(self._gathering is not None)),
            groups=(self._n_lists, kinds.width),
        )
        sample = self._device.dispatch(
            KERNELS["sample"],
            (self._candidates, self.next_token, self._chosen, self._step),
            constants=(4 * local_size, self._part.n_vocab, self._n_gathered),
            groups=(1, kinds.width),
        )
        if self._gathering is None:
            return [top_logits, sample]
        gathered = self._gathering.exchange.all_gather(
            self._largest, self._candidates, self._step, self._part, kinds.width
        )
        return [top_logits, gathered, sample]

    def _argmax(self, kinds: Kinds, local_size: int) -> Dispatch:
        most = min(16 * local_size, self._device.info.max_workgroup_invocations)
        return self._device.dispatch(
            KERNELS["argmax"],
            (self._logits, self.next_token, self._chosen, self._step),
            constants=(1 << most.bit_length() - 1, self._n_vocab),
            groups=(1, kinds.width),
        )
