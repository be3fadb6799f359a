"""Which tokens an answer may go on with, so that its text stays within a grammar.

Knows tokens as bytes, and grammars in llguidance's language, which `vkllm.text.grammar` writes. It knows no
requests, logits or devices; `masked` in engine/sampler.py and the kernel `mask_logits` apply its masks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from vkllm.errors import InvalidParameter
from vkllm.time_limit import TimeLimit

# Lower than llguidance's own limits, with which one step could take 15 s; what is still slow with these is refused by
# text/regex_size.py. JSON read by characters works with 152,000 tokens.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=25_000,
    max_items_in_row=1000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_TOO_COMPLEX = re.compile(r"too (many|big|large|complex)|max is|fuel|limit", re.IGNORECASE)
# Of a thread's own time: for compiling with the first mask, which takes longest, and for each later step. What
# text/grammar.py accepts compiles in less than 0.3 s, as far as is known, and a step usually takes 0.02 to 0.08 ms.
_PATIENCE_S = 1.0
# A constraint one of whose tokens took longer does not look ahead, which holds up other sequences.
_QUICK_S = 0.002
_WHAT = "the grammar of the answer"
Words = npt.NDArray[np.uint32]


class Vocabulary:
    """The tokens of a model, for the constraints of its answers. They are searched as a tree, which takes some tenths
    of a second to build, so the first constraint builds it."""

    def __init__(
        self, token_bytes: Sequence[bytes] = (), end_ids: Iterable[int] = (), *, patience_s: float = _PATIENCE_S
    ) -> None:
        """token_bytes, end_ids: as in `TokenTexts`. patience_s: how long a grammar may take to prepare, and then for
        each token."""
        self._limit = TimeLimit(patience_s)
        self.learn(token_bytes, end_ids)

    def learn(self, token_bytes: Sequence[bytes], end_ids: Iterable[int]) -> None:
        """Takes the tokens of the model for later constraints, as in `TokenTexts`."""
        self._token_bytes = token_bytes
        self._end_ids = sorted(end_ids)
        self._tree: LLTokenizer | None = None

    def constraint(self, grammar: str) -> Constraint:
        """The constraint of one answer. grammar: as in `Request`.

        Raises InvalidParameter for an invalid or too large grammar, one that takes too long or allows no token, and if
        the model has no end tokens.
        """
        if not self._end_ids:
            raise InvalidParameter("the model has no token that ends an answer, so an answer cannot have a grammar")
        tree = self._tree = self._tree or _Tokens(self._token_bytes, self._end_ids).tree
        n_words = -(-len(self._token_bytes) // 32)
        return self._limit.result(lambda: Constraint(tree, grammar, n_words, self._limit), _WHAT, "to prepare")


class Constraint:
    """How far one answer is in its grammar. Made by `Vocabulary.constraint`."""

    def __init__(self, tree: LLTokenizer, grammar: str, n_words: int, limit: TimeLimit) -> None:
        self._matcher = LLMatcher(tree, grammar, log_level=0, limits=_LIMITS)
        self._n_words = n_words
        self._limit = limit
        self._check()
        self._mask = self._next_mask()
        self._ahead: list[Words] = []
        self._is_quick = True

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end token may follow, or one came."""
        return self._matcher.is_stopped()

    def mask(self, n_ahead: int = 0) -> Words:
        """The tokens that may come next: bit t % 32 of word t // 32 for token t; ceil(V / 32) words. n_ahead: behind so
        many of the tokens that `look_ahead` has returned last."""
        return self._ahead[n_ahead - 1] if n_ahead else self._mask

    def look_ahead(self, guess: Sequence[int], most: int) -> tuple[list[int], set[int]]:
        """Up to `most` tokens that may come next, and which of them must, by place: those that are guessed, as far as
        they may come, and each other that must, because no other may. An end is not among them."""
        self._ahead = []
        token_ids: list[int] = []
        forced: set[int] = set()
        matcher: LLMatcher | None = None
        mask = self._mask
        while self._is_quick and len(token_ids) < most:
            only = _only_token(mask)
            token_id = guess[len(token_ids)] if len(token_ids) < len(guess) else None
            if only is not None:
                if token_id != only:
                    guess = ()
                token_id = only
            elif token_id is None or not mask[token_id // 32] >> token_id % 32 & 1:
                break
            matcher = matcher or self._matcher.deep_copy()
            matcher.consume_token(token_id)
            if matcher.is_stopped() or matcher.is_error():
                break
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: self._n_words]
            if matcher.is_error():
                break
            if only is not None:
                forced.add(len(token_ids))
            token_ids.append(token_id)
            self._ahead.append(mask)
        return token_ids, forced

    def accept(self, token_id: int) -> None:
        """Advances by a token.

        Raises InvalidParameter for one that is not allowed, if no other may follow it, and if that is too complex or
        takes too long.
        """
        self._limit.result(lambda: self._accept(token_id), _WHAT, "for one token")

    def _accept(self, token_id: int) -> None:
        start_s = time.thread_time()
        self._ahead = []
        self._matcher.consume_token(token_id)
        self._check()
        if not self.is_complete:
            self._mask = self._next_mask()
        self._is_quick &= time.thread_time() - start_s < _QUICK_S

    def _next_mask(self) -> Words:
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._n_words]
        self._check()
        return words

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            if reason == "NoExtensionBias":
                reason = "no token may follow"
            if _TOO_COMPLEX.search(reason):
                raise InvalidParameter(
                    "the grammar of the answer is too complex; make it smaller, with fewer choices or repetitions"
                )
            raise InvalidParameter(f"the grammar of the answer cannot be followed: {reason}")


def _only_token(mask: Words) -> int | None:
    """The only token that a mask allows, if there is just one."""
    (places,) = mask.nonzero()
    if len(places) != 1 or (word := int(mask[places[0]])) & (word - 1):
        return None
    return 32 * int(places[0]) + word.bit_length() - 1


class _Tokens(TokenizerWrapper):
    """A vocabulary in the form that llguidance takes. tree: what llguidance makes of it."""

    is_tokenizer_wrapper = True

    def __init__(self, token_bytes: Sequence[bytes], end_ids: list[int]) -> None:
        self.tokens = token_bytes
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None
        self.special_token_ids = ()  # those that begin with 0xFF
        self.tree = LLTokenizer(self, eos_token=end_ids)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that the grammar fully determines: the longest possible one each time."""
        return self.tree.greedy_tokenize(text)
