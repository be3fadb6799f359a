"""Stop strings, wherever the borders of the pieces fall."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vkllm.text.stop import StopStrings

# Few letters and short strings, so that they overlap, repeat and are cut by the borders all the time.
PIECES = st.lists(st.text("ab", max_size=3), max_size=8)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def shown_until_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The specification: read character by character, end where the first stop string is complete."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=500)
@given(PIECES, STOPS)
def test_pieces_join_to_the_text_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    matcher = StopStrings(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    expected, is_matched = shown_until_stop(text, stops)
    assert matcher.is_matched == is_matched
    # Before the end nothing is shown that could belong to a stop string, and nothing else is withheld.
    held = text[len(shown) :]
    assert is_matched or not held or any(stop.startswith(held) for stop in stops)
    assert shown + matcher.flush() == expected
    if is_matched:
        ended = next(text[:end] for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops))
        assert matcher.matched == max((stop for stop in stops if ended.endswith(stop)), key=len)


def test_a_stop_string_ends_the_text_for_good() -> None:
    matcher = StopStrings(["</s>"])
    assert [matcher.push(piece) for piece in ("1 <", "2 </", "s", ">3", "4")] == ["1 ", "<2 ", "", "", ""]
    assert matcher.flush() == ""
