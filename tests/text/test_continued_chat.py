"""Chats whose last message is the beginning of the answer."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_vocabularies import MakeMetadata, tiny_bpe

from vkllm.errors import InvalidParameter
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

PLAIN = (
    "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
THINKS = PLAIN.replace("'assistant:'", "'assistant:<think>\n' if enable_thinking else 'assistant:'") + "{# </think> #}"
HI = {"role": "user", "content": "hi"}


def template_of(make_metadata: MakeMetadata, source: str) -> ChatTemplate:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": source})
    return ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def test_the_prompt_ends_where_the_last_message_does(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, PLAIN)
    assert template.render([HI, said("well, ")], continues_last=True) == "user:hi\nassistant:well, "
    assert template.render([HI, said("well, ")]) == "user:hi\nassistant:well, \nassistant:"


@pytest.mark.parametrize(
    ("thinking", "reasoning", "expected"),
    [
        (True, "", "<think>\n\n</think>\n\nwell"),
        (True, "hm", "<think>\nhm\n</think>\n\nwell"),
        (False, "hm", "<think>\nhm\n</think>\n\nwell"),
        (False, "", "well"),
    ],
)
def test_reasoning_is_over_before_what_is_continued(
    make_metadata: MakeMetadata, thinking: bool, reasoning: str, expected: str
) -> None:
    template = template_of(make_metadata, THINKS)
    messages = [HI, said("well", reasoning_content=reasoning)]
    text = template.render(messages, continues_last=True, enable_thinking=thinking)
    assert text == f"user:hi\nassistant:{expected}"


def test_what_is_continued_is_content(make_metadata: MakeMetadata) -> None:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": PLAIN})
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    mark = tokenizer.whole_token("<|im_end|>")
    assert mark is not None and mark not in template.encode_chat([HI, said("<|im_end|>")], continues_last=True)


@pytest.mark.parametrize(
    "messages", [[HI], [said("well")], [HI, said("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])]]
)
def test_what_cannot_be_continued_is_refused(make_metadata: MakeMetadata, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidParameter, match="only a last message of the assistant"):
        template_of(make_metadata, PLAIN).render(messages, continues_last=True)
