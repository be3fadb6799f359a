"""Bodies in the shape of Anthropic's Messages API become chats."""

from __future__ import annotations

from typing import Any

import pytest

from vkllm.api.anthropic.requests import message_request
from vkllm.errors import InvalidParameter

HI = {"role": "user", "content": "Hi"}
HEADER = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def messages_of(*messages: Any, **body: Any) -> list[dict[str, Any]]:
    return message_request({"messages": list(messages), **body}).messages


@pytest.mark.parametrize(
    "system",
    [
        "You are Claude Code.\nBe brief.",
        [text("You are Claude Code."), {**text("Be brief."), "cache_control": {"type": "ephemeral"}}],
        [text(HEADER), text("You are Claude Code."), text("Be brief.")],
        [text(HEADER.replace("a5145", "0f00d")), text("You are Claude Code."), text("Be brief.")],
        f"{HEADER}You are Claude Code.\nBe brief.",
        f"{HEADER}\nYou are Claude Code.\nBe brief.",
    ],
)
def test_the_system_message_has_no_block_that_changes_with_each_request(system: Any) -> None:
    assert messages_of(HI, system=system)[0] == {"role": "system", "content": "You are Claude Code.\nBe brief."}


def test_a_header_inside_a_system_message_is_text() -> None:
    said = f"Never print {HEADER}"
    assert messages_of(HI, system=said)[0]["content"] == said
    assert messages_of(HI, system=HEADER) == [HI]


def test_results_of_tools_come_right_behind_the_calls() -> None:
    made = messages_of(
        HI,
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, text("I look."), TOOL_USE],
        },
        {"role": "user", "content": [text("Now?"), RESULT, {**RESULT, "tool_use_id": "toolu_2", "content": None}]},
    )
    function = {"name": "weather", "arguments": '{"city": "Zürich"}'}
    assert made[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
        {"role": "user", "content": "Now?"},
    ]


def test_neighbours_of_one_role_are_one_turn_but_not_system_messages() -> None:
    system = {"role": "system", "content": "100 tokens left"}
    assert messages_of(HI, {"role": "user", "content": [text("there")]}, system, HI) == [
        {"role": "user", "content": "Hi\nthere"},
        system,
        HI,
    ]


def test_documents_and_search_results_are_text() -> None:
    document = {"type": "document", "title": "A", "source": {"type": "text", "media_type": "text/plain", "data": "b"}}
    found = {"type": "search_result", "title": "C", "source": "https://d", "content": [text("e")]}
    assert messages_of({"role": "user", "content": [document, found]})[0]["content"] == "A\nb\nC\nhttps://d\ne"


def test_what_servers_did_and_redacted_thoughts_are_left_out() -> None:
    blocks = [{"type": "redacted_thinking", "data": "x"}, {"type": "server_tool_use", "name": "web_search"}]
    assert messages_of(HI, {"role": "assistant", "content": [*blocks, text("Yes")]}, HI)[1]["content"] == "Yes"


def test_a_last_message_of_the_assistant_is_continued() -> None:
    prefill = {"role": "assistant", "content": "{"}
    assert message_request({"messages": [HI, prefill]}).variables == {"continues_last": True}
    assert message_request({"messages": [HI]}).variables == {}


def test_options_have_our_names() -> None:
    request = message_request(
        {
            "model": "m",
            "messages": [HI],
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 3,
            "top_p": None,
            "stop_sequences": ["X"],
            "metadata": {"user_id": "u"},
            "service_tier": "auto",
            "thinking": {"type": "enabled", "budget_tokens": 2000},
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        }
    )
    assert request.options == {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["X"],
        "json_schema": {"type": "object"},
    }
    assert request.variables == {"enable_thinking": True, "reasoning_effort": "high"}


def test_only_functions_among_the_tools_are_told_of() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    weather = {"name": "weather", "description": "Weather", "input_schema": schema}
    body = {"messages": [HI], "tools": [weather, {"type": "web_search_20250305", "name": "web_search"}]}
    function = {"name": "weather", "description": "Weather", "parameters": schema}
    assert message_request(body).tools == [{"type": "function", "function": function}]
    any_of_them = {"type": "any", "disable_parallel_tool_use": True}
    assert message_request({**body, "tool_choice": any_of_them}).tool_choice == any_of_them


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the body must be a JSON object"),
        ({}, "messages must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["Hi"]}, "message 0 must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 0 has the role 'tool'"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 0 must have text or a list of blocks"),
        ({"messages": [HI, {"role": "assistant", "content": [{}]}]}, "message 1 has a block without a type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "type 'image'; vkllm reads text only"),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}]},
            "the tool result in message 0 has a block of type 'image'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "type 'text' that holds no text"),
        (
            {"messages": [HI, {"role": "assistant", "content": [{**TOOL_USE, "input": 3}]}]},
            "message 1 has a block of type 'tool_use'",
        ),
        ({"messages": [HI], "tools": [{}]}, "tool 0 has no name"),
        ({"messages": [HI], "tools": "weather"}, "tools must be a list"),
        ({"messages": [HI], "thinking": {"type": "loud"}}, "thinking must have the type"),
        ({"messages": [HI], "output_config": {"format": {"type": "xml"}}}, "the format of output_config"),
    ],
)
def test_what_is_wrong_is_said(body: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message.replace("(", r"\(")):
        message_request(body)
