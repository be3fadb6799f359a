"""/v1/messages for the anthropic package and for plain HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import pytest
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

from vkllm.faces.server.settings import ServerSettings

HI = [{"role": "user", "content": "Hi"}]  # the engine answers "user\nHi"
WEATHER = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
MARKERS = "{# <think></think><tool_call> #}{% if tools %}{% endif %}"
ECHO = MARKERS + "{{ messages[-1].content + '<|im_end|>' }}"


def client_of(served: Served, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, **options)


@pytest.fixture
def client(served: Served) -> anthropic.Anthropic:
    return client_of(served)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[Served]:
    """Its model repeats the last message from the second byte on, and it says often that it is alive."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("echo") / "echo.gguf", template=ECHO, n_ctx=2048)
    settings = replace(ServerSettings(port=0), ping_s=0.02)
    with serving(single(path), settings) as server:
        yield server


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="claude", max_tokens=20, messages=HI)
    assert message.content[0].text == "user\nHi" and message.stop_reason == "end_turn"
    assert message.model == "tiny" and message.id.startswith("msg_")
    assert (message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0), message.usage.output_tokens) == (
        21,
        8,
    )


def test_models_are_listed_as_anthropics_clients_read_them(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name, model.created_at.tzname()) == ("tiny", "model", "tiny", "UTC")


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="claude", messages=HI)
    assert counted.input_tokens == 21


@pytest.mark.parametrize(("options", "reason"), [({"stop_sequences": ["r"]}, "stop_sequence"), ({}, "max_tokens")])
def test_an_answer_says_why_it_ended(client: anthropic.Anthropic, options: dict[str, Any], reason: str) -> None:
    message = client.messages.create(model="claude", max_tokens=5, messages=HI, **options)
    assert message.stop_reason == reason and message.stop_sequence == options.get("stop_sequences", [None])[0]


def test_a_stream_has_thoughts_text_and_calls_in_blocks_of_their_own(echo: Served) -> None:
    said = f"_<think>hm</think>Look:{CALL}{CALL}"
    with client_of(echo).messages.stream(
        model="m", max_tokens=1000, messages=[{"role": "user", "content": said}], tools=[WEATHER]
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "Look:" and message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "hm" and message.content[3].input == {"city": "Rome"}
    assert message.content[2].id != message.content[3].id
    assert message.usage.output_tokens == len(said)


def test_a_stream_says_that_it_is_alive(echo: Served) -> None:
    before_s = time.monotonic()
    _, headers, raw = echo.request(
        "POST", "/v1/messages", {"stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "\x05x"}]}
    )  # byte 5 makes the engine slow
    assert headers["content-type"].startswith("text/event-stream") and time.monotonic() - before_s < 10
    lines, ping = raw.decode().split("\n\n"), 'event: ping\ndata: {"type":"ping"}'
    assert lines.count(ping) > 1
    assert next(line for line in lines if line != ping).startswith("event: message_start\ndata: {")
    for each in filter(None, lines):
        name, data = each.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_a_header_that_changes_leaves_the_prompt_cached(client: anthropic.Anthropic) -> None:
    def cached(number: str) -> int:
        header = f"x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch={number};"
        system = [{"type": "text", "text": header}, {"type": "text", "text": "Be brief."}]
        made = client.messages.create(model="m", max_tokens=1, messages=HI, system=system)
        return made.usage.cache_read_input_tokens or 0

    cached("a5145")
    assert cached("0f00d") > 30


def test_a_beginning_of_the_answer_is_continued(client: anthropic.Anthropic) -> None:
    begun = [*HI, {"role": "assistant", "content": "Well, "}]
    n_tokens = client.messages.count_tokens(model="m", messages=begun).input_tokens
    assert n_tokens == 21 + len("Well, ")


def test_errors_have_anthropics_form(served: Served, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": [{"type": "image"}]}])
    assert caught.value.type == "invalid_request_error" and "reads text only" in str(caught.value.api_message)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: the prompt has"):
        client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "x" * 400}], stream=True)
    status, _, body = served.request("POST", "/v1/messages", b"{")
    assert status == 400 and body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert served.request("GET", "/v1/messages")[0] == 405


def test_a_key_is_taken_as_anthropics_clients_send_it(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf), replace(ServerSettings(port=0), api_keys=("secret",))) as server:
        made = anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0)
        assert made.messages.create(model="m", max_tokens=1, messages=HI).content
        with pytest.raises(anthropic.AuthenticationError):
            client_of(server).messages.create(model="m", max_tokens=1, messages=HI)


def test_a_forced_call_that_the_limit_cuts_is_a_block_of_what_was_written(echo: Served) -> None:
    call = '_{"name": "weather", "arguments": {"city": "Rome"}}'
    options: dict[str, Any] = {
        "model": "m",
        "max_tokens": call.index("ome"),
        "messages": [{"role": "user", "content": call}],
        "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    message = client_of(echo).messages.create(**options)
    assert message.stop_reason == "max_tokens"
    (block,) = message.content
    assert (block.type, block.name, block.input) == ("tool_use", "weather", {"city": "Ro"})
    with client_of(echo).messages.stream(**options) as stream:
        written = [event.partial_json for event in stream if event.type == "input_json"]
        assert "".join(written) == '{"city": "Ro'
        last = stream.get_final_message()
    assert [block.type for block in last.content] == ["tool_use"] and last.stop_reason == "max_tokens"


def test_a_tool_that_must_be_called_is_called(echo: Served) -> None:
    with pytest.raises(anthropic.BadRequestError, match="which is not among tools"):
        client_of(echo).messages.create(
            model="m", max_tokens=5, messages=HI, tools=[WEATHER], tool_choice={"type": "tool", "name": "rain"}
        )
