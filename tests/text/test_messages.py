"""Messages in every form that clients send them, and what is wrong with others."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel
from tiny_vocabularies import MakeMetadata, tiny_bpe

from vkllm.errors import InvalidParameter
from vkllm.text.chat import ChatTemplate
from vkllm.text.messages import plain_messages, plain_tools
from vkllm.text.tokenizer import Tokenizer

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


class Role(str, Enum):  # noqa: UP042, it is printed otherwise than a StrEnum
    USER = "user"


class ToolCall(BaseModel):
    id: str
    function: dict[str, str]


class Message(BaseModel):
    role: str
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hello", "hello"),
        (None, ""),
        ([], ""),
        ([text_part("hel"), text_part("lo")], "hel\nlo"),
        ((text_part("hello"),), "hello"),
        (["hello", text_part("you")], "hello\nyou"),
        ([{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}], "a\nno"),
        ([MappingProxyType(text_part("hello"))], "hello"),
    ],
)
def test_content_becomes_text(content: Any, text: str) -> None:
    message = {"role": "user", "content": content, "name": "Ada"}
    given = copy.copy(message)
    assert plain_messages([message]) == [{"role": "user", "content": text, "name": "Ada"}]
    assert message == given


@pytest.mark.parametrize(
    "message",
    [
        OrderedDict(role="user", content="hello"),
        UserDict(role="user", content="hello"),
        MappingProxyType({"role": Role.USER, "content": "hello"}),
        Message(role="user", content="hello"),
        {"role": "user", "content": "hello", "tool_calls": None},
    ],
)
def test_other_mappings_and_pydantic_objects_are_messages(message: Any) -> None:
    assert plain_messages((message,)) == [{"role": "user", "content": "hello"}]
    (plain,) = plain_messages(iter([message]))
    assert type(plain["role"]) is str


def test_a_call_of_a_tool_needs_no_content_and_the_keys_of_its_answer_are_kept() -> None:
    answer = {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"}
    for call in (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
    ):
        plain = plain_messages([call, answer])
        assert plain == [{"role": "assistant", "content": "", "tool_calls": [CALL]}, answer]
    made = Message(role="assistant", tool_calls=[ToolCall(id="1", function={"name": "f", "arguments": "{}"})])
    assert plain_messages([made])[0]["tool_calls"] == [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
    thought = {"role": "assistant", "reasoning_content": "hm"}
    assert plain_messages([thought]) == [{**thought, "content": ""}]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("hello", "is of type str"),
        (3, "of type int"),
        (["role", "user"], "is of type list"),
        ({"content": "hello"}, "has no role"),
        ({"role": None, "content": "hello"}, "has no role"),
        ({"role": 3, "content": "hello"}, "role 3"),
        ({"role": "", "content": "hello"}, "role ''"),
        ({"role": "user"}, "neither content nor tool_calls"),
        ({"role": "user", "tool_calls": []}, "neither content nor tool_calls"),
        ({"role": "user", "content": 3}, "content of type int"),
        ({"role": "user", "content": {"type": "text", "text": "a"}}, "content of type dict"),
        ({"role": "user", "content": True}, "content of type bool"),
        ({"role": "user", "content": b"hello"}, "type bytes"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "'input_audio'"),
        ({"role": "user", "content": [{"type": "text"}]}, "is not text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "is not text"),
        ({"role": "user", "content": [{"type": ["text"], "text": "a"}]}, "['text']"),
        ({"role": "user", "content": [{"text": "a"}]}, "None"),
        ({"role": "user", "content": [3]}, "'int'"),
        ({"role": "assistant", "content": "", "tool_calls": {"id": "1"}}, "tool_calls of type dict"),
        ({"role": "user", "content": "a", "time": object()}, "of type object"),
        ({"role": "user", "content": "a", 3: "b"}, "key 3"),
    ],
)
def test_what_is_no_message_is_refused_with_its_number_and_what_is_wrong(message: Any, named: str) -> None:
    with pytest.raises(InvalidParameter, match="message 1") as caught:
        plain_messages([{"role": "user", "content": "hello"}, message])
    assert named in str(caught.value)


@pytest.mark.parametrize("messages", ["hello", None, 3, {"role": "user", "content": "hello"}])
def test_what_is_no_list_of_messages_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidParameter, match="messages must be a list"):
        plain_messages(messages)


def test_values_that_hold_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidParameter, match="levels deep"):
        plain_messages([{"role": "user", "content": "a", "extra": endless}])


def test_tools_are_mappings_or_objects() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert plain_tools(None) == plain_tools([]) == []
    assert plain_tools([UserDict(tool)]) == [tool]
    for wrong in ("f", [tool, "f"], tool, [None]):
        with pytest.raises(InvalidParameter, match="tool"):
            plain_tools(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m['content'] | trim }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}",
    ],
)
def test_templates_get_the_text_of_null_and_of_parts(make_metadata: MakeMetadata, source: str) -> None:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": source})
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    messages = [
        {"role": "user", "content": [text_part("hel"), text_part("lo")]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "user", "content": "x"},
    ]
    text = "<|im_start|>hel\nlo<|im_start|><|im_start|>x"
    assert template.render(messages) == text
    assert template.encode_chat(messages) == tokenizer.encode(text)
