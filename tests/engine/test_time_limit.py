"""Grammars that take too long to prepare: only their own request fails, and at most one thread is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vkllm.engine.constraint import Vocabulary
from vkllm.engine.time_limit import TimeLimit
from vkllm.errors import InvalidParameter

TOKENS = [b"a", b"b", b"\xff<end>"]
TOO_LONG = "^the grammar of the answer takes longer than 0.05 s to prepare; make it smaller"
STILL = "^the grammar of the answer cannot be prepared while an earlier one takes too long; ask again later$"


@pytest.fixture
def slow() -> Iterator[threading.Event]:
    """Set, it ends all slow calls."""
    event = threading.Event()
    yield event
    event.set()
    for thread in late_threads():
        thread.join()


def late_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vkllm time limit"]


def test_what_is_quick_returns_or_raises_as_without_a_limit() -> None:
    limit = TimeLimit(60, "it")
    assert limit.result(lambda: 3) == 3
    assert limit.result(lambda: None) is None
    for error in (InvalidParameter("no"), KeyboardInterrupt()):

        def fails(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            limit.result(fails)
        assert caught.value is error
    assert limit.result(lambda: 4) == 4 and not late_threads()


@pytest.mark.parametrize("part", ["__init__", "mask"])
def test_a_grammar_that_takes_too_long_fails_alone(
    monkeypatch: pytest.MonkeyPatch, slow: threading.Event, part: str
) -> None:
    vocabulary = Vocabulary(TOKENS, {2}, patience_s=0.05)
    vocabulary.constraint('start: "a"')
    with monkeypatch.context() as patch:
        patch.setattr(f"vkllm.engine.constraint.Constraint.{part}", waiting(slow))
        with pytest.raises(InvalidParameter, match=TOO_LONG):
            vocabulary.constraint('start: "a"')
    [thread] = late_threads()
    for _ in range(3):
        with pytest.raises(InvalidParameter, match=STILL):
            vocabulary.constraint('start: "b"')
    assert late_threads() == [thread], "no other was started"
    slow.set()
    thread.join()
    constraint = vocabulary.constraint('start: "b"')
    assert constraint.mask().tolist() == [0b10]
    assert not late_threads()


def waiting(event: threading.Event) -> Callable[..., None]:
    def wait(*_: Any) -> None:
        assert event.wait(60)

    return wait


def test_llguidance_lets_others_run_while_it_compiles() -> None:
    vocabulary = Vocabulary(TOKENS, {2}, patience_s=0.01)
    with pytest.raises(InvalidParameter, match=r"takes longer than 0\.01 s"):
        vocabulary.constraint("start: /" + r"\w*" * 700 + "/")  # refused by text/grammar.py; takes 0.2 s
    for thread in late_threads():
        thread.join()
