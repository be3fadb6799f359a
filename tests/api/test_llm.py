"""The Python API on a tiny file and an engine that echoes the prompt from its second token on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import is_running
from tiny_gguf import IM_END, IM_START, N_CTX, N_VOCAB, write_tiny_gguf

from vkllm import (
    LLM,
    ContextOverflow,
    DeviceLost,
    InvalidParameter,
    ModelFileError,
    ModelNotFound,
    OutOfDeviceMemory,
    SamplingParams,
    UnsupportedModel,
)
from vkllm.engine.requests import Request

MakeLLM = Callable[..., LLM]
ENDLESS = chr(fake.ENDLESS)


@pytest.fixture(scope="module")
def shared() -> Iterator[list[LLM]]:
    """Keeps one LLM for all examples of a property test."""
    llms: list[LLM] = []
    yield llms
    for llm in llms:
        llm.close()


def test_generate_returns_text_tokens_and_stats(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xab", max_tokens=5)
    assert answer.text == "ababa"
    assert answer.token_ids == [97, 98, 97, 98, 97]
    assert answer.prompt_token_ids == [88, 97, 98]
    assert answer.finish_reason == "length"
    assert answer.logprobs is None
    assert (answer.stats.n_prompt, answer.stats.n_generated, answer.stats.generate_per_s) == (3, 5, 8.0)


def test_logprobs_have_an_entry_a_token_with_text(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xab", max_tokens=2, logprobs=2)
    assert answer.logprobs == [
        (97, "a", -0.5, [(97, "a", -0.5), (98, "b", -1.5)]),
        (98, "b", -0.5, [(98, "b", -0.5), (99, "c", -1.5)]),
    ]
    assert answer.logprobs[0].top[1].text == "b"


def test_a_stop_token_is_in_token_ids_and_not_in_text(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xab<|im_end|>cd")
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("ab", [97, 98, IM_END], "stop")


def test_the_callers_own_stop_tokens_are_no_text_either(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xabc", stop_token_ids=[ord("c")])
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("ab", [97, 98, 99], "stop")


def test_ignore_eos_goes_on_after_a_stop_token(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xa<|im_end|>", ignore_eos=True, max_tokens=4)
    assert (answer.text, answer.finish_reason) == ("aa", "length")


def test_pieces_are_whole_characters_with_their_tokens(fake_llm: MakeLLM) -> None:
    stream = fake_llm().stream("Xaé€", max_tokens=6, logprobs=0)
    pieces = list(stream)
    assert pieces == ["a", "é", "€"]
    assert [piece.token_ids for piece in pieces] == [[97], [0xC3, 0xA9], [0xE2, 0x82, 0xAC]]
    assert [len(piece.logprobs or ()) for piece in pieces] == [1, 2, 3]
    assert stream.result().text == "aé€"
    assert list(stream) == []


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab é", min_size=1, max_size=12), stops=st.lists(st.text("ab é", min_size=1, max_size=4)))
def test_no_part_of_a_stop_string_is_in_any_piece(shared: list[LLM], text: str, stops: list[str]) -> None:
    stream = shared[0].stream("X" + text, max_tokens=20, stop=stops)
    pieces = list(stream)
    answer = stream.result()
    ends = [end for end in range(len(text * 20)) if any((text * 20)[:end].endswith(stop) for stop in stops)]
    assert "".join(pieces) == answer.text
    assert not any(stop in answer.text for stop in stops)
    if answer.finish_reason == "stop":
        start = min(ends[0] - len(stop) for stop in stops if (text * 20)[: ends[0]].endswith(stop))
        assert answer.text == (text * 20)[:start]


@pytest.fixture(autouse=True)
def _shared_llm(request: pytest.FixtureRequest, tiny_gguf: Path) -> None:
    """Starts the property test's LLM outside of its examples."""
    if "shared" not in request.fixturenames or request.getfixturevalue("shared"):
        return
    make: MakeLLM = request.getfixturevalue("fake_llm")
    request.getfixturevalue("shared").append(make())


def test_one_stop_string_may_be_given_as_a_string(fake_llm: MakeLLM) -> None:
    answer = fake_llm().generate("Xhello world", stop="o w")
    assert (answer.text, answer.finish_reason) == ("hell", "stop")


def test_options_override_params(fake_llm: MakeLLM) -> None:
    params = SamplingParams(max_tokens=9, stop=("c",))
    llm = fake_llm()
    assert llm.generate("Xabc", params).text == "ab"
    assert llm.generate("Xabc", params, stop=(), max_tokens=4).text == "abca"


def test_the_models_seed_is_for_requests_that_name_none(fake_llm: MakeLLM) -> None:
    llm = fake_llm(seed=65)
    prompt = [fake.SEED, 0]
    assert llm.generate(prompt, max_tokens=1).text == "A"
    assert llm.generate(prompt, SamplingParams(max_tokens=1)).text == "A"
    assert llm.generate(prompt, max_tokens=1, seed=66).text == "B"


def test_chat_goes_through_the_template(fake_llm: MakeLLM) -> None:
    answer = fake_llm().chat([{"role": "user", "content": "Hi"}])
    assert answer.prompt_token_ids[0] == IM_START
    assert answer.text == "user\nHi"


def test_chat_streams(fake_llm: MakeLLM) -> None:
    messages = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Hi"}]
    assert "".join(fake_llm().chat(messages, stream=True)) == "system\nBe short"


def test_only_an_answer_in_a_chat_is_a_text_of_its_own(fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SentencePiece vocabulary puts a space before a text; the space after a prompt is real."""
    llm = fake_llm()
    seen: list[bool] = []
    make = llm.tokenizer.detokenizer
    monkeypatch.setattr(llm.tokenizer, "detokenizer", lambda *, continues: seen.append(continues) or make())
    llm.generate("Xab", max_tokens=1)
    llm.chat([{"role": "user", "content": "Hi"}], max_tokens=1)
    assert seen == [True, False]


def test_max_tokens_is_cut_to_the_room_left(fake_llm: MakeLLM) -> None:
    llm = fake_llm(n_ctx=10)
    assert len(llm.generate("Xabcdefg").token_ids) == 2
    assert len(llm.generate("Xabcdefg", max_tokens=100).token_ids) == 2
    assert len(llm.generate("Xabcdefgh").token_ids) == 1


def long_chat(n_turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Be short"}]
    for i in range(n_turns):
        messages += [{"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": f"Answer {i}"}]
    return messages[:-1]


def test_a_chat_that_is_too_long_is_refused_or_on_request_loses_its_oldest_turns(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    with pytest.raises(ContextOverflow, match=rf"the prompt has 398 tokens, but the context holds {N_CTX}"):
        llm.chat(long_chat(10))
    answer = llm.chat(long_chat(10), context_shift=True, max_tokens=3)
    text = llm.tokenizer.decode(answer.prompt_token_ids)
    assert text.startswith("system\nBe short\nuser\nQuestion") and text.endswith("Question 9\nassistant\n")
    assert "Question 0" not in text and N_CTX // 3 < len(answer.prompt_token_ids) < N_CTX
    too_long = [*long_chat(3)[:-1], {"role": "user", "content": "x" * N_CTX}]
    with pytest.raises(ContextOverflow, match=rf"29\d tokens, but the context holds {N_CTX}"):
        llm.chat(too_long, context_shift=True)
    with pytest.raises(ContextOverflow, match="300 tokens"):
        llm.generate("a" * 300, context_shift=True)


def test_a_context_shift_keeps_the_system_message_or_the_beginning_of_sequence(
    fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm()
    asked: list[Request] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: asked.append(request) or submit(request))
    llm.chat(long_chat(2), context_shift=True, max_tokens=1)
    kept = asked[-1].prompt_token_ids[: asked[-1].n_keep]
    assert llm.tokenizer.decode(kept) == "system\nBe short\nuser\n"
    assert asked[-1].params.context_shift
    llm.generate([IM_START, 65], context_shift=True, max_tokens=1)
    llm.generate("ab", context_shift=True, max_tokens=N_CTX + 50)
    assert [request.n_keep for request in asked[-2:]] == [1, 0], "<|im_start|> is the tiny model's BOS"
    assert asked[-1].params.max_tokens == N_CTX + 50, "the context is no limit"


@pytest.mark.parametrize("n_prompt", [10, 11, 30])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(fake_llm: MakeLLM, n_prompt: int) -> None:
    with pytest.raises(ContextOverflow, match=rf"{n_prompt} tokens.* 10\b"):
        fake_llm(n_ctx=10).generate("a" * n_prompt)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ([[]], {}),
        ([N_VOCAB], {}),
        ([-1], {}),
        ("a", {"temperature": -1}),
        ("a", {"stop": [""]}),
        ("a", {"stop_token_ids": [N_VOCAB]}),
    ],
)
def test_bad_requests_are_typed_errors(fake_llm: MakeLLM, prompt: Any, options: Any) -> None:
    with pytest.raises(InvalidParameter):
        fake_llm().generate(prompt, **options)


@pytest.mark.parametrize("n_ctx", [1, -5, N_CTX + 1])
def test_a_context_that_the_model_does_not_have_is_refused(fake_llm: MakeLLM, n_ctx: int) -> None:
    with pytest.raises(InvalidParameter, match=str(n_ctx)):
        fake_llm(n_ctx=n_ctx)


def test_bad_files_are_typed_errors_before_an_engine_starts(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_engine(*_: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("vkllm.api.loading.EngineProcess", no_engine)
    with pytest.raises(ModelNotFound):
        LLM(tmp_path / "missing.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-100])
    with pytest.raises(ModelFileError):
        LLM(cut)
    with pytest.raises(UnsupportedModel):
        LLM(write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba"))


def test_a_folder_with_one_model_is_a_model(fake_llm: MakeLLM, tiny_gguf: Path) -> None:
    llm = fake_llm(model=tiny_gguf.parent)
    assert (llm.path, llm.quantization, llm.n_ctx) == (tiny_gguf, "F32", N_CTX)


def test_closing_a_stream_frees_the_engine_and_keeps_what_there_was(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    stream = llm.stream(ENDLESS + "abc")
    assert next(stream) == "a"
    stream.close()
    assert list(stream) == []
    assert stream.result().finish_reason == "cancelled"
    assert stream.result().text == "a"
    assert_engine_is_free(llm)


def test_leaving_the_loop_frees_the_engine(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    for _ in llm.stream(ENDLESS + "abc"):
        break
    assert_engine_is_free(llm)


def test_a_stream_that_was_never_read_frees_the_engine(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    llm.stream(ENDLESS + "abc")
    assert_engine_is_free(llm)


def test_a_stop_string_frees_the_engine(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert list(llm.stream(ENDLESS + "abc", stop="b")) == ["a"]
    assert_engine_is_free(llm)


def test_ctrl_c_while_waiting_cancels(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    stream = llm.stream(ENDLESS + "abc")
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert_engine_is_free(llm)


def assert_engine_is_free(llm: LLM) -> None:
    """A request that nobody has cancelled would keep it for ever."""
    assert llm.generate("Xok", max_tokens=2).text == "ok"


def test_two_threads_get_their_own_answers(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    texts: dict[str, set[str]] = {"ab": set(), "cde": set()}

    def ask(text: str) -> None:
        for _ in range(5):
            texts[text].add("".join(llm.stream("X" + text, max_tokens=len(text))))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert texts == {"ab": {"ab"}, "cde": {"cde"}}


def test_a_lost_engine_is_a_typed_error_and_the_next_request_works(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    stream = llm.stream(chr(fake.DIE) + "ab")
    with pytest.raises(DeviceLost, match="killed by SIGKILL while answering"):
        list(stream)
    with pytest.raises(DeviceLost):
        stream.result()
    assert llm.generate("Xok", max_tokens=2).text == "ok"


def test_progress_names_what_is_being_done(fake_llm: MakeLLM) -> None:
    seen: list[tuple[str, int, int]] = []
    fake_llm(on_progress=lambda *args: seen.append(args))
    assert seen == [("loading tiny.gguf", done, 100) for done in (0, 50, 100)]


def test_close_ends_the_process_and_refuses_requests(fake_llm: MakeLLM) -> None:
    with fake_llm() as llm:
        pid = llm._engine.pid
        assert pid is not None and is_running(pid)
    llm.close()
    assert not is_running(pid)
    with pytest.raises(DeviceLost, match="closed"):
        llm.generate("a")


def test_scores_are_a_list_of_one_number_a_token_after_the_first(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert llm.score([100, 97, 98]) == [-0.97, -0.98]
    assert llm.score([100, 97, 98], first=2) == [-0.98]
    assert len(llm.score([100] * N_CTX)) == N_CTX - 1
    assert llm.score("dab") == [-0.97, -0.98]
    for first in (0, -1, "1", 1.5):
        with pytest.raises(InvalidParameter, match="first must be a whole number of at least 1, not"):
            llm.score([100, 97, 98], first=first)
    with pytest.raises(InvalidParameter, match="first is 3, but the text has 3 tokens, the last of them 2"):
        llm.score([100, 97, 98], first=3)
    for short, words in (("a", "1 token"), ([97], "1 token"), ("", "0 tokens"), ([], "0 tokens")):
        with pytest.raises(InvalidParameter, match=f"the text has {words} and is too short for a score"):
            llm.score(short)
    with pytest.raises(InvalidParameter, match="vocabulary"):
        llm.score([100, N_VOCAB])
    with pytest.raises(ContextOverflow, match=f"{N_CTX + 1} tokens"):
        llm.score([100] * (N_CTX + 1))


def test_benchmark_generate_makes_exactly_so_many_tokens_whatever_they_are(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    for prompt in ("Xa<|im_end|>", [ord("X"), ord("a"), IM_END]):
        stats = llm.benchmark_generate(prompt, 7)
        assert (stats.n_prompt, stats.n_generated, stats.generate_per_s) == (3, 7, 12.0)
    with pytest.raises(ContextOverflow, match=f"3 prompt tokens and {N_CTX} more"):
        llm.benchmark_generate("Xab", N_CTX)


def test_stats_are_sums_over_all_requests_even_those_of_a_lost_engine(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert (llm.stats().n_requests, llm.stats().last) == (0, None)
    llm.generate("Xab", max_tokens=5)
    llm.generate("Xab", max_tokens=4)
    with pytest.raises(DeviceLost):
        llm.generate(chr(fake.FAIL) + "ab", max_tokens=9)
    llm.score([100, 97, 98, 99])
    stats = llm.stats()
    assert (stats.n_requests, stats.n_prompt, stats.n_cached, stats.n_generated) == (3, 10, 2, 9)
    assert (stats.prompt_s, stats.generate_s) == pytest.approx((0.3, 1.5))
    assert stats.last is not None and stats.last.n_prompt == 4


def test_measure_device_reports_what_the_engine_measured_or_why_it_cannot(fake_llm: MakeLLM) -> None:
    report = fake_llm().measure_device()
    assert (report.info, report.read_bytes_per_s) == (fake.DEVICE, fake.READ_BYTES_PER_S)
    full = fake_llm(device="full")
    with pytest.raises(OutOfDeviceMemory, match="no room"):
        full.measure_device()
    assert full.generate("Xab", max_tokens=2).text == "ab", "the engine goes on"
