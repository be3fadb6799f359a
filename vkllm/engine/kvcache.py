"""The key/value cache as blocks, and which tokens lie in it.

One sequence at a time holds all blocks, in order. What a finished request leaves stays, so that the next one
that begins with the same tokens (the next turn of a chat) starts where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from vkllm.engine.kept_states import KeptStates

FEWEST_SHARED = 8
"""A chunk of a prompt ends where the prompt before it went on otherwise, unless there are fewer tokens up to there."""


class KVCache:
    """Cache of n_blocks blocks of block_tokens tokens.

    tokens: the ids whose keys and values are stored. origin: whose they are; only requests of the same origin use them.

    window, ring_tokens: layers that see only the last `window` tokens keep no more than `ring_tokens`, where a token
    replaces the one that many positions before it. So a sequence can be continued only where its window is still there;
    a restored one only at its end, since a saved state has no more than the window, also where ring_tokens are all.
    0: no layer does that.

    states: of layers that have one; a sequence can be continued only where one was kept.
    """

    def __init__(
        self, n_blocks: int, block_tokens: int, window: int = 0, ring_tokens: int = 0, n_state_slots: int = 0
    ) -> None:
        self.block_tokens = block_tokens
        self.tokens: list[int] = []
        self.origin = ""
        self.states = KeptStates(n_state_slots)
        self._blocks = list(range(n_blocks))
        self._window = window
        self._ring_tokens = ring_tokens
        self._n_shared = 0  # tokens of the prompt that those of the last one began with
        self._n_written = 0  # positions that may have replaced others since the sequence began

    def belong_to(self, origin: str) -> None:
        """Forgets all tokens of another origin; the next tokens are of this one."""
        if origin != self.origin:
            self._keep(0)
            self.origin = origin

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keeps the tokens that a prompt begins with, forgets the rest; returns how many tokens stay.

        The last prompt token is never reused: its logits are needed.
        """
        n_same = 0
        for cached, wanted in zip(self.tokens, prompt[:-1], strict=False):
            if cached != wanted:
                break
            n_same += 1
        self._keep(next((n for n in self.states.usable(n_same) if self._has_window(n)), 0))
        self._n_shared = n_same
        return len(self.tokens)

    def _has_window(self, n_tokens: int) -> bool:
        """Whether the window before that place is still cached."""
        first_seen = max(n_tokens - self._window + 1, 0)
        return not self._ring_tokens or first_seen >= self._n_written - self._ring_tokens

    def chunk_end(self, end: int) -> int:
        """Where the next chunk of a prompt ends, at most at `end`: also where the last prompt differed, because the
        next one may too, and then needs a state."""
        start = len(self.tokens)
        if self.states.are_there and start + FEWEST_SHARED <= self._n_shared < end:
            self.states.share(self._n_shared)
            return self._n_shared
        return end

    def restored(self, token_ids: Sequence[int]) -> None:
        """These are the tokens whose keys and values were put into the cache from a file: of layers with a window, no
        more than that."""
        self.tokens[:] = token_ids
        self.states.restored(len(token_ids))
        self._n_written = max(len(token_ids) - self._window + 1, 0) + self._ring_tokens

    def block_table(self, n_tokens: int) -> list[int]:
        """Blocks that hold the first n_tokens tokens of the sequence, for a step that writes the last of them."""
        self._n_written = max(self._n_written, n_tokens)
        return self._blocks[: -(-n_tokens // self.block_tokens)]

    def _keep(self, n_tokens: int) -> None:
        del self.tokens[n_tokens:]
        self.states.cut(n_tokens)
        if n_tokens == 0:
            self._n_written = 0


def shifted(tokens: Sequence[int], n_keep: int) -> list[int]:
    """What stays of a full context: the first n_keep tokens, and the newer half of the others or one token less."""
    kept, others = tokens[:n_keep], tokens[n_keep:]
    return [*kept, *others[-(-len(others) // 2) :]]
