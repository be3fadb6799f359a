"""Which slots hold the states of layers, and behind which beginnings of sequences.

A state cannot be cut back to an earlier token, so some states of earlier tokens are kept: a request that begins with
the same tokens goes on from the last of them that its tokens share. A stored state is never changed, so sequences share
it. Slots are chosen here; steps read and store them (`gpu/program/step.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vkllm.engine.blocks import Key
from vkllm.gpu.program.kernels import STATE_ROWS
from vkllm.model.memory.kernel_sizes import KV_BLOCK

N_NEWEST = 3
"""Newest states of an answer: steps that are in flight when it ends have gone further than its tokens."""

N_LAST = 2
"""States that stay of the end of an answer: behind its last token, and behind the one before."""

ANSWER_TOKENS = 512
"""A state of an answer is kept after every so many tokens."""

SLOTS_EACH = 4
"""Slots that a running sequence may need at once: what its next step reads, and those of steps in flight."""


@dataclass(eq=False)
class Chain:
    """The states of one sequence, running or ended. needed: slots that may not be used otherwise, by the number of
    tokens that they are behind."""

    needed: dict[int, int] = field(default_factory=dict)
    passing: list[int] = field(default_factory=list)  # states of an answer that are only kept for steps in flight
    shared: int = 0  # where two requests differed: a third one may begin like them
    before_answer: int = 0  # shortly before the end of a prompt: the next one may leave out what followed
    used_at: int = 0


@dataclass(eq=False)
class _State:
    """What a slot holds. place: key before the last block, and the tokens behind that; None: not known yet."""

    n_tokens: int
    chain: Chain
    place: tuple[Key, tuple[int, ...]] | None = None


class StateSlots:
    """n_slots slots, 0 if no layer has a state."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self._free = list(range(n_slots - 1, -1, -1))
        self._states: dict[int, _State] = {}
        self._places: dict[Key, dict[tuple[int, ...], int]] = {}
        self._n_needing = [0] * n_slots  # how many running sequences need a slot
        self._n_needed = 0
        self._n_rows = 0  # rows of all sequences so far: the clock of `used_at`

    @property
    def are_there(self) -> bool:
        """Whether any layer has a state."""
        return self.n_slots > 0

    @property
    def most_sequences(self) -> int:
        """How many sequences can run at once."""
        return max((self.n_slots - N_LAST) // SLOTS_EACH, 1)

    @property
    def n_available(self) -> int:
        """Slots that a step may store states in."""
        return self.n_slots - self._n_needed

    def found(self, keys: Sequence[Key], token_ids: Sequence[int], most: int) -> dict[int, int]:
        """Slots of states behind beginnings of a sequence, of at most `most` tokens, by number of tokens.

        keys: of its first blocks, as far as these are known; keys[i] is the key before block i."""
        slots: dict[int, int] = {}
        for i, key in enumerate(keys):
            for tail, slot in self._places.get(key, {}).items():
                start = i * KV_BLOCK
                n = start + len(tail)
                if n <= most and tuple(token_ids[start:n]) == tail:
                    slots[n] = slot
        return slots

    def begin(self, n_tokens: int, found: dict[int, int]) -> Chain:
        """A sequence goes on behind n_tokens tokens. found: as `found` gave it."""
        chain = Chain(used_at=self._n_rows)
        for n, slot in found.items():
            if n <= n_tokens:
                self._states[slot].chain = chain
        if n_tokens and self.n_slots:
            self._need(chain, n_tokens, found[n_tokens])
        return chain

    def slot(self, chain: Chain, n_tokens: int) -> int | None:
        """The slot with the states behind so many tokens; None for none: they are zeros, or there are no states."""
        return chain.needed[n_tokens] if n_tokens and self.n_slots else None

    def store(
        self,
        chain: Chain,
        start: int,
        n_rows: int,
        *,
        is_prompt: bool,
        is_end: bool = False,
        needed_from: int,
        rows: Iterable[int] = (),
    ) -> dict[int, int]:
        """Where a step stores its states, by row; at least one slot must be available.

        start: tokens before it. is_end: of a prompt. needed_from: states behind fewer tokens are needed no longer.
        rows: rows of a step of an answer whose states are needed, besides the last.
        """
        if not self.n_slots:
            return {}
        self._n_rows += n_rows
        chain.used_at = self._n_rows
        self._need_only(chain, needed_from)
        ends = [*(start + row + 1 for row in rows if row != n_rows - 1), start + n_rows]
        whole = (n_rows - 1) // STATE_ROWS * STATE_ROWS
        if is_end:  # the next prompt may differ shortly before the end of this one
            chain.before_answer = start + whole
            if whole and self.n_available > 1:
                ends.insert(0, start + whole)
        for end in ends:
            slot = self._taken(chain)
            self._states[slot] = _State(end, chain)
            self._need(chain, end, slot)
            if not is_prompt and end % ANSWER_TOKENS:
                chain.passing.append(slot)
        return {end - start - 1: chain.needed[end] for end in ends}

    def cut(self, chain: Chain, n_tokens: int) -> None:
        """A sequence goes on behind n_tokens tokens: the states behind more are of rows that were refused, and those
        behind fewer are needed no longer."""
        self._need_only(chain, n_tokens)
        refused = [self._need_no_more(chain, n) for n in [*chain.needed] if n > n_tokens]
        chain.passing = [slot for slot in chain.passing if slot not in refused]
        for slot in refused:
            self._forget(slot)

    def known(self, chain: Chain, keys: Sequence[Key], token_ids: Sequence[int]) -> None:
        """These are a running sequence's tokens: its states behind them can be found from now on."""
        for n, slot in chain.needed.items():
            state = self._states[slot]
            if n <= len(token_ids) and state.place is None:
                start = n // KV_BLOCK * KV_BLOCK
                self._put(slot, state, keys[n // KV_BLOCK], tuple(token_ids[start:n]))

    def end(self, chain: Chain, keys: Sequence[Key], token_ids: Sequence[int]) -> None:
        """A sequence has ended, or gives its slots back, behind these tokens; later states are forgotten."""
        self.known(chain, keys, token_ids)
        passing = [slot for slot in chain.passing if self._is_of(slot, chain)]
        for slot in {*(self._need_no_more(chain, n) for n in [*chain.needed]), *passing}:
            is_old = slot in passing and self._states[slot].n_tokens <= len(token_ids) - N_LAST
            if self._states[slot].place is None or (is_old and self._is_of(slot, chain)):
                self._forget(slot)
        chain.passing.clear()

    def _need_only(self, chain: Chain, needed_from: int) -> None:
        """A chain's states behind fewer tokens may go, and those go that nobody could find."""
        for n in [n for n in chain.needed if n < needed_from]:
            slot = self._need_no_more(chain, n)
            if self._states[slot].place is None:
                self._forget(slot)

    def _is_of(self, slot: int, chain: Chain) -> bool:
        return slot in self._states and self._states[slot].chain is chain

    def _need(self, chain: Chain, n_tokens: int, slot: int) -> None:
        chain.needed[n_tokens] = slot
        self._n_needed += not self._n_needing[slot]
        self._n_needing[slot] += 1

    def _need_no_more(self, chain: Chain, n_tokens: int) -> int:
        slot = chain.needed.pop(n_tokens)
        self._n_needing[slot] -= 1
        self._n_needed -= not self._n_needing[slot]
        return slot

    def _taken(self, chain: Chain) -> int:
        """A slot without a state that is worth keeping."""
        chain.passing = [slot for slot in chain.passing if self._is_of(slot, chain)]
        while len(chain.passing) >= N_NEWEST and not self._n_needing[chain.passing[0]]:
            self._forget(chain.passing.pop(0))
        if not self._free:
            self._forget(self._least_useful())
        return self._free.pop()

    def _least_useful(self) -> int:
        """A slot without whose state little must be run again, compared to how far back and how long ago used it is."""
        chains: dict[Chain, list[int]] = {}
        for slot, state in self._states.items():
            chains.setdefault(state.chain, []).append(slot)
        best, best_value = -1, (True, True, float("inf"))
        for chain, slots in chains.items():
            slots.sort(key=lambda slot: self._states[slot].n_tokens)
            kept = [self._states[slot].n_tokens for slot in slots]
            idle = self._n_rows - chain.used_at
            for before, n, after, slot in zip([0, *kept], kept, [*kept[1:], kept[-1] + 1], slots, strict=False):
                is_valued = not idle and n in (chain.shared, chain.before_answer)
                gain = (after - before) / (kept[-1] + 1 - n + idle)
                value = (slot in chain.passing, is_valued, gain)
                if not self._n_needing[slot] and value < best_value:
                    best, best_value = slot, value
        assert best >= 0, "no slot is available"
        return best

    def _put(self, slot: int, state: _State, key: Key, tail: tuple[int, ...]) -> None:
        tails = self._places.setdefault(key, {})
        if tail not in tails:
            tails[tail] = slot
            state.place = key, tail

    def _forget(self, slot: int) -> None:
        state = self._states.pop(slot)
        if state.place is not None:
            key, tail = state.place
            del self._places[key][tail]
            if not self._places[key]:
                del self._places[key]
        self._free.append(slot)
