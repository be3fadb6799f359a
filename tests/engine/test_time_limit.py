"""Grammars that take too long to prepare: only their own request fails, and at most one thread is left behind."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llguidance import LLMatcher

from vkllm.engine.constraint import Vocabulary
from vkllm.errors import InvalidParameter
from vkllm.time_limit import TimeLimit

TOKENS = [b"a", b"b", b"\xff<end>"]
STILL = "^the grammar of the answer cannot be used while an earlier one still takes too long; ask again later$"


@pytest.fixture
def slow() -> Iterator[threading.Event]:
    """Set, it ends all slow calls."""
    event = threading.Event()
    yield event
    event.set()


def result(limit: TimeLimit, call: Callable[[], Any]) -> Any:
    return limit.result(call, "it", "to prepare")


def test_what_is_quick_returns_or_raises_as_without_a_limit() -> None:
    limit, threads = TimeLimit(60), set()

    def returns(value: Any) -> Any:
        threads.add(threading.current_thread())
        return value

    assert result(limit, lambda: returns(3)) == 3
    assert result(limit, lambda: returns(None)) is None
    for error in (InvalidParameter("no"), KeyboardInterrupt()):

        def fails(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            result(limit, fails)
        assert caught.value is error
    assert result(limit, lambda: returns(4)) == 4
    [thread] = threads
    assert thread is not threading.current_thread() and thread.is_alive(), "one thread runs all calls"


def test_a_thread_ends_with_its_limit() -> None:
    limit = TimeLimit(60)
    thread = result(limit, threading.current_thread)
    del limit
    thread.join(60)
    assert not thread.is_alive()


def test_several_threads_may_use_one_limit(slow: threading.Event) -> None:
    limit, returned = TimeLimit(60), []
    callers = [
        threading.Thread(target=lambda i=i: returned.append(result(limit, lambda: slow.wait(60) and i)))
        for i in range(4)
    ]
    for caller in callers:
        caller.start()
    assert result(limit, lambda: 9) == 9, "while the others wait"
    slow.set()
    for caller in callers:
        caller.join()
    assert sorted(returned) == [0, 1, 2, 3]


def test_the_time_of_others_does_not_count() -> None:
    """On a busy machine a call that is quick by itself may take long."""
    assert result(TimeLimit(0.05), lambda: time.sleep(0.2)) is None
    with pytest.raises(InvalidParameter, match=r"^it takes longer than 0\.05 s"):  # 0.4 s or more
        result(TimeLimit(0.05), lambda: hashlib.pbkdf2_hmac("sha256", b"key", b"salt", 1_000_000))


def test_only_one_call_that_is_too_late_goes_on(slow: threading.Event) -> None:
    limit, threads = TimeLimit(0.05), []

    def wait() -> None:
        threads.append(threading.current_thread())
        assert slow.wait(60)

    with pytest.raises(InvalidParameter, match=r"^it takes longer than 0\.05 s to prepare; make it smaller"):
        result(limit, wait)
    for _ in range(3):
        with pytest.raises(InvalidParameter, match=r"^it cannot be used while an earlier one still takes too long"):
            result(limit, wait)
    slow.set()
    [thread] = threads
    thread.join(60)
    assert not thread.is_alive()
    limit._seconds = 60
    assert result(limit, lambda: 1) == 1


class Slow:
    """A matcher that waits before what is called `part`."""

    def __init__(self, matcher: Any, event: threading.Event, part: str) -> None:
        self.matcher, self.event, self.part = matcher, event, part

    def __getattr__(self, name: str) -> Any:
        if name == self.part:
            assert self.event.wait(60)
        return getattr(self.matcher, name)


@pytest.mark.parametrize("part", ["compute_bitmask", "is_error"])
def test_a_grammar_that_takes_too_long_to_prepare_fails_alone(
    monkeypatch: pytest.MonkeyPatch, slow: threading.Event, part: str
) -> None:
    vocabulary = Vocabulary(TOKENS, {2}, patience_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr("vkllm.engine.constraint.LLMatcher", lambda *a, **k: Slow(LLMatcher(*a, **k), slow, part))
        with pytest.raises(InvalidParameter, match=r"takes longer than 0\.05 s to prepare; make"):
            vocabulary.constraint('start: "a"')
    with pytest.raises(InvalidParameter, match=STILL):
        vocabulary.constraint('start: "b"')
    slow.set()
    vocabulary._limit = TimeLimit(60)
    assert vocabulary.constraint('start: "b"').mask().tolist() == [0b10]


@pytest.mark.parametrize("part", ["compute_bitmask", "consume_token"])
def test_a_later_token_that_takes_too_long_fails_alone(slow: threading.Event, part: str) -> None:
    vocabulary = Vocabulary(TOKENS, {2}, patience_s=60)
    late, other = vocabulary.constraint("start: /[ab]{9}/"), vocabulary.constraint("start: /[ab]{9}/")
    late.accept(0)
    late._matcher = Slow(late._matcher, slow, part)
    vocabulary._limit._seconds = 0.05
    with pytest.raises(InvalidParameter, match=r"^the grammar of the answer takes longer than 0\.05 s for one token"):
        late.accept(1)
    with pytest.raises(InvalidParameter, match=STILL):
        other.accept(1)
    slow.set()
    vocabulary._limit._seconds = 60
    for worker in vocabulary._limit._late:
        worker.join()
    other.accept(1)
    assert other.mask().tolist() == [0b11]


def test_llguidance_lets_others_run_while_it_compiles() -> None:
    vocabulary = Vocabulary(TOKENS, {2}, patience_s=0.01)
    with pytest.raises(InvalidParameter, match=r"takes longer than 0\.01 s"):
        vocabulary.constraint("start: /" + r"\w*" * 700 + "/")  # refused by text/grammar.py; takes 0.2 s
    for worker in vocabulary._limit._late:
        worker.join()
