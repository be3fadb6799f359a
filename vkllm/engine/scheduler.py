"""Which rows of which sequences make the next step.

Running sequences come first, with the rows of their next tokens; the ends of prompts that fit beside them go along.
Longer prompts run in chunks, in steps of their own, which take turns with those of running sequences and are short
while others wait for tokens. All is first come, first served. Where the cache is full, the sequence that came last
gives back what it holds, waits again, and is computed again later. Pure: knows counts and times, no device.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field, replace
from typing import Protocol

from vkllm.engine.blocks import n_blocks_of
from vkllm.engine.chunks import BUSY_CHUNK_S, CHUNK_S
from vkllm.engine.prefix_cache import Held, PrefixCache
from vkllm.engine.requests import StateQuery
from vkllm.engine.rows import Rows
from vkllm.engine.sequence import TokenSequence
from vkllm.engine.speculation.heads import Head
from vkllm.errors import QueueFull, counted
from vkllm.gpu.program.kernels import MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.step import WIDTHS

MOST_ROWS = max(width for width in WIDTHS if width <= MAX_NARROW)
"""Rows of a step of several sequences: wider ones are of one."""

MOST_STATES = 8
"""Rows of a step that can all have the states behind them stored."""

Waiting = TokenSequence | StateQuery


class Lengths(Protocol):
    """What a scheduler asks about chunks; `vkllm.engine.chunks.ChunkLengths` answers."""

    def n_rows(self, limit_s: float = CHUNK_S) -> int:
        """Rows of a chunk that takes at most so long."""


@dataclass
class Scheduler:
    """The sequences of a program. n_sequences: most that run at once. n_queue: most that wait; None: any number.
    n_in_turn: steps that run at the same time, each on another device, so that each has a share of the sequences.

    head: drafts for a sequence that runs alone. rows_apart: where texts in a wide step may begin; 0: there is one.
    n_ctx: tokens of a sequence. running: in the order in which they came. waiting: so too, with queries about states.
    """

    cache: PrefixCache
    lengths: Lengths
    n_sequences: int
    n_queue: int | None = None
    is_causal: bool = True
    head: Head | None = None
    n_in_turn: int = 1
    rows_apart: int = 0
    n_ctx: int = 0
    running: list[TokenSequence] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        most = self.cache.states.most_sequences if self.cache.states.are_there else self.n_sequences
        self._numbers = list(range(min(self.n_sequences, most) - 1, -1, -1))
        self._n_queries = 0
        self._n_added = 0
        self._is_chunk_turn = False
        self._is_oldest_turn = True
        self._free_when_blocked: int | None = None  # blocks, when the first that waits did not fit

    def add(self, entry: Waiting) -> None:
        """Puts something at the end of the queue. Raises QueueFull."""
        if self.n_queue is not None and len(self.waiting) - len(self._numbers) >= self.n_queue:
            raise QueueFull(
                f"{counted(len(self.waiting), 'request')} wait already and the queue holds no more; try again later"
            )
        if isinstance(entry, TokenSequence):
            entry.order = self._n_added = self._n_added + 1
        else:
            self._n_queries += 1
        self.waiting.append(entry)

    def remove(self, entry: Waiting, *, is_kept: bool = True) -> None:
        """Takes something out that has ended. is_kept: others may use what is cached of it."""
        self._free_when_blocked = None
        if isinstance(entry, StateQuery):
            self._n_queries -= 1
            self.waiting.remove(entry)
            return
        entry.is_over = True
        if entry in self.running:
            self._give_back(entry, is_kept=is_kept)
        else:
            self.waiting.remove(entry)

    def restart(self, sequence: TokenSequence, tokens: list[int]) -> None:
        """A running sequence goes on with other tokens, which are computed like a prompt."""
        number = sequence.number
        place = self.running.index(sequence)
        self._give_back(sequence)
        sequence.tokens = tokens
        self._numbers.remove(number)
        self._begin(sequence, number, place)

    def ready_query(self) -> StateQuery | None:
        """A query about an origin of which nothing that came before it is open, if there is one."""
        if not self._n_queries:
            return None
        open_origins = {sequence.request.origin for sequence in self.running}
        for entry in self.waiting:
            origin = _origin(entry)
            if isinstance(entry, StateQuery) and origin not in open_origins:
                return entry
            open_origins.add(origin)
        return None

    def restored(self, origin: str, n_tokens: int) -> Held:
        """Holds room for tokens whose keys, values and states come from a file: of layers with a window, for no more
        than that. Sequences that came last are put back for it."""
        held = self.cache.begin(origin, (), 0)
        while not self.cache.can_restore(held, n_tokens):
            self._put_back(self.running[-1])
        self.cache.restore(held, n_tokens)
        return held

    def next_step(self) -> list[Rows]:
        """The rows of the next step, which count as submitted; none if nothing can go on now."""
        self._admit()
        decoding = [sequence for sequence in self.running if sequence.can_decode]
        is_alone = len(self.running) == 1
        decoding = [s for s in decoding if not _waits_to_draft(s, len(decoding), is_alone=is_alone)]
        decoding = self._share(decoding)
        prompts = [sequence for sequence in self.running if sequence.n_prompt_rows]
        if not (decoding or prompts):
            return []
        n_chunk = self.lengths.n_rows(BUSY_CHUNK_S if self._has_readers else CHUNK_S)
        alone = [s for s in prompts if self._runs_alone(s, n_chunk, len(decoding))]
        rows: list[Rows] = []
        if alone and (self._is_chunk_turn or (len(alone) == len(prompts) and not decoding)):
            rows = self._chunk(alone, n_chunk)
        is_chunk = bool(rows)
        if not rows:
            rows = self._narrow(decoding, [s for s in prompts if s not in alone], n_chunk)
        if not rows and alone:
            rows, is_chunk = self._chunk(alone, n_chunk), True
        self._is_chunk_turn = not is_chunk
        for part in rows:
            self._submitted(part)
        return rows

    @property
    def _has_readers(self) -> bool:
        """Whether others than the one that a chunk is of wait for tokens."""
        return len(self.running) > 1 and any(sequence.request.is_answered for sequence in self.running)

    def _share(self, decoding: list[TokenSequence]) -> list[TokenSequence]:
        """Of sequences that could decode, those of the next step: where steps run side by side, those that have waited
        longest, as many as each of the steps has."""
        if self.n_in_turn == 1:
            return decoding
        n_share = -(-sum(sequence.is_decoding for sequence in self.running) // self.n_in_turn)
        return sorted(decoding, key=lambda sequence: sequence.stepped_at)[:n_share]

    def _runs_alone(self, sequence: TokenSequence, n_chunk: int, n_decoding: int) -> bool:
        """Whether the next rows of a prompt have to be a step of their own."""
        n_free = MOST_ROWS - n_decoding
        # it does not fit beside the others, and rows few by few would take many steps
        is_slow = sequence.n_prompt_rows > n_free and n_chunk > (2 * n_free if n_decoding else n_free)
        return is_slow or not sequence.request.is_answered

    def _chunk(self, prompts: list[TokenSequence], n_chunk: int) -> list[Rows]:
        """A chunk of the oldest prompt, or, in turn, of one that fewer chunks end; short prompts run together."""
        rows: list[Rows] = []
        n_free = n_chunk
        for sequence in self._in_turn(prompts, n_chunk):
            if sequence.held is None or (rows and not self._goes_along(sequence, n_free)):
                continue
            if (part := self._prompt_rows(sequence, n_free)) is not None:
                rows.append(part)
                if not sequence.request.is_answered:
                    return self._texts(part, prompts, n_chunk)
                if part.n_rows >= MOST_ROWS:
                    break
                n_free = MOST_ROWS - sum(part.n_rows for part in rows)  # short prompts run together
        return [part for part in rows if part.sequence.held is part.held]

    def _in_turn(self, prompts: list[TokenSequence], n_rows: int) -> list[TokenSequence]:
        """The oldest first; where a step of n_rows does not end it, in turn, those that fewer such steps end."""
        if prompts and 0 < n_rows < prompts[0].n_prompt_rows:
            self._is_oldest_turn = not self._is_oldest_turn
            if not self._is_oldest_turn:
                return sorted(prompts, key=lambda sequence: -(-sequence.n_prompt_rows // n_rows))
        return prompts

    def _texts(self, first: Rows, prompts: list[TokenSequence], n_chunk: int) -> list[Rows]:
        """With a whole text that is to be embedded, others in the same step, as far as it and the cache have room."""
        rows, n_free = [first], min(n_chunk, MAX_ROWS)
        if not (self.rows_apart and first.is_end and _is_embedded(first.sequence)):
            return rows
        for sequence in prompts:
            if sequence is first.sequence or sequence.held is None or not _is_embedded(sequence):
                continue
            before, n_rows = rows[-1], sequence.n_prompt_rows
            n_padding = -before.n_rows % self.rows_apart
            n_free -= before.n_rows + n_padding
            end = before.start + before.n_rows + n_padding
            has_room = len(rows) < MAX_NARROW and n_rows <= n_free and end <= self.n_ctx
            if not (has_room and self.cache.can_grow(before.held, before.start, end)):
                break
            self.cache.grow(before.held, before.start, end)
            if not self.cache.can_grow(sequence.held, sequence.n_run, sequence.n_run + n_rows):
                break
            part = self._prompt_rows(sequence, n_free)
            if part is None:
                break
            rows = [*rows[:-1], replace(before, n_padding=n_padding), part]
            if not part.is_end:
                break
        return rows

    def _goes_along(self, sequence: TokenSequence, n_free: int) -> bool:
        """Whether all that is left of a prompt fits into a step of another one."""
        return sequence.request.is_answered and sequence.n_prompt_rows <= n_free

    def _narrow(self, decoding: list[TokenSequence], prompts: list[TokenSequence], n_chunk: int) -> list[Rows]:
        """A step of several sequences: rows of next tokens, then rows of prompts as far as there is room. Drafts leave
        every other sequence its row and the prompts theirs, so that none waits for the end of an answer."""
        rows: list[Rows] = []
        if len(decoding) > MOST_ROWS:  # those that have waited longest
            decoding = sorted(decoding, key=lambda sequence: sequence.stepped_at)[:MOST_ROWS]
        n_free, n_prompts = MOST_ROWS, sum(sequence.n_prompt_rows for sequence in prompts)
        n_drafts = max(n_free - len(decoding) - n_prompts, 0)
        for sequence in decoding:
            if sequence.held is not None and (part := self._next_rows(sequence, MOST_ROWS - n_free, n_drafts)):
                rows.append(part)
                n_free -= part.n_rows
                n_drafts -= part.n_rows - 1
        n_free = min(n_free, max(n_chunk, len(prompts)))  # a row for each that runs, however slow the device
        for sequence in self._in_turn(prompts, n_free):
            if n_free and sequence.held is not None and (part := self._prompt_rows(sequence, n_free)) is not None:
                rows.append(part)
                n_free -= part.n_rows
        return [part for part in rows if part.sequence.held is part.held]  # others were put back for them

    def _next_rows(self, sequence: TokenSequence, n_before: int, n_drafts: int) -> Rows | None:
        """The row of a next token, behind n_before rows of others, and those of n_drafts drafts at most."""
        drafts: list[int] = []
        most = min(n_drafts, sequence.n_left - 1)
        if self.cache.states.are_there:  # each row needs a slot
            most = min(most, self.cache.states.n_available - 1, MOST_STATES - 1)
        if (drafter := sequence.drafter) is not None and not sequence.n_in_flight:
            drafts = drafter.draft(most, 1 + n_before, sequence.constraint, waits=sequence.needs_logits)
        predicted = [] if drafts or len(self.running) > 1 else self._predicted(sequence, most)
        drafted = tuple(drafts or predicted)
        rows = self._rows(sequence, 1 + len(drafted), is_prompt=False, is_end=False, drafts=drafted)
        return replace(rows, are_predicted=True) if rows is not None and predicted else rows

    def _predicted(self, sequence: TokenSequence, most: int) -> list[int]:
        """Drafts of the model's head, as far as they pay and there is room for them."""
        held, start, drafter = sequence.held, sequence.n_run, sequence.drafter
        if self.head is None or held is None or drafter is None or sequence.n_in_flight:
            return []
        n = drafter.n_predicted(most)
        if n == 0 or not self.cache.can_grow(held, start, start + 1 + n):
            return []
        self.cache.grow(held, start, start + 1 + n)
        return self.head.drafts(sequence.number, held, sequence.tokens, sequence.row_before, n)

    def _prompt_rows(self, sequence: TokenSequence, most: int) -> Rows | None:
        """The next rows of a prompt, at most so many; all of them for models that read in both directions."""
        held = self._refreshed(sequence)
        start, n_rows = sequence.n_run, sequence.n_prompt_rows
        end = self.cache.chunk_end(held, start, start + min(n_rows, most)) if self.is_causal else start + n_rows
        return self._rows(sequence, end - start, is_prompt=True, is_end=end - start == n_rows)

    def _rows(
        self, sequence: TokenSequence, n_rows: int, *, is_prompt: bool, is_end: bool, drafts: tuple[int, ...] = ()
    ) -> Rows | None:
        """Rows with all that they need of the cache; None if there is no room, and nobody that came later."""
        held, start = sequence.held, sequence.n_run
        assert held is not None
        while not self.cache.can_grow(held, start, start + n_rows):
            newest = self.running[-1]
            if newest is sequence:
                return None
            self._put_back(newest)
        self.cache.grow(held, start, start + n_rows)
        slot = self.cache.states.slot(held.chain, start)
        stored = self.cache.states.store(
            held.chain,
            start,
            n_rows,
            is_prompt=is_prompt,
            is_end=is_end,
            needed_from=sequence.n_cacheable,
            rows=range(len(drafts)),
        )
        row = sequence.row_before
        return Rows(sequence, held, start, n_rows, is_prompt, is_end, slot, stored, drafts, row_before=row)

    def _submitted(self, part: Rows) -> None:
        sequence = part.sequence
        sequence.n_run += part.n_rows
        sequence.row_before = part.n_rows - 1 if part.n_rows <= MAX_NARROW else 0
        sequence.n_in_flight += part.n_results
        sequence.is_drafting = bool(part.drafts)
        sequence.is_decoding |= part.is_end and sequence.request.is_answered
        self._n_added += 1
        sequence.stepped_at = self._n_added
        if part.is_prompt and self.is_causal:
            self.cache.known(part.held, sequence.tokens, sequence.n_run)

    def _admit(self) -> None:
        """Lets those that wait begin, in order, as far as there is room."""
        if not (self.waiting and self._numbers):
            return
        blocked: set[str] = set()  # origins whose states are to be saved or loaded first
        for entry in list(self.waiting):
            if not self._numbers:
                return
            origin = _origin(entry)
            if isinstance(entry, StateQuery):
                blocked.add(origin)
            elif origin not in blocked:
                if entry.n_in_flight or entry.choosing is not None or not self._fits(entry):
                    return
                self.waiting.remove(entry)
                place = bisect.bisect([sequence.order for sequence in self.running], entry.order)
                self._begin(entry, self._numbers.pop(), place)

    def _fits(self, sequence: TokenSequence) -> bool:
        """Whether there is room for all that a sequence needs to begin, beside a block more for each that runs."""
        if not self.running:
            return True
        pool = self.cache.pool
        if self._free_when_blocked is not None and pool.n_free <= self._free_when_blocked:
            return False
        held = self._held(sequence)
        n_more = n_blocks_of(len(sequence.tokens) + 1) - len(held.blocks)
        n_free = pool.n_free
        self.cache.end(held, sequence.tokens[: held.n_cached])
        self._free_when_blocked = None if n_more + len(self.running) <= n_free else pool.n_free
        return self._free_when_blocked is None

    def _held(self, sequence: TokenSequence) -> Held:
        most = len(sequence.tokens) - 1 if sequence.request.is_answered else sequence.n_reported
        return self.cache.begin(sequence.request.origin, sequence.tokens, most if self.is_causal else 0)

    def _begin(self, sequence: TokenSequence, number: int, place: int) -> None:
        sequence.number = number
        sequence.held = self._held(sequence)
        sequence.n_run = sequence.held.n_cached
        sequence.is_decoding, sequence.row_before = False, None
        self.running.insert(place, sequence)

    def _refreshed(self, sequence: TokenSequence) -> Held:
        """What a sequence holds; if it has not run yet, with what others have cached since it began."""
        held = sequence.held
        assert held is not None
        if sequence.n_run == held.n_cached and self.is_causal and len(self.running) > 1:
            self.cache.end(held, sequence.tokens[: held.n_cached])
            sequence.held = held = self._held(sequence)
            sequence.n_run = held.n_cached
        if sequence.n_cached is None:
            sequence.n_cached = held.n_cached
        return held

    def _put_back(self, sequence: TokenSequence) -> None:
        """A running sequence waits again; its tokens, of which some may be in flight, are kept."""
        self._give_back(sequence)
        orders = [0 if isinstance(entry, StateQuery) else entry.order for entry in self.waiting]
        place = next((i for i, order in enumerate(orders) if order > sequence.order), len(orders))
        self.waiting.insert(place, sequence)

    def _give_back(self, sequence: TokenSequence, *, is_kept: bool = True) -> None:
        assert sequence.held is not None
        is_kept &= self.is_causal
        self.cache.end(sequence.held, sequence.tokens[: sequence.n_cacheable], is_kept=is_kept)
        self.running.remove(sequence)
        self._numbers.append(sequence.number)
        sequence.held, sequence.number = None, -1
        sequence.n_run, sequence.is_decoding = 0, False


def _is_embedded(sequence: TokenSequence) -> bool:
    return sequence.request.pooling is not None


def _waits_to_draft(sequence: TokenSequence, n_decoding: int, *, is_alone: bool) -> bool:
    """Whether the next row of a sequence waits until its token is known, because drafts behind it are worth that."""
    drafter, most = sequence.drafter, sequence.n_left - sequence.n_in_flight - 1
    if drafter is None or not sequence.n_in_flight:
        return False
    return drafter.n_worthwhile(most, n_decoding) > 0 or (is_alone and drafter.n_predicted(most) > 0)


def _origin(entry: Waiting) -> str:
    return entry.origin if isinstance(entry, StateQuery) else entry.request.origin
