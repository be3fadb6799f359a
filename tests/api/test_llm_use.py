"""LLM as programs use it: tokens counted, batches, callbacks, from many threads and several at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from tiny_gguf import IM_END, IM_START, N_VOCAB

from vkllm import LLM, ContextOverflow, InvalidParameter, Piece, QueueFull

MakeLLM = Callable[..., LLM]
ENDLESS = chr(fake.ENDLESS)
HI = [{"role": "user", "content": "Hi"}]


def assert_engine_is_free(llm: LLM) -> None:
    """A request that nobody has cancelled would keep it for ever."""
    assert llm.generate("Xok", max_tokens=2).text == "ok"


def test_text_becomes_tokens_and_tokens_text(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert llm.tokenize("aé<|im_end|>") == [97, 0xC3, 0xA9, IM_END]
    assert llm.tokenize("<|im_end|>", parse_special=False) == list(b"<|im_end|>")
    assert llm.detokenize([97, 0xC3, 0xA9, IM_END]) == "aé"
    assert llm.detokenize((97, IM_END), skip_special=False) == "a<|im_end|>"
    assert llm.detokenize([97, 0xC3]) == "a�"
    assert llm.detokenize([]) == ""
    with pytest.raises(InvalidParameter, match=f"token id {N_VOCAB} is not in the vocabulary of {N_VOCAB}"):
        llm.detokenize([97, N_VOCAB])


def test_tokens_are_those_that_a_prompt_has(fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = fake_llm()
    monkeypatch.setattr(llm.tokenizer, "adds_bos", True)
    assert llm.tokenize("Xab") == llm.generate("Xab", max_tokens=1).prompt_token_ids == [IM_START, 88, 97, 98]
    assert llm.tokenize("Xab", add_special=False) == [88, 97, 98]


def test_tokens_are_counted_in_texts_and_in_conversations(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    assert llm.count_tokens("aé<|im_end|>") == 4
    assert llm.count_tokens("") == 0
    assert llm.count_tokens(HI) == len(llm.chat(HI, max_tokens=1).prompt_token_ids) == 21
    assert llm.count_tokens("a" * 1000) == 1000, "more than the context holds is no error"
    with pytest.raises(InvalidParameter, match="message 0"):
        llm.count_tokens([1, 2])  # type: ignore[list-item]


def test_more_requests_than_the_queue_holds_are_refused(fake_llm: MakeLLM) -> None:
    llm = fake_llm(queue=1)
    running = [llm.stream(ENDLESS + "ab", max_tokens=50) for _ in range(2)]
    next(running[0])
    with pytest.raises(QueueFull, match="1 requests wait already and the queue holds no more"):
        llm.generate("Xab", max_tokens=2)
    for stream in running:
        stream.close()
        stream.result()
    assert llm.generate("Xab", max_tokens=2).text == "ab"
    with pytest.raises(InvalidParameter, match="queue must be a whole number between 0 and 1000000, not -1"):
        fake_llm(queue=-1)


def test_a_list_of_prompts_is_answered_in_order(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    answers = llm.generate(["Xab", "Xcd", "Xef"], max_tokens=2)
    assert [answer.text for answer in answers] == ["ab", "cd", "ef"]
    answers = llm.generate([[88, 97], [88, 98, 99]], max_tokens=2)
    assert [answer.text for answer in answers] == ["aa", "bc"]
    assert [answer.text for answer in llm.generate(["Xab"], max_tokens=1)] == ["a"]
    answer = llm.generate([88, 97], max_tokens=1)
    assert answer.text == "a", "a list of integers is one prompt"


def test_the_requests_of_a_batch_are_sent_at_once(fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = fake_llm()
    sent: list[int] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: sent.append(llm.stats().n_requests) or submit(request))
    llm.generate(["Xab", "Xcd", "Xef"], max_tokens=2)
    assert sent == [0, 0, 0]


def test_a_bad_prompt_in_a_batch_is_found_before_any_is_sent(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    for bad, error in (("", InvalidParameter), ("a" * 300, ContextOverflow), ([N_VOCAB], InvalidParameter)):
        with pytest.raises(error):
            llm.generate([ENDLESS + "abc", bad])
    assert_engine_is_free(llm)
    assert llm.stats().n_requests == 1


def test_an_error_or_ctrl_c_cancels_all_of_a_batch(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    with pytest.raises(ContextOverflow, match="refused") as raised:
        llm.generate([chr(fake.REFUSE) + "ab", ENDLESS + "abc", ENDLESS + "abc"])
    assert_engine_is_free(llm)
    assert raised.tb is not None, "which keeps the streams from being dropped"
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([ENDLESS + "abc"] * 3)
    assert_engine_is_free(llm)


def test_on_token_gets_each_piece_of_generate_and_chat(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    pieces: list[Piece] = []
    answer = llm.generate("Xaé", max_tokens=3, logprobs=0, on_token=pieces.append)
    assert (pieces, answer.text) == (["a", "é"], "aé")
    assert [len(piece.logprobs or ()) for piece in pieces] == [1, 2]
    pieces.clear()
    assert llm.chat(HI, on_token=pieces.append).text == "".join(pieces) == "user\nHi"
    with pytest.raises(InvalidParameter, match="on_token is for one prompt"):
        llm.generate(["a", "b"], on_token=pieces.append)  # type: ignore[call-overload]


def test_an_exception_in_on_token_cancels_the_request_and_is_raised(fake_llm: MakeLLM) -> None:
    llm = fake_llm()

    def fail(piece: Piece) -> None:
        raise ZeroDivisionError(piece)

    with pytest.raises(ZeroDivisionError, match="a"):
        llm.generate(ENDLESS + "abc", on_token=fail)
    with pytest.raises(ZeroDivisionError):
        llm.chat(HI, on_token=fail)
    assert_engine_is_free(llm)


@pytest.mark.parametrize("prompt", [[1.5], ["a", 3], [[97], None], [None], None, 5, [True]])
def test_what_is_no_prompt_is_a_typed_error(fake_llm: MakeLLM, prompt: Any) -> None:
    with pytest.raises(InvalidParameter, match="pass text or a list"):
        fake_llm().generate(prompt)


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_what_is_no_text_is_not_tokenized(fake_llm: MakeLLM, text: Any) -> None:
    with pytest.raises(InvalidParameter, match="text must be a string"):
        fake_llm().tokenize(text)


@pytest.mark.parametrize("options", [{"stop": 5}, {"stop": [5]}, {"stop_token_ids": 5}, {"stop_token_ids": ["a"]}])
def test_stops_of_the_wrong_type_are_typed_errors(fake_llm: MakeLLM, options: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"stop.* must be"):
        fake_llm().generate("a", **options)


def test_eight_threads_share_a_model(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    wrong: list[str] = []

    def ask(letter: str) -> None:
        for i in range(6):
            text = letter * (1 + i % 3) + "."
            answers = llm.generate(["X" + text] * 2, max_tokens=len(text))
            answers.append(llm.generate(llm.tokenize("X" + text), max_tokens=len(text)))
            wrong.extend(answer.text for answer in answers if answer.text != text)
            if "".join(llm.stream("X" + text, max_tokens=4)) != (text * 4)[:4]:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert llm.stats().n_requests == 8 * 6 * 4


def test_a_stream_that_nobody_reads_keeps_no_other_waiting(fake_llm: MakeLLM) -> None:
    llm = fake_llm()
    unread = llm.stream("Xab", max_tokens=250)
    assert_engine_is_free(llm)
    assert len(unread.result().text) == 250


def test_two_models_are_open_at_once(fake_llm: MakeLLM) -> None:
    first, second = fake_llm(seed=65), fake_llm(seed=66)
    prompt = [fake.SEED, 0]
    streams = [llm.stream(prompt, max_tokens=3) for llm in (first, second, first)]
    assert [stream.result().text for stream in reversed(streams)] == ["AAA", "BBB", "AAA"]
    first.close()
    assert second.generate(prompt, max_tokens=1).text == "B"


def test_a_model_is_called_as_it_was_asked_for(
    fake_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path
) -> None:
    assert fake_llm().name == "tiny"
    monkeypatch.setattr("vkllm.api.loading.find_model", lambda name, on_progress: tiny_gguf)
    assert fake_llm(model="hf.co/owner/repo:Q4_K_M").name == "hf.co/owner/repo:Q4_K_M"
