"""Many requests at once, on a program in virtual time whose tokens follow from what lies in its caches."""

from __future__ import annotations

import gc
import re
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_program import N_VOCAB, Fake, FakeProgram, Session, Step, request
from hypothesis import given, settings
from hypothesis import strategies as st
from work_time import work_below

from vkllm.engine.constraint import Constraint
from vkllm.engine.events import EngineStats, Failed, Finished, PromptProgress, Scores, StateAnswer, Token
from vkllm.engine.requests import Request, StateQuery
from vkllm.engine.scheduler import MOST_ROWS
from vkllm.engine.speculation.drafter import Speculation
from vkllm.errors import DeadlineExceeded, InvalidParameter, QueueFull
from vkllm.gpu.program.step import WIDTHS, Part

PLAIN = Fake()
MODELS = {
    "plain": PLAIN,
    "windows": Fake(n_blocks=20, window=40, n_window_blocks=24),
    "states": Fake(n_blocks=20, n_state_slots=24),
    "both": Fake(n_blocks=20, window=10, n_window_blocks=24, n_state_slots=24),
    "few blocks": Fake(n_blocks=16, n_sequences=40),
}


def ids(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, N_VOCAB, n).tolist()


def alone(model: Fake, wanted: Request) -> list[int]:
    """The answer of a program that nobody else uses."""
    session = Session(model)
    session.run(wanted)
    return session.tokens(wanted.id)


@pytest.mark.parametrize(("name", "n_requests"), [(name, 200 if name == "plain" else 50) for name in MODELS])
def test_requests_with_blocks_for_few_of_them_all_get_the_answer_they_get_alone(name: str, n_requests: int) -> None:
    model = MODELS[name]
    rng = np.random.default_rng(5)
    beginnings = [ids(i, 150) for i in range(3)]
    session = Session(model)
    wanted, cancelled = [], set()
    for i in range(n_requests):
        beginning = beginnings[i % 3][: int(rng.integers(0, 150))]
        n_more, n = int(rng.integers(1, 120)), int(rng.integers(1, 50))
        options = {"temperature": 1.0, "seed": i, "top_k": 40 if i % 2 else 0} if i % 4 == 0 else {}
        wanted.append(request(i, beginning + ids(1000 + i, n_more), n, **options))
        session.submit(wanted[-1])
        for _ in range(int(rng.integers(0, 3))):
            session.step()
        if rng.random() < 0.15:
            cancelled.add(int(rng.integers(0, i + 1)))
            session.batching.cancel(max(cancelled))
    session.run()
    session.check_nothing_is_lost()
    n_whole = 0
    for each in wanted[::3]:
        end, expected, got = session.end(each.id), alone(model, each), session.tokens(each.id)
        assert isinstance(end, Finished)
        assert got == expected or (end.reason == "cancelled" and got == expected[: len(got)])
        n_whole += got == expected
    assert n_whole > n_requests // 4
    assert max(len(parts) for parts in session.program.steps) > 2
    n_reused = sum(e.stats.n_cached > 0 for _, e in session.events if isinstance(e, Finished))
    assert n_reused > (2 if model.n_state_slots else n_requests // 5)


def test_requests_count_their_steps_and_their_shares_add_up_to_all_steps() -> None:
    session = Session(PLAIN)
    for i in range(3):
        session.submit(request(i, ids(i, 20 + 30 * i), 5))
    session.run()
    stats = [session.end(i).stats for i in range(3)]  # type: ignore[union-attr]
    assert sum(each.step_share for each in stats) == pytest.approx(len(session.program.steps))
    assert sum(each.n_steps for each in stats) == sum(map(len, session.program.steps)) > len(session.program.steps)
    total = EngineStats().plus(stats[0]).plus(stats[2]).plus(stats[1])
    assert (total.n_longest, total.n_steps) == (85, sum(each.n_steps for each in stats))


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from([*MODELS.values()]),
    prompts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 130), st.integers(1, 40)), min_size=1, max_size=9),
    cancels=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 30)), max_size=3),
)
def test_whatever_comes_all_end_and_no_block_is_lost(
    model: Fake, prompts: list[tuple[int, int, int]], cancels: list[tuple[int, int]]
) -> None:
    texts = [[1] * 130, [1] * 40 + [2] * 90, [1] * 40 + [2] * 20 + [3] * 70]
    session = Session(model)
    wanted = [request(i, texts[text][:n_prompt], n) for i, (text, n_prompt, n) in enumerate(prompts)]
    for each in wanted:
        session.submit(each)
    for step in range(31):
        for request_id in [request_id for request_id, at in cancels if at == step]:
            session.batching.cancel(request_id)
        session.step()
    session.run()
    session.check_nothing_is_lost()
    for each in wanted:
        end, got = session.end(each.id), session.tokens(each.id)
        assert isinstance(end, Finished) and got == alone(model, each)[: len(got)]
        assert end.reason == "cancelled" or len(got) == each.params.max_tokens or got[-1] == 0


def test_a_request_alone_runs_in_steps_of_one_row_of_which_three_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    session, open_steps = Session(PLAIN), [0]
    most = 0
    submit, tokens = FakeProgram.submit, FakeProgram.tokens

    def counted(self: FakeProgram, parts: Sequence[Part], **options: bool) -> Step:
        nonlocal most
        open_steps[0] += 1
        most = max(most, open_steps[0])
        assert len(parts) == 1
        return submit(self, parts, **options)  # type: ignore[arg-type]

    def read(self: FakeProgram, step: Step) -> list[int]:
        open_steps[0] -= 1
        return tokens(self, step)

    monkeypatch.setattr(FakeProgram, "submit", counted)
    monkeypatch.setattr(FakeProgram, "tokens", read)
    session.run(request(1, ids(1, 20), 40))
    assert most == 3 and all(len(parts[0].tokens) == 1 for parts in session.program.steps[1:])
    assert len(session.tokens(1)) == 40 and len(session.program.steps) == 40


def test_the_next_turn_of_a_chat_goes_on_at_its_last_token() -> None:
    session, prompt = Session(PLAIN), ids(2, 75)
    session.run(request(1, prompt, 20))
    answer = session.tokens(1)
    session.run(request(2, [*prompt, *answer, *ids(3, 9)], 5))
    end = session.end(2)
    assert isinstance(end, Finished) and end.stats.n_cached == 75 + len(answer) - 1
    assert session.tokens(2) == alone(PLAIN, request(2, [*prompt, *answer, *ids(3, 9)], 5))


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    session, prompt = Session(PLAIN), ids(2, 300)
    session.run(*(request(i, prompt, 5) for i in range(4)))
    n_cached = [session.end(i).stats.n_cached for i in range(4)]  # type: ignore[union-attr]
    assert n_cached == [0, 288, 288, 288]
    assert len({tuple(session.tokens(i)) for i in range(4)}) == 1


def decoding(session: Session, n: int) -> None:
    """Lets n requests decode."""
    for i in range(n):
        session.submit(request(i, ids(i, 20), 400))
    while not all(session.tokens(i) for i in range(n)):
        session.step()


def test_a_new_request_has_its_first_token_within_two_steps_and_its_own_prompt_while_16_decode() -> None:
    model = Fake(n_blocks=512, n_sequences=20)
    for wait_steps in range(3):
        session = Session(model)
        decoding(session, 16)
        for _ in range(wait_steps):
            session.step()
        start_s = session.program.now_s
        session.submit(request(99, ids(99, 12), 3))
        while not session.tokens(99):
            session.step()
        assert session.times(99)[0] - start_s <= 3 * model.step_s + 0.001


def test_tokens_of_others_come_in_time_while_a_long_prompt_runs_and_short_ones_pass_it() -> None:
    model = Fake(n_blocks=2000, n_ctx=31_000, n_sequences=8, row_s=0.0003)  # 512 rows take 154 ms
    session = Session(model)
    decoding(session, 3)
    start_s = session.program.now_s
    session.submit(request(50, ids(50, 30_000), 2))
    session.step()
    session.submit(request(51, ids(51, 200), 2))
    while not session.tokens(50):
        session.step()
    end_s = session.program.now_s
    for i in range(3):
        times = [start_s, *(time for time in session.times(i) if time > start_s)]
        assert max(np.diff(times)) <= 0.15 and end_s - times[-1] <= 0.15
    assert session.times(51)[0] - start_s < 0.7, "it does not wait for the long one"
    assert end_s - start_s < 30_000 * model.row_s * 1.1, "and the long one is hardly slower"


@pytest.mark.parametrize("n_decoding", [0, 3])
def test_a_short_prompt_passes_a_long_one_on_a_device_that_is_slow(n_decoding: int) -> None:
    """Chunks are so short there that they run beside the others, in the same steps."""
    model = Fake(n_blocks=200, n_ctx=2000, step_s=0.09, row_s=0.02)
    session = Session(model)
    decoding(session, n_decoding)
    session.submit(request(50, ids(50, 1500), 2))
    for _ in range(3):
        session.step()
    start_s = session.program.now_s
    session.submit(request(51, ids(51, 16), 2))
    while not (session.tokens(50) or session.tokens(51)):
        session.step()
    assert session.tokens(51) and session.times(51)[0] - start_s < 7 * model.step_s
    n_before = len(session.program.steps)
    for i in range(60, 66):  # and those that go on coming do not stop it
        session.submit(request(i, ids(i, 16), 2))
    session.run(most_steps=3000)
    firsts = [parts for parts in session.program.steps[n_before : n_before + 12]]
    assert any(len(part.tokens) > 1 and part.position > 16 for parts in firsts for part in parts)


def test_prompts_of_many_get_a_row_each_on_a_device_that_is_slow() -> None:
    """Its chunks are of 8 rows, and that is too few a step for all of 32 sequences."""
    session = Session(Fake(n_blocks=512, n_sequences=MOST_ROWS, step_s=0.24, row_s=0.03))
    session.run(*(request(i, ids(i, 10), 6) for i in range(2 * MOST_ROWS)))
    n_rows = 2 * MOST_ROWS * (10 + 5)
    assert len(session.program.steps) < 1.6 * n_rows / MOST_ROWS


def test_a_prompt_does_not_trickle_through_the_few_rows_that_others_leave() -> None:
    session = Session(Fake(n_blocks=512, n_sequences=MOST_ROWS + 2))
    decoding(session, MOST_ROWS - 1)
    n_before = len(session.program.steps)
    for i in (90, 91, 92):
        session.submit(request(i, ids(i, MOST_ROWS // 2), 3))
    while not (session.tokens(90) and session.tokens(91)):
        session.step()
    assert len(session.program.steps) - n_before <= 6, "two of them in one step"


def test_first_come_first_served_where_there_is_room_for_few() -> None:
    session = Session(Fake(n_sequences=2))
    session.run(*(request(i, ids(i, 20), 9) for i in range(8)))
    firsts = [session.times(i)[0] for i in range(8)]
    assert firsts == sorted(firsts)


def test_the_sequence_that_came_last_is_put_back_and_computed_again() -> None:
    model = Fake(n_blocks=16)
    session = Session(model)
    wanted = [request(i, ids(i, 100), 120) for i in range(3)]  # 7 blocks each in the end
    session.run(*wanted)
    assert [session.tokens(i) for i in range(3)] == [alone(model, each) for each in wanted]
    chunks = [parts[0].sequence for parts in session.program.steps if len(parts) == 1 and len(parts[0].tokens) > 1]
    assert len(chunks) > 3, "a prompt ran again"
    ends = [next(time for time, e in session.events if isinstance(e, Finished) and e.request_id == i) for i in range(3)]
    assert ends == sorted(ends)


def test_a_prompts_progress_is_told_chunk_by_chunk_to_who_asks() -> None:
    session = Session(PLAIN)
    session.run(request(0, ids(1, 40), 1))
    wanted = replace(request(1, ids(1, 40) + ids(2, 200), 3), tells_progress=True)
    session.run(wanted, request(2, ids(3, 300), 3))
    told = [event for _, event in session.events if isinstance(event, PromptProgress)]
    assert {(each.request_id, each.n_prompt, each.n_cached) for each in told} == {(1, 240, told[0].n_processed)}
    counts = [each.n_processed for each in told]
    assert 32 <= counts[0] <= 40 and counts[-1] == 240 and len(counts) > 3
    assert counts == sorted(set(counts)) and [each.run_s for each in told] == sorted(each.run_s for each in told)
    kinds = [type(event) for _, event in session.events if event.request_id == 1]
    assert kinds == [PromptProgress] * len(told) + [Token] * 3 + [Finished]


def test_a_full_queue_refuses_and_the_others_go_on() -> None:
    session = Session(Fake(n_sequences=2), n_queue=3)
    for i in range(5):
        session.submit(request(i, ids(i, 20), 4))
    with pytest.raises(QueueFull, match="5 requests wait already"):
        session.submit(request(5, ids(5, 20), 4))
    session.step()
    with pytest.raises(QueueFull, match="3 requests wait already and the queue holds no more; try again later"):
        session.submit(request(5, ids(5, 20), 4))
    session.run()
    session.run(request(5, ids(5, 20), 4))
    assert all(isinstance(session.end(i), Finished) for i in range(6))


def test_a_request_that_is_late_fails_running_or_waiting() -> None:
    session = Session(Fake(n_sequences=1))
    late = request(1, ids(1, 20), 400, deadline_s=0.1), request(2, ids(2, 20), 4, deadline_s=0.05)
    session.run(*late, request(3, ids(3, 20), 4))
    for i, what in ((1, r"within its 0.1 s; 2\d tokens had come"), (2, "within its 0.05 s; it still waited")):
        end = session.end(i)
        assert isinstance(end, Failed) and isinstance(end.error, DeadlineExceeded)
        assert re.search(what, str(end.error)), end.error
    assert len(session.tokens(3)) == 4
    session.check_nothing_is_lost()


def test_rows_that_the_cpu_chooses_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that thinks for long: the others' tokens come meanwhile, and then it goes on."""
    session = Session(PLAIN, token_bytes=tuple(bytes([i % 256]) for i in range(N_VOCAB)))
    accept, gate = Constraint.accept, threading.Event()

    def slow(self: Constraint, token_id: int) -> None:
        gate.wait(120)
        accept(self, token_id)

    monkeypatch.setattr(Constraint, "accept", slow)
    for i, options in enumerate(({}, {"logprobs": 1}, {"grammar": "start: /[a-z]{6}/"})):
        session.submit(request(i, ids(i, 20), 30, **options))
    while not (len(session.tokens(0)) == len(session.tokens(1)) == 30):
        session.step()
    assert not session.tokens(2)
    gate.set()
    session.run()
    assert len(session.tokens(2)) >= 6 and isinstance(session.end(2), Finished)
    assert session.tokens(1) == alone(PLAIN, request(1, ids(1, 20), 30))


def test_a_grammar_that_cannot_be_followed_fails_only_its_request() -> None:
    session = Session(PLAIN, token_bytes=tuple(bytes([i % 256]) for i in range(N_VOCAB)))
    session.run(request(1, ids(1, 20), 5), request(2, ids(2, 20), 5, grammar="start: /(/"))
    end = session.end(2)
    assert isinstance(end, Failed) and isinstance(end.error, InvalidParameter)
    assert len(session.tokens(1)) == 5
    session.check_nothing_is_lost()


def test_scores_run_beside_answers() -> None:
    session, text = Session(PLAIN), ids(9, 100)
    session.run(request(1, ids(1, 20), 30), request(2, text, 1, score_from=40), request(3, ids(3, 50), 9))
    scores = [value for _, e in session.events if isinstance(e, Scores) for value in e.logprobs]
    assert scores == text[40:]
    assert session.tokens(1) == alone(PLAIN, request(1, ids(1, 20), 30))


def test_a_shifted_context_goes_on_beside_others() -> None:
    model = Fake(n_ctx=64, n_blocks=6)
    session = Session(model)
    wanted = [request(i, ids(i, 40), 90, context_shift=True, n_keep=3) for i in range(3)]
    session.run(*wanted)
    for each in wanted:
        assert session.tokens(each.id) == alone(model, each) and len(session.tokens(each.id)) == 90
    session.check_nothing_is_lost()


def test_a_query_about_states_waits_for_what_came_before_it_of_its_origin_only() -> None:
    session = Session(PLAIN)
    session.submit(request(1, ids(1, 20), 30, origin="a"))
    session.submit(request(2, ids(2, 20), 100, origin="b"))
    session.submit(StateQuery(3, "save", Path("x"), "a"))
    session.submit(request(4, ids(4, 20), 3, origin="a"))
    session.run()
    order = [e.request_id for _, e in session.events if isinstance(e, Finished | StateAnswer)]
    assert order == [1, 3, 4, 2]
    (answer,) = [e for _, e in session.events if isinstance(e, StateAnswer)]
    assert answer.token_ids[:20] == tuple(ids(1, 20)) and len(answer.token_ids) == 49


def test_hundreds_wait_without_taking_time() -> None:
    session = Session(Fake(n_blocks=200, n_sequences=4))
    for i in range(300):
        session.submit(request(i, ids(i, 10), 2))
    with work_below(2):
        session.run()
    session.check_nothing_is_lost()


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    """Once the cache and the texts that drafts come from are as large as they may be."""
    session = Session(PLAIN, speculation=Speculation(WIDTHS))
    sizes: list[int] = []
    tracemalloc.start()
    try:
        for round_ in range(6):
            rng = np.random.default_rng(1)
            for i in range(100 * round_, 100 * (round_ + 1)):
                session.submit(
                    request(i, ids(i, int(rng.integers(1, 60))), int(rng.integers(1, 12)), origin=f"{i % 7}")
                )
                session.step()
                if rng.random() < 0.25:
                    session.batching.cancel(i)
            session.run()
            session.events.clear()
            session.program.steps.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes) < 1.02 * sizes[0]
