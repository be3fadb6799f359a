"""Conversations that outgrow the context: whole turns go, system messages and what fits stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny_gguf

from vkllm.formats.gguf import ModelFile
from vkllm.text.chat import ChatTemplate
from vkllm.text.long_chat import latest_messages, n_tokens_of_system, shortened_chat
from vkllm.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FOLDED = (  # as Llama 2's and Gemma's: the system message is part of the first user message, and turns must alternate
    "{% set start = 1 if messages[0].role == 'system' else 0 %}"
    "{% for message in messages[start:] %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no alternation') }}{% endif %}"
    "<{{ message.role }}>{% if loop.first and start %}({{ messages[0].content }}){% endif %}{{ message.content }}"
    "{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Be short."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte."""
    return Tokenizer.from_gguf(ModelFile.open(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf")).metadata)


def talk(n_turns: int, system: bool = True) -> list[dict[str, str]]:
    turns = []
    for i in range(n_turns):
        turns += [{"role": "user", "content": f"Question {i:03}"}, {"role": "assistant", "content": f"Answer {i:03}"}]
    return [SYSTEM][: int(system)] + turns[:-1]


def shortened(tokenizer: Tokenizer, source: str, messages: Any, n_ctx: int) -> str:
    template = ChatTemplate(tokenizer, source, is_fallback=False)
    prompt = template.encode_chat(messages)
    n_keep = n_tokens_of_system(template, messages, prompt)
    ids = shortened_chat(template, messages, prompt, n_ctx, n_keep)
    assert ids[:n_keep] == prompt[:n_keep]
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize(
    ("source", "system", "kept"),
    [
        (CHATML, True, "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n"),
        (CHATML, False, "<|im_start|>user\n"),
        (FOLDED, True, "<user>(Be short.)"),
        (FOLDED, False, "<user>"),
    ],
)
def test_what_is_kept_is_what_comes_before_the_first_words(
    tokenizer: Tokenizer, source: str, system: bool, kept: str
) -> None:
    template = ChatTemplate(tokenizer, source, is_fallback=False)
    prompt = template.encode_chat(talk(3, system))
    n_keep = n_tokens_of_system(template, talk(3, system), prompt)
    assert tokenizer.decode(prompt[:n_keep], skip_special=False) == kept
    first_a = [*[SYSTEM][: int(system)], {"role": "user", "content": "A"}]
    assert n_tokens_of_system(template, first_a, template.encode_chat(first_a)) == n_keep, (
        "words that begin like a probe"
    )


def test_a_template_that_refuses_to_tell_keeps_the_first_token(tokenizer: Tokenizer) -> None:
    picky = "{% if messages|length < 3 %}{{ raise_exception('too few') }}{% endif %}" + CHATML
    template = ChatTemplate(tokenizer, picky, is_fallback=False)
    assert n_tokens_of_system(template, talk(3), template.encode_chat(talk(3))) == 1


@pytest.mark.parametrize("source", [CHATML, FOLDED])
def test_the_oldest_turns_go_until_the_rest_fits(tokenizer: Tokenizer, source: str) -> None:
    whole = shortened(tokenizer, source, talk(4), 1000)
    assert "Question 000" in whole and "Question 003" in whole
    text = shortened(tokenizer, source, talk(40), 400)
    assert "Be short." in text and text.count("Question 039") == 1
    first = min(i for i in range(40) if f"Question {i:03}" in text)
    assert first > 0 and all(f"Question {i:03}" in text and f"Answer {i:03}" in text for i in range(first, 39))
    assert text.index("Be short.") < text.index(f"Question {first:03}") < text.index(f"Answer {first:03}")


@given(n_turns=st.integers(1, 60), n_ctx=st.integers(120, 600), system=st.booleans())
def test_what_is_left_fits_and_fills_half_of_the_room(
    tokenizer: Tokenizer, n_turns: int, n_ctx: int, system: bool
) -> None:
    messages = talk(n_turns, system)
    template = ChatTemplate(tokenizer, CHATML, is_fallback=False)
    prompt = template.encode_chat(messages)
    n_keep = n_tokens_of_system(template, messages, prompt)
    ids = shortened_chat(template, messages, prompt, n_ctx, n_keep)
    longest_turn = 70
    assert len(ids) < n_ctx
    assert len(ids) == len(prompt) or len(ids) >= (n_ctx - n_keep) // 2 - longest_turn


def test_the_first_turn_changes_seldom_as_a_chat_grows(tokenizer: Tokenizer) -> None:
    """Otherwise every turn of a long chat would run its whole prompt again."""
    firsts = []
    for n_turns in range(10, 60):
        text = shortened(tokenizer, CHATML, talk(n_turns), 600)
        firsts.append(min(i for i in range(60) if f"Question {i:03}" in text))
    assert firsts == sorted(firsts) and firsts[0] == 0
    assert len(set(firsts)) <= 2 + 50 * 62 // 280, "62 tokens a turn, 280 at a time"


def test_one_message_that_is_too_long_comes_back_whole(tokenizer: Tokenizer) -> None:
    messages = [*talk(3)[:-1], {"role": "user", "content": "x" * 500}]
    text = shortened(tokenizer, CHATML, messages, 300)
    assert "x" * 500 in text and "Question" not in text
    only_system = [SYSTEM]
    assert "Be short." in shortened(tokenizer, CHATML, only_system, 10)


def test_a_call_and_what_it_gave_go_together(tokenizer: Tokenizer) -> None:
    messages = []
    for i in range(8):
        messages += [
            {"role": "user", "content": f"Question {i}"},
            {"role": "assistant", "content": f"call {i}"},
            {"role": "tool", "content": f"gave {i}"},
            {"role": "assistant", "content": f"Answer {i}"},
        ]
    text = shortened(tokenizer, CHATML, messages[:-1], 420)
    first = text.removeprefix("<|im_start|>")
    assert first.startswith("user\nQuestion") and not first.startswith("user\nQuestion 0")


def test_of_more_messages_than_the_context_has_tokens_the_latest_turns_stay() -> None:
    messages = talk(100)
    assert latest_messages(messages, 200) is messages
    kept = latest_messages(messages, 50)  # the first of the last 50 is an answer
    assert kept == [SYSTEM, *messages[-49:]] and kept[1]["role"] == "user"
    answers = [{"role": "assistant", "content": "x"}] * 9
    assert latest_messages(answers, 5) is answers
