"""/v1/chat/completions for the openai package and for plain HTTP."""

from __future__ import annotations

import openai
import pytest
from served import Served

HI = [{"role": "user", "content": "Hi"}]  # the engine answers "user\nHi"


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_a_chat_is_answered_with_counts_and_timings(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="any", messages=HI)
    assert made.choices[0].message.content == "user\nHi" and made.choices[0].finish_reason == "stop"
    assert made.model == "tiny" and made.usage is not None and made.usage.completion_tokens == 8
    assert made.timings["predicted_n"] == 8  # type: ignore[attr-defined]


def test_a_stream_has_the_role_the_text_and_the_reason(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="any", messages=HI, stream=True, stream_options={"include_usage": True}, max_tokens=5
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.model for chunk in chunks} == {"tiny"}
    *parts, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts) == "user\n"
    assert [chunk.choices[0].finish_reason for chunk in parts[-2:]] == [None, "length"]
    assert usage.choices == [] and usage.usage is not None and usage.usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in parts)


def test_a_stream_ends_with_done_and_never_sends_null_timings(served: Served) -> None:
    events = served.events("/v1/chat/completions", {"messages": HI, "stream": True})
    assert events[-1] == "[DONE]"
    assert events[-2]["timings"]["predicted_n"] == 8 and "usage" not in events[-2]
    assert all("timings" not in event for event in events[:-2])


def test_unknown_parameters_are_ignored_and_wrong_ones_refused(served: Served, client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="m", messages=HI, extra_body={"tfs_z": 2, "typo": [1]})
    assert made.choices[0].message.content == "user\nHi"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=HI, temperature=-1)
    assert caught.value.body == {
        "message": "temperature must be a number between 0 and 100, not -1",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }


def test_a_chat_that_is_too_long_is_refused_with_counts(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 400}], stream=stream)
        body = caught.value.body
        assert isinstance(body, dict) and body["code"] == "context_length_exceeded"
        assert body["n_prompt_tokens"] > 400 and body["n_ctx"] == 256
