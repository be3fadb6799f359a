"""OpenAI's other endpoints, for the openai package: responses, texts, embeddings, models; and langchain-openai."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
from langchain_openai import ChatOpenAI
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
ECHO = (
    "{# <think></think><tool_call> #}{% if tools %}{% endif %}"
    "{{ '<|im_start|>' + messages[-1].content + '<|im_end|>' }}"
)
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, fake_engines: None):
    """A server of a model that answers what the last message says."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("echo") / "echo.gguf", template=ECHO, n_ctx=2048)
    with serving(single(path, aliases=["echo", "parrot"])) as server:
        yield server


@pytest.fixture
def client(echo: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0)


def test_a_response_has_reasoning_text_and_calls(client: openai.OpenAI) -> None:
    said = f"<think>\nHm.\n</think>\n\nLook:\n{CALL}"
    made = client.responses.create(model="m", input=said, tools=[TOOL, {"type": "web_search"}])  # type: ignore[list-item]
    thought, message, call = made.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "Hm.")  # type: ignore[union-attr,index]
    assert made.output_text == "Look:" and message.id.startswith("msg_")
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Rome"}
    assert made.status == "completed" and made.usage is not None and made.usage.input_tokens == len(said) + 2
    assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens


def test_a_streamed_response_has_openais_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input=f"Look: {CALL}", tools=[TOOL], stream=True))  # type: ignore[list-item]
    kinds = [event.type.removeprefix("response.") for event in events if not event.type.endswith("delta")]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Look:"
    last = events[-1]
    assert last.type == "response.completed" and last.response.output[1].type == "function_call"
    assert last.response.model == "echo"


def test_a_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    made = client.responses.create(model="m", input="Hello", max_output_tokens=2)
    assert made.status == "incomplete" and made.output_text == "He"
    *_, done, last = client.responses.create(model="m", input="Hello", max_output_tokens=2, stream=True)
    assert done.type == "response.output_item.done" and done.item.status == "incomplete"  # type: ignore[union-attr]
    assert last.type == "response.incomplete"
    assert made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens"


def test_a_forced_call_in_a_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    made = client.responses.create(
        model="m",
        input=call,
        max_output_tokens=call.index('me"}'),
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice="required",
    )
    (item,) = made.output
    assert item.type == "function_call" and made.status == item.status == "incomplete"
    assert item.name == "weather" and item.arguments == '{"city": "Ro'


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "this server keeps nothing between requests"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "refers to an earlier request"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "vkllm reads parts of type 'text' only",
        ),
        ({"input": []}, "with at least one"),
        ({"input": [3]}, "item 0 of input must be an object"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "response_format must be"),
    ],
)
def test_what_a_response_cannot_be_made_of(echo: Served, asked: dict[str, object], problem: str) -> None:
    status, _, body = echo.request("POST", "/v1/responses", asked)
    assert status == 400 and problem in body["error"]["message"]


def test_a_conversation_of_items_becomes_messages(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model="m",
        instructions="Be short.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
    )
    assert made.output_text == "sunny"


def test_models_are_listed_with_what_clients_read(echo: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("parrot").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    (entry,) = echo.request("GET", "/v1/models")[2]["data"]
    assert entry["status"] == {"value": "loaded"} and entry["aliases"] == ["echo", "parrot"]
    assert entry["meta"]["n_ctx"] == 2048 and entry["architecture"]["input_modalities"] == ["text"]


def test_texts_are_continued(client: openai.OpenAI) -> None:
    made = client.completions.create(model="m", prompt=["Xab", "Xcd"], max_tokens=3, n=2)
    assert [choice.text for choice in made.choices] == ["aba", "aba", "cdc", "cdc"]
    chunks = list(client.completions.create(model="m", prompt="Xab", max_tokens=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "aba"
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[0].object == "text_completion"


def test_embeddings_come_as_numbers_or_base64(echo: Served, client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="m", input=["ab", "abcd"])  # base64, which the package decodes
    status, _, plain = echo.request("POST", "/v1/embeddings", {"input": ["ab", "abcd"], "encoding_format": "float"})
    assert status == 200 and plain["model"] == "echo" and plain["usage"]["prompt_tokens"] == 6
    for one, other in zip(made.data, plain["data"], strict=True):
        assert np.allclose(one.embedding, other["embedding"], atol=1e-6)
    for asked, problem in (
        ({"input": "ab", "dimensions": 8}, "dimensions must be"),
        ({"input": []}, "input is empty"),
        ({"input": ["a"] * 2049}, "at most 2048 texts"),
        ({"model": "m"}, "input must be"),
    ):
        status, _, body = echo.request("POST", "/v1/embeddings", asked)
        assert status == 400 and problem in body["error"]["message"]


def test_a_forced_call_and_n_answers_at_once(client: openai.OpenAI) -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    tool = {"type": "function", "function": {name: TOOL[name] for name in ("name", "parameters")}}
    made = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": call}],
        tools=[tool],  # type: ignore[list-item]
        tool_choice="required",
        n=2,
    )
    for choice in made.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hello"}], n=2, stream=True, seed=1
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "Hello", 1: "Hello"}


def test_an_answer_goes_on_where_the_last_message_ends(echo: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    for more, n_prompt in (({}, 7), ({"continue_final_message": False}, 5)):
        _, _, body = echo.request("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 1, **more})
        assert body["usage"]["prompt_tokens"] == n_prompt
    wrong = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    assert echo.request("POST", "/v1/chat/completions", wrong)[0] == 400


def test_langchain_streams_and_calls_tools(echo: Served) -> None:
    model = ChatOpenAI(base_url=f"{echo.url}/v1", api_key="none", model="m", max_retries=0)
    chunks = list(model.stream("Hello"))
    assert "".join(str(chunk.content) for chunk in chunks) == "Hello"
    tool = {"type": "function", "function": {"name": "weather", "parameters": TOOL["parameters"]}}
    answer = model.bind_tools([tool]).invoke(CALL)
    assert answer.tool_calls[0]["args"] == {"city": "Rome"}
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0


def test_whatever_the_description_offers_is_there(echo: Served) -> None:
    paths = echo.request("GET", "/openapi.json")[2]["paths"]
    offered = [(method, path) for path, methods in paths.items() for method in methods]
    assert {("post", "/v1/chat/completions"), ("get", "/slots"), ("post", "/v1/rerank")} <= set(offered)
    assert not {("get", "/metrics"), ("post", "/api/push")} & set(offered)  # answered with 501
    for method, path in offered:
        if path != "/models/sse":  # which does not end
            status, _, body = echo.request(method.upper(), path.replace("{", "").replace("}", ""), {})
            assert status < 500, (method, path, body)
