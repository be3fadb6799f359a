"""A program without a device, in virtual time: its caches hold token ids, and the tokens that it chooses follow from
what a row sees there. So an answer is right only if every step had the right blocks, windows, states and tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vkllm.engine.batching import Batching
from vkllm.engine.chunks import ChunkLengths
from vkllm.engine.constraint import Vocabulary
from vkllm.engine.events import Event, Failed, Finished, Scores, StateAnswer, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.prefix_cache import PrefixCache
from vkllm.engine.requests import Request, StateQuery
from vkllm.engine.sampler import Floats
from vkllm.engine.sequence import TokenSequence
from vkllm.engine.speculation.drafter import Speculation
from vkllm.gpu.program.step import N_SLOTS, Part, Result, step_width

N_VOCAB = 1000
BLOCK = 32


@dataclass(frozen=True)
class Fake:
    """A model and a device. row_s: of a wide step; narrow ones take step_s, whatever their rows. record_s: how much
    longer the first steps of each number of rows take, one for each slot."""

    n_blocks: int = 64
    n_ctx: int = 512
    n_sequences: int = 8
    window: int = 0
    n_window_blocks: int = 0
    n_state_slots: int = 0
    step_s: float = 0.004
    row_s: float = 0.0002
    record_s: float = 0.0


@dataclass
class Step:
    submitted_s: float
    done_s: float
    tokens: list[int]
    logits: list[Floats]
    is_new: bool


class FakeProgram:
    """Runs steps when they are submitted, as a device does them in this order; `tokens` lets the time pass."""

    def __init__(self, model: Fake) -> None:
        self.model = model
        self.now_s = 100.0
        self._free_s = 0.0
        self._cache = np.full((max(model.n_blocks, 1), BLOCK), -1, np.int64)
        self._window_cache = np.full((max(model.n_window_blocks, 1), BLOCK), -1, np.int64)
        self._states: dict[int, int] = {}
        self._next_token = [-1] * model.n_sequences
        self.steps: list[list[Part]] = []
        self._recorded: set[tuple[int, int]] = set()

    def clock(self) -> float:
        return self.now_s

    def submit(
        self, parts: Sequence[Part], *, is_prompt: bool = False, n_submits: int = 1, is_read: bool = False
    ) -> Step:
        model, n_rows = self.model, sum(len(part.tokens) for part in parts)
        assert len({part.sequence for part in parts}) == len(parts) <= 32
        assert n_rows <= 32 or (len(parts) == 1 and n_rows <= 512 and is_prompt)
        self.steps.append(list(parts))
        tokens: list[int] = []
        logits: list[Floats] = []
        for part in parts:
            self._run(part, tokens, logits)
        key = step_width(n_rows, is_prompt=is_prompt), len(self.steps) % N_SLOTS
        is_new = key not in self._recorded
        self._recorded.add(key)
        self.now_s += 0.0001 + is_new * model.record_s
        took_s = n_rows * model.row_s if n_rows > 32 else model.step_s
        self._free_s = max(self.now_s, self._free_s) + took_s
        return Step(self.now_s, self._free_s, tokens, logits, is_new)

    def tokens(self, step: Step) -> list[int]:
        self.now_s = max(self.now_s, step.done_s)
        return step.tokens

    def logits(self, step: Step, i: int) -> Floats:
        return step.logits[i]

    def _run(self, part: Part, tokens: list[int], logits: list[Floats]) -> None:
        model = self.model
        assert 0 <= part.sequence < model.n_sequences and None not in part.tokens[1:]
        ids = [self._next_token[part.sequence] if token is None else token for token in part.tokens]
        end = part.position + len(ids)
        assert len(part.blocks) == -(-end // BLOCK) == len(part.window_blocks or part.blocks)
        for i, token in enumerate(ids):
            place, within = divmod(part.position + i, BLOCK)
            self._cache[part.blocks[place], within] = token
            if model.window:
                self._window_cache[part.window_blocks[place], within] = token
        state = 0 if part.state_slot is None else self._states[part.state_slot]
        assert (part.state_slot is None) == (part.position == 0) or not model.n_state_slots
        states = [state]
        for token in ids:
            states.append(zlib.crc32(token.to_bytes(4, "little"), states[-1]))
        for row, slot in part.stored.items():
            assert slot != part.state_slot
            self._states[slot] = states[row + 1]
        assert not model.n_state_slots or len(ids) - 1 in part.stored
        for i in range(len(ids) - len(part.results), len(ids)):
            seen = self._cache[list(part.blocks)].reshape(-1)[: part.position + i + 1]
            value = zlib.crc32(seen.tobytes())
            if model.window:
                first = max(len(seen) - model.window, 0)
                table = [block for block in part.window_blocks]
                value = zlib.crc32(self._window_cache[table].reshape(-1)[first : len(seen)].tobytes(), value)
            if model.n_state_slots:
                value = zlib.crc32(states[i + 1].to_bytes(4, "little"), value)
            self._choose(part, part.results[i - len(ids)], value, tokens, logits)

    def _choose(self, part: Part, result: Result, value: int, tokens: list[int], logits: list[Floats]) -> None:
        number = 0 if result.draw is None else result.draw.number
        token = (value ^ number) % N_VOCAB
        if result.mask is not None:
            allowed = np.flatnonzero(np.unpackbits(result.mask.view(np.uint8), count=N_VOCAB, bitorder="little"))
            token = int(allowed[token % len(allowed)])
        values = np.zeros(N_VOCAB, np.float32)
        values[token] = 9.0
        logits.append(values)
        tokens.append(-1 if result.wants_logits else token)
        if not result.wants_logits:
            self._next_token[part.sequence] = token


class FakePromptRows:
    """Scores are the prompt's token ids."""

    def begin(self, n_rows: int) -> None:
        assert n_rows == 0, "texts do not share steps here"

    def events(self, run: TokenSequence, start: int, end: int, first_row: int = 0) -> list[Event]:
        first = max(start, run.n_reported)
        if first >= end:
            return []
        run.n_reported = end
        return [Scores(run.request.id, tuple(map(float, run.request.prompt_token_ids[first + 1 : end + 1])))]


class Session:
    """A fake program with its requests. events: all so far, with the time of each."""

    def __init__(
        self,
        model: Fake,
        n_queue: int | None = None,
        token_bytes: tuple[bytes, ...] = (),
        speculation: Speculation | None = None,
    ) -> None:
        self.program = FakeProgram(model)
        self.cache = PrefixCache(model.n_blocks, model.n_window_blocks, model.window, model.n_state_slots)
        self.lengths = ChunkLengths(0.1, self.program.clock)
        self.lengths.measured(8, 8 * model.row_s)
        self.batching = Batching(
            self.program,
            self.cache,
            self.lengths,
            Vocabulary(token_bytes, {0}),
            FakePromptRows(),
            lambda query: StateAnswer(query.id, tuple(self.batching.last_tokens.get(query.origin, ()))),
            n_ctx=model.n_ctx,
            n_sequences=model.n_sequences,
            n_queue=n_queue,
            speculation=speculation,
            clock=self.program.clock,
        )
        self.events: list[tuple[float, Event]] = []

    def submit(self, request: Request | StateQuery) -> None:
        self.batching.submit(request)

    def step(self) -> None:
        self.events += [(self.program.now_s, event) for event in self.batching.step()]

    def run(self, *requests: Request | StateQuery, most_steps: int = 100_000) -> None:
        for request in requests:
            self.submit(request)
        while self.batching.has_work:
            self.step()
            most_steps -= 1
            assert most_steps > 0, "somebody waits for ever"

    def tokens(self, request_id: int) -> list[int]:
        return [e.token_id for _, e in self.events if isinstance(e, Token) and e.request_id == request_id]

    def times(self, request_id: int) -> list[float]:
        return [time for time, e in self.events if isinstance(e, Token) and e.request_id == request_id]

    def end(self, request_id: int) -> Finished | Failed:
        (end,) = [e for _, e in self.events if isinstance(e, Finished | Failed) and e.request_id == request_id]
        return end

    def check_nothing_is_lost(self) -> None:
        """All blocks are free, and all slots of states may be used."""
        cache = self.cache
        assert cache.pool.n_free == cache.pool.n_blocks and cache.windows.n_free == cache.windows.n_blocks
        assert cache.states.n_available == cache.states.n_slots
        assert not self.batching.scheduler.running and not self.batching.scheduler.waiting


def request(request_id: int, prompt: Sequence[int], n: int = 8, origin: str = "", **options: object) -> Request:
    fields = {name: options.pop(name) for name in ("grammar", "deadline_s", "score_from", "n_keep") if name in options}
    params = SamplingParams(max_tokens=n, **({"temperature": 0} | options))  # type: ignore[arg-type]
    return Request(request_id, tuple(prompt), params, frozenset({0}), origin=origin, **fields)  # type: ignore[arg-type]
