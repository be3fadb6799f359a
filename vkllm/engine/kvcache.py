"""The key/value cache as blocks, and which tokens lie in it.

One sequence at a time holds all blocks, in order. What a finished request leaves stays, so that the next one
that begins with the same tokens (the next turn of a chat) starts where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence


class KVCache:
    """Cache of n_blocks blocks of block_tokens tokens.

    tokens: the ids whose keys and values are stored. origin: whose they are; only requests of the same origin use them.
    """

    def __init__(self, n_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.tokens: list[int] = []
        self.origin = ""
        self._blocks = list(range(n_blocks))

    def belong_to(self, origin: str) -> None:
        """Forgets all tokens of another origin; the next tokens are of this one."""
        if origin != self.origin:
            self.tokens.clear()
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
        del self.tokens[n_same:]
        return n_same

    def block_table(self, n_tokens: int) -> list[int]:
        """Blocks that hold the first n_tokens tokens of the sequence."""
        return self._blocks[: -(-n_tokens // self.block_tokens)]


def shifted(tokens: Sequence[int], n_keep: int) -> list[int]:
    """What stays of a full context: the first n_keep tokens, and the newer half of the others or one token less."""
    kept, others = tokens[:n_keep], tokens[n_keep:]
    return [*kept, *others[-(-len(others) // 2) :]]
