"""Many requests on one program: submits the steps that the scheduler makes up, reads their results, makes events of
them.

A few steps are in flight, so that the GPU never waits for the CPU. The next step is submitted before the tokens of the
last one were read, for all sequences whose tokens the GPU chooses. Knows no devices and no files.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Literal

from vkllm.engine.blocks import n_blocks_of
from vkllm.engine.choosing import Choosing
from vkllm.engine.chunks import BUSY_CHUNK_S, ChunkLengths
from vkllm.engine.constraint import Constraint, Vocabulary
from vkllm.engine.events import Event, Failed, Finished, RunStats, Token
from vkllm.engine.prefix_cache import PrefixCache
from vkllm.engine.requests import Request, StateQuery
from vkllm.engine.rows import Rows, doing_of
from vkllm.engine.scheduler import Scheduler
from vkllm.engine.sequence import TokenSequence, refusal, shifted
from vkllm.engine.speculation.drafter import Speculation
from vkllm.engine.speculation.heads import Head
from vkllm.engine.steps import ReportsRows, Step, Steps
from vkllm.errors import DeadlineExceeded, InvalidParameter, VkllmError, counted
from vkllm.gpu.program.step import Part

IN_FLIGHT = 3
"""Steps of a sequence that runs alone that may be submitted before its input token was read."""

IN_FLIGHT_OF_MANY = 2
"""The same for several sequences: a new one waits for those that are submitted already."""

SETTLE_S, PATIENCE_S = 0.002, 0.05
"""How long to wait for the CPU's choices of tokens where nothing is in flight: for all of them, so that their sequences
stay in one step, and then for any, before messages are read."""

MOST_ORIGINS = 256  # whose last tokens are remembered, so that they can be saved


class Batching:
    """The open requests of a program. move_state: answers queries about states, while nothing is in flight. n_in_turn:
    steps that the program runs at the same time, each on another device. longest_text: as in `sequence.refusal`.

    doing: what the device does, for errors. last_tokens: those that were cached last of each origin.
    """

    def __init__(
        self,
        program: Steps,
        cache: PrefixCache,
        lengths: ChunkLengths,
        vocabulary: Vocabulary,
        prompt_rows: ReportsRows,
        move_state: Callable[[StateQuery], Event],
        *,
        n_ctx: int,
        n_sequences: int,
        n_queue: int | None = None,
        longest_text: int | None = None,
        rows_apart: int = 0,
        speculation: Speculation | None = None,
        n_in_turn: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        head = Head(program) if speculation is not None and speculation.head is not None else None
        limits = n_sequences, n_queue, longest_text is None, head, n_in_turn, rows_apart, n_ctx
        self.scheduler = Scheduler(cache, lengths, *limits)
        self.doing = "starting"
        self.last_tokens: OrderedDict[str, list[int]] = OrderedDict()
        self._program = program
        self._cache = cache
        self._lengths = lengths
        self._choosing = Choosing(vocabulary)
        self._prompt_rows = prompt_rows
        self._move_state = move_state
        self._n_ctx = n_ctx
        self._longest_text = longest_text
        self._speculation = speculation
        self._n_in_turn = n_in_turn
        self._clock = clock
        self._open: dict[int, TokenSequence | StateQuery] = {}
        self._cancelled: set[int] = set()
        self._deadlines: dict[int, float] = {}
        self._waiting: dict[TokenSequence, Rows] = {}  # for the tokens that the CPU chooses
        self._events: list[Event] = []
        self._in_flight: deque[Step] = deque()
        self._last_done_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._open or self._events)

    def submit(self, request: Request | StateQuery) -> None:
        """Queues a request. Its events come from `step`. Raises QueueFull."""
        if isinstance(request, StateQuery):
            self.scheduler.add(request)
            self._open[request.id] = request
            return
        problem = refusal(request, self._n_ctx, self._longest_text)
        if problem is not None:
            self._events.append(Failed(request.id, problem))
            return
        sequence = TokenSequence(request, self._n_ctx, self._clock(), not self.scheduler.is_causal)
        self.scheduler.add(sequence)
        if self._speculation is not None and request.is_answered:
            has_head = sequence.can_run_ahead
            sequence.drafter = self._speculation.drafter(request.origin, request.prompt_token_ids, has_head=has_head)
        is_alone = not self._open
        self._open[request.id] = sequence
        if request.grammar is not None:
            self._choosing.prepare(sequence, at_once=is_alone)
        if request.deadline_s is not None:
            self._deadlines[request.id] = sequence.submitted_s + request.deadline_s

    def cancel(self, request_id: int) -> None:
        """Ends a request at the next step, with what it has; unknown ids are ignored."""
        if request_id in self._open:
            self._cancelled.add(request_id)

    def step(self) -> list[Event]:
        """Submits what can be, waits for one step, and returns the events of it. Raises DeviceError."""
        if self._cancelled or self._deadlines:
            self._end_cancelled_and_late()
        if not self._events:
            self._take_chosen()
            if (query := self.scheduler.ready_query()) is not None:
                self._answer(query)
            if not self._submit_steps(self._most_in_flight):
                if self._in_flight:
                    self._read()
                if not self._in_flight:
                    self._take_chosen(SETTLE_S, 0.0 if self._events else PATIENCE_S)
                self._submit_steps(self._most_in_flight - 1)
        if not self._open:
            self._in_flight.clear()  # steps that went too far
        events, self._events = self._events, []
        return events

    def remember(self, origin: str, token_ids: list[int]) -> None:
        """These tokens are what was cached last of an origin."""
        self.last_tokens[origin] = token_ids
        self.last_tokens.move_to_end(origin)
        if len(self.last_tokens) > MOST_ORIGINS:
            self.last_tokens.popitem(last=False)

    def close(self) -> None:
        """Ends the threads."""
        self._choosing.close()

    def _end_cancelled_and_late(self) -> None:
        for request_id in self._cancelled:
            if (entry := self._open.get(request_id)) is not None:
                self._finish(entry, "cancelled")
        self._cancelled.clear()
        now_s = self._clock()
        for request_id in [request_id for request_id, end_s in self._deadlines.items() if end_s <= now_s]:
            sequence = self._open[request_id]
            assert isinstance(sequence, TokenSequence)
            done = counted(sequence.n_generated, "token") + " had come" if sequence.started_s else "it still waited"
            error = f"the request did not end within its {sequence.request.deadline_s:g} s; {done}"
            self._fail(sequence, DeadlineExceeded(error))

    def _answer(self, query: StateQuery) -> None:
        while self._in_flight:
            self._read()
        self.doing = f"{'saving' if query.action == 'save' else 'loading'} a state"
        self.scheduler.remove(query)
        del self._open[query.id]
        self._events.append(self._move_state(query))

    @property
    def _most_in_flight(self) -> int:
        """How many steps may be in flight now: at least one on each device, and one that waits for a device."""
        of_many = IN_FLIGHT_OF_MANY + self._n_in_turn - 1
        if len(self._open) > 1:
            return of_many
        if self._in_flight and self._in_flight[-1].is_chunk:  # a cancel waits for its end
            is_short = self._lengths.expected_s(self._in_flight[-1].n_rows) <= BUSY_CHUNK_S
            return of_many if is_short else self._n_in_turn
        return IN_FLIGHT

    def _submit_steps(self, most: int) -> bool:
        """Submits steps until so many are in flight. A step without answers is read at once, before the next one
        overwrites its rows, and is the last; returns whether there was one."""
        while len(self._in_flight) < min(most, self._most_in_flight) and (rows := self.scheduler.next_step()):
            self._submit_step(rows)
            if not rows[0].sequence.request.is_answered:
                while self._in_flight:
                    self._read()
                return True
        return False

    def _submit_step(self, rows: list[Rows]) -> None:
        now_s = self._clock()
        for part in rows:
            self._events += part.sequence.takes_part(len(rows), now_s, part.start)
        self.doing = doing = doing_of(rows)
        n_rows = sum(part.n_rows + part.n_padding for part in rows)
        submitted = self._program.submit(
            [self._part(part) for part in rows],
            is_prompt=any(part.is_prompt for part in rows),
            n_submits=self._lengths.n_submits(n_rows) if rows[0].is_prompt else 1,
            is_read=any(part.sequence.drafter is not None and part.sequence.drafter.head is not None for part in rows),
        )
        self._in_flight.append(Step(rows, submitted, doing))
        for part in rows:  # while the step runs
            if part.sequence.drafter is not None:
                part.sequence.drafter.catch_up()

    def _part(self, rows: Rows) -> Part:
        sequence, end = rows.sequence, rows.start + rows.n_rows
        tokens: list[int | None] = [*sequence.tokens[rows.start : end - len(rows.drafts)]]
        n = sequence.n_generated + sequence.n_in_flight - rows.n_results
        return Part(
            sequence=sequence.number,
            tokens=[*(tokens or [None]), *rows.drafts],
            position=rows.start,
            blocks=rows.held.blocks[: n_blocks_of(end + rows.n_padding)],
            window_blocks=rows.held.window_blocks[: n_blocks_of(end + rows.n_padding)],
            state_slot=rows.state_slot,
            stored=rows.stored,
            results=[self._choosing.result(sequence, n + i, i) for i in range(rows.n_results)],
            row_before=rows.row_before,
            n_padding=rows.n_padding,
        )

    def _read(self) -> None:
        """Waits for the oldest step in flight and takes its results."""
        step = self._in_flight.popleft()
        self.doing = step.doing
        tokens = self._program.tokens(step.submitted)
        done_s = self._clock()
        if step.is_chunk:
            self._lengths.measured(step.n_rows, done_s - max(step.submitted.submitted_s, self._last_done_s))
        before_s, self._last_done_s = self._last_done_s, done_s
        n_read = n_taken = n_drafted = n_followed = 0
        first_row = 0
        if not step.rows[0].sequence.request.is_answered:
            self._prompt_rows.begin(step.n_rows if len(step.rows) > 1 else 0)
        for part in step.rows:
            sequence, first, row = part.sequence, n_read, first_row
            n_read += part.n_results
            first_row += part.n_rows + part.n_padding
            if sequence.is_over:
                continue
            if part.is_prompt:
                self._events += sequence.progress(part.start + part.n_rows, done_s)
            sequence.n_in_flight -= part.n_results
            if not sequence.request.is_answered:
                self._report(part, row)
            elif sequence.needs_logits and part.n_results:
                rows = (self._program.logits(step.submitted, i) for i in range(first, n_read))
                self._waiting[sequence] = part
                self._choosing.choose(sequence, rows, part.drafts, at_once=self._is_alone)
                n_followed += not part.is_prompt
            elif sequence.constraint is not None and part.n_results:
                self._choosing.follow(sequence, self._right(part, tokens[first:n_read]), at_once=self._is_alone)
                n_followed += not part.is_prompt
            else:
                n_taken += self._take_tokens(part, tokens[first:n_read])
                n_drafted += len(part.drafts)
        is_ahead, took_s = step.submitted.submitted_s <= before_s, done_s - before_s
        if step.submitted.is_new:  # says nothing about the next one of its width
            return
        if self._speculation is not None and n_followed == len(step.rows):
            self._speculation.lengths.timed(step.n_rows, took_s)
        elif self._speculation is not None and n_taken >= step.n_rows - n_drafted:  # a token of each sequence
            if self._speculation.head is not None and step.rows[0].are_predicted:
                self._speculation.head.counted(n_drafted, n_taken - 1, took_s)
            else:
                self._speculation.measured(step.n_rows, n_drafted, n_taken, took_s, is_ahead=is_ahead)

    @property
    def _is_alone(self) -> bool:
        return len(self._open) == 1

    def _right(self, part: Rows, token_ids: list[int]) -> list[int]:
        """The tokens of a part of a step with which its sequence goes on: those behind drafts only where the drafts
        were right. The caches of the other rows are written again by the next step, their states are forgotten."""
        sequence, drafts = part.sequence, part.drafts
        pairs = [*zip(drafts, token_ids, strict=False)]
        n_right = next((i for i, (draft, token_id) in enumerate(pairs) if draft != token_id), len(pairs))
        sequence.n_drafted += len(drafts)
        sequence.n_drafts += bool(drafts)
        sequence.n_accepted += n_right
        if drafts and part.held is sequence.held is not None:
            sequence.n_run, sequence.row_before = part.start + 1 + n_right, n_right
            self._cache.cut(part.held, sequence.n_run)
        return token_ids[: n_right + 1]

    def _take_tokens(self, part: Rows, token_ids: list[int]) -> int:
        """Takes the tokens of a part of a step; returns how many."""
        sequence, token_ids = part.sequence, self._right(part, token_ids)
        for n_taken, token_id in enumerate(token_ids, 1):
            self._take(sequence, Token(sequence.request.id, token_id))
            if sequence.is_over:
                return n_taken
        return len(token_ids)

    def _take_chosen(self, settle_s: float = 0.0, patience_s: float = 0.0) -> None:
        if not self._choosing.is_busy:
            return
        for sequence, chosen in self._choosing.taken(settle_s=settle_s, patience_s=patience_s):
            part = self._waiting.pop(sequence, None)
            if sequence.is_over:
                continue
            match chosen:
                case Constraint():
                    sequence.constraint = chosen
                case list():
                    if part is not None:
                        self._right(part, [token.token_id for token in chosen if isinstance(token, Token)])
                    for i, token in enumerate(chosen, 1):
                        if isinstance(token, InvalidParameter):
                            self._fail(sequence, token)
                            break
                        self._take(sequence, token, is_last=i == len(chosen))
                        if sequence.is_over:
                            break
                case InvalidParameter():  # the answer cannot follow its grammar
                    self._fail(sequence, chosen)

    def _take(self, sequence: TokenSequence, token: Token, *, is_last: bool = True) -> None:
        """A sequence goes on with a token. is_last: whether its constraint has followed no more than that."""
        request, params = sequence.request, sequence.request.params
        self._events.append(token)
        sequence.last_token_s = self._clock()
        sequence.first_token_s = sequence.first_token_s or sequence.last_token_s
        sequence.n_generated += 1
        sequence.tokens.append(token.token_id)
        if sequence.drafter is not None:
            sequence.drafter.append(token.token_id)
        if sequence.held is not None:
            self._cache.known(sequence.held, sequence.tokens, sequence.n_run)
        is_eos = token.token_id in request.stop_token_ids and not params.ignore_eos
        is_complete = is_last and sequence.constraint is not None and sequence.constraint.is_complete
        if is_eos or is_complete or token.token_id in params.stop_token_ids:
            self._finish(sequence, "stop")
        elif sequence.n_generated == params.max_tokens:
            self._finish(sequence, "length")
        elif len(sequence.tokens) >= self._n_ctx:
            if params.context_shift:
                self._shift(sequence)
            else:
                self._finish(sequence, "length")

    def _shift(self, sequence: TokenSequence) -> None:
        """Makes room in a full context. What is left has new positions, so its keys must be computed again: it runs as
        a prompt does."""
        tokens = shifted(sequence.tokens, sequence.request.n_keep)
        if sequence.held is None:  # it waits anyway
            sequence.tokens = tokens
        else:
            self.scheduler.restart(sequence, tokens)
        sequence.n_shifts += 1

    def _report(self, part: Rows, first_row: int) -> None:
        """Reports about a chunk of a prompt without an answer. first_row: where it begins in the step."""
        sequence, end = part.sequence, part.start + part.n_rows
        self._events += self._prompt_rows.events(sequence, part.start, end, first_row)
        sequence.last_token_s = sequence.first_token_s = self._clock()
        if end >= sequence.wanted_rows().stop:
            self._finish(sequence, "length")

    def _finish(self, entry: TokenSequence | StateQuery, reason: Literal["stop", "length", "cancelled"]) -> None:
        if isinstance(entry, StateQuery):
            self._close(entry)
            self._events.append(Finished(entry.id, reason, RunStats(0, 0, 0, 0.0, 0.0, 0.0)))
        else:
            self._close(entry)
            self._events.append(Finished(entry.request.id, reason, entry.stats()))

    def _fail(self, sequence: TokenSequence, error: VkllmError) -> None:
        self._close(sequence)
        self._events.append(Failed(sequence.request.id, error))

    def _close(self, entry: TokenSequence | StateQuery) -> None:
        request_id = entry.id if isinstance(entry, StateQuery) else entry.request.id
        del self._open[request_id]
        self._deadlines.pop(request_id, None)
        if isinstance(entry, TokenSequence) and entry.held is not None and self.scheduler.is_causal:
            self.remember(entry.request.origin, entry.tokens[: entry.n_cacheable])
        self.scheduler.remove(entry)
