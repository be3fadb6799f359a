"""Prompt lookup, and how many tokens it drafts where steps take virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkllm.engine.speculation import history
from vkllm.engine.speculation.drafter import Drafter, Speculation
from vkllm.engine.speculation.gain import DraftLengths
from vkllm.engine.speculation.history import SIZES, Histories
from vkllm.engine.speculation.lookup import Lookup

WIDTHS = (1, 2, 4, 8, 16, 32)


@dataclass
class Simulated:
    """An engine in virtual time that decodes a text which is known to the test only."""

    seconds: dict[int, float]
    bubble_s: float = 0.1
    now_s: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0

    def decode(self, speculation: Speculation, prompt: Sequence[int], text: Sequence[int], most: int = 31) -> float:
        """Tokens a second, relative to those without drafts."""
        drafter = speculation.drafter("", prompt)
        drafter.catch_up()
        n, start_s, is_ahead, n_flying = 0, self.now_s, False, 0
        while n < len(text):
            if n_flying == 0 and (draft := drafter.draft(min(most, len(text) - n - 1))):
                n_right = next((i for i, (a, b) in enumerate(zip(draft, text[n:], strict=False)) if a != b), len(draft))
                took_s = self._step_s(1 + len(draft)) + self.bubble_s
                self._tell(speculation, drafter, text[n : n + n_right + 1], len(draft), took_s, is_ahead=False)
                self.n_drafted, self.n_accepted = self.n_drafted + len(draft), self.n_accepted + n_right
                n, is_ahead = n + n_right + 1, False
                continue
            if not drafter.n_worthwhile(most):
                n_flying = 3  # steps run ahead
            took_s = self._step_s(1) + (0 if is_ahead else self.bubble_s)
            self._tell(speculation, drafter, text[n : n + 1], 0, took_s, is_ahead=is_ahead)
            n, n_flying, is_ahead = n + 1, max(n_flying - 1, 0), True
        return len(text) * self.seconds[1] / (self.now_s - start_s)

    def _step_s(self, n_rows: int) -> float:
        return next(seconds for width, seconds in self.seconds.items() if width >= n_rows)

    def _tell(self, speculation, drafter: Drafter, tokens, n_drafted: int, took_s: float, *, is_ahead: bool) -> None:
        self.now_s += took_s
        speculation.lengths.measured(1 + n_drafted, n_drafted, len(tokens), took_s, is_ahead=is_ahead)
        for token in tokens:
            drafter.append(token)


CHEAP = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.4, 16: 1.9, 32: 2.6}
DEAR = {1: 1.0, 2: 1.9, 4: 3.5, 8: 4.5, 16: 9.0, 32: 18.0}


def words(n: int, seed: int, n_words: int = 3000) -> list[int]:
    """A text in which frequent words are frequent, as in natural ones."""
    dice = random.Random(seed)
    return [min(int(dice.paretovariate(0.7)), n_words) for _ in range(n)]


def edited(text: Sequence[int], every: int, seed: int) -> list[int]:
    """A text with a word replaced, left out or put in after about every so many."""
    dice, out = random.Random(seed), []
    for word in text:
        kind = dice.randrange(3 * every)
        out += [word] if kind > 2 else [[9000 + dice.randrange(99)], [], [word, 9000]][kind]
    return out


@pytest.mark.parametrize("seconds", [CHEAP, DEAR])
def test_repeated_text_with_edits_is_faster(seconds):
    text = words(1000, 1)
    simulated = Simulated(seconds)
    gain = simulated.decode(Speculation(WIDTHS), text, edited(text, 40, 2))
    assert gain > (4 if seconds is CHEAP else 1.3)
    assert simulated.n_accepted > 0.4 * simulated.n_drafted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("seconds", [CHEAP, DEAR])
@pytest.mark.parametrize("n", [100, 1000])
def test_free_text_loses_at_most_three_percent(seconds, n, seed):
    speculation, simulated = Speculation(WIDTHS), Simulated(seconds)
    assert simulated.decode(speculation, words(500, seed), words(n, seed + 50, 300)) > 0.97
    assert simulated.decode(speculation, words(500, seed + 7), words(n, seed + 60, 300)) > 0.97


def test_drafts_end_where_a_text_becomes_free_and_come_back_where_it_repeats_again():
    speculation, text = Speculation(WIDTHS), words(300, 1)
    repeated, free = edited(text, 60, 2), [2 * word + 10_000 for word in words(300, 4)]
    assert Simulated(CHEAP).decode(speculation, text, repeated) > 3
    assert Simulated(CHEAP).decode(speculation, text, free) > 0.97
    assert Simulated(CHEAP).decode(speculation, text, [*free, *repeated]) > 1.5


def test_steps_without_drafts_are_timed_again_where_drafts_gain_little():
    lengths = DraftLengths(WIDTHS)
    for _ in range(2):
        lengths.measured(1, 0, 1, 1.0, is_ahead=True)
        lengths.seconds.measured(8, 5.0, is_ahead=False)
    for _ in range(100):
        n_drafted = lengths.best([0.9] * 7)
        if not n_drafted:
            break
        lengths.measured(1 + n_drafted, n_drafted, 6, 5.0, is_ahead=False)
    assert not n_drafted and lengths.best([1.0] * 7) == 7, "only what gains little waits"
    lengths.measured(1, 0, 1, 2.0, is_ahead=True)
    assert lengths.best([0.9] * 7) == 7


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 12))
def test_a_guess_follows_a_match_of_the_last_tokens(token_ids, most):
    histories = Histories()
    lookup = Lookup(histories, "")
    for i, token_id in enumerate(token_ids):
        before = lookup.guess(1)
        was_right = lookup.append(token_id)
        assert was_right == (before[0] == token_id if before else None)
        seen, n = token_ids[: i + 1], lookup.n_matched
        guess = lookup.guess(most)
        if n:
            assert len(guess) == most
            ending = seen[-n:]
            places = [place for place in range(n, len(seen)) if seen[place - n : place] == ending]
            continued = [(seen[place:] + most * seen[place:])[:most] for place in places]
            assert guess in continued, "what followed the match, again and again where the text ends"
        for size in SIZES:
            if any(seen[place - size : place] == seen[-size:] for place in range(size, len(seen))):
                assert n >= size
                break


def test_the_newest_match_wins_and_a_longer_one_before_it():
    assert guess_behind([1, 2, 3, 7, 0, 1, 2, 3, 8, 0, 1, 2, 3]) == (3 + 1, 8)
    long = [1, 2, 3, 4, 5, 6, 7, 8]
    assert guess_behind([*long, 21, 0, *long[-3:], 22, 9, *long]) == (8, 21)


def test_a_source_is_found_again_one_token_behind_an_edit():
    text = list(range(100, 140))
    assert guess_behind([*text, *text[:12], 7, text[13]]) == (1, text[14]), "replaced"
    assert guess_behind([*text, *text[:12], text[13]]) == (1, text[14]), "left out"
    assert guess_behind([*text, *text[:12], 7, text[12]]) == (1, text[13]), "put in"


def guess_behind(token_ids: list[int]) -> tuple[int, int]:
    """Length of the match, and the guess."""
    lookup = Lookup(Histories(), "")
    for token_id in token_ids:
        lookup.append(token_id)
    (guess,) = lookup.guess(1)
    return lookup.n_matched, guess


def test_other_texts_are_found_by_sequences_of_the_same_origin_only():
    histories = Histories()
    Lookup(histories, "mine").extend(range(100))
    for origin, expected in (("mine", [13, 14]), ("theirs", [])):
        lookup = Lookup(histories, origin)
        lookup.extend([10, 11, 12])
        assert lookup.guess(2) == expected
    lookup = Lookup(histories, "mine")
    lookup.extend([97, 98, 99])
    assert lookup.guess(2) == [], "nothing follows the end of another text"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(history, "INDEXED_TOKENS", 100)
    monkeypatch.setattr(history, "KEPT_TOKENS", 1000)
    long = history.History(range(1000))
    assert len(long._places) + len(long._older) <= len(SIZES) * 100
    assert (
        long.place_behind(long.ending(3)) is None and history.History([1, 2, 3, 4]).place_behind(long.ending(3)) is None
    )
    histories = Histories()
    for i in range(300):
        histories.begin(str(i)).extend(range(i))
        assert len(histories._texts) <= history.KEPT_TEXTS
        assert sum(len(each.tokens) for _, each in histories._texts) <= 1000 + i
    assert len(histories._texts) > 1


def test_drafts_are_as_long_as_pays():
    lengths = DraftLengths(WIDTHS)
    assert lengths.best([1.0] * 31) == 0, "nothing was measured yet"
    for width, seconds in {**CHEAP, 32: 6.0}.items():
        for _ in range(2):
            lengths.seconds.measured(width, seconds, is_ahead=False)
    lengths.measured(1, 0, 1, 1.0, is_ahead=True)
    lengths.measured(1, 0, 1, 1.0, is_ahead=True)
    for _ in range(2):
        lengths.measured(4, 0, 4, 1.2, is_ahead=True)
    assert lengths.best([1.0] * 31) == 15, "a step of 32 may cost more than there is to lose"
    assert lengths.best([0.9] * 7) == 7
    assert lengths.best([0.3] * 7) == 1
    assert lengths.best([0.05] * 7) == 0
    assert lengths.best([0.9] * 7, n_rows=4) == 4 and lengths.best([0.1] * 7, n_rows=4) == 0
