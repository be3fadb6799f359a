"""ollama's API for the ollama package and for plain HTTP."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from served import Served, serving
from tiny_gguf import write_tiny_gguf

from vkllm.faces.server import ollama_models
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models
from vkllm.faces.server.names import KnownModels
from vkllm.faces.server.ollama_models import fetchable
from vkllm.store.downloads.files import OnProgress

HI = [{"role": "user", "content": "Hi"}]  # the engine answers "user\nHi"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
MARKERS = "{# <think></think><tool_call> #}{% if tools %}{% endif %}"
ECHO = MARKERS + "{{ messages[-1].content + '<|im_end|>' }}"


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return city


@pytest.fixture
def client(served: Served) -> ollama.Client:
    return ollama.Client(host=served.url)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[Served]:
    """A server of all models of a folder: one that repeats the last message from its second byte on, and another."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_gguf(folder / "echo.gguf", template=ECHO, n_ctx=1024)
    write_tiny_gguf(folder / "other.gguf")
    with serving(Models(KnownModels(folder)), waits=False) as server:
        yield server


def test_a_chat_is_answered_whole_and_as_a_stream(client: ollama.Client) -> None:
    made = client.chat("tiny", HI)
    assert (made.message.role, made.message.content, made.done_reason) == ("assistant", "user\nHi", "stop")
    assert (made.prompt_eval_count, made.eval_count) == (21, 8)
    assert (made.total_duration or 0) > (made.load_duration or 0) + 8 * 2_000_000, "eight steps of two milliseconds"
    parts = list(client.chat("tiny", HI, stream=True, options={"num_predict": 5}))
    assert "".join(part.message.content or "" for part in parts) == "user\n"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "length" and (parts[-1].total_duration or 0) > 0
    assert parts[0].model == "tiny" and parts[0].created_at is not None


def test_streams_are_lines_of_json(served: Served) -> None:
    _, headers, raw = served.request("POST", "/api/chat", {"model": "tiny", "messages": HI})
    assert headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["done"] for line in raw.decode().splitlines()][-1] is True


def test_thoughts_and_calls_are_apart_from_the_text(several: Served) -> None:
    client = ollama.Client(host=several.url)
    asked = [{"role": "user", "content": f"_<think>hm</think>Look:{CALL}"}]
    made = client.chat("echo", asked, tools=[weather], think=True)
    assert (made.message.content, made.message.thinking) == ("Look:", "hm")
    assert made.message.tool_calls is not None
    assert made.message.tool_calls[0].function.arguments == {"city": "Rome"}
    assert client.chat("echo", asked, tools=[weather], think=False).message.thinking is None


def test_a_prompt_is_answered_or_continued_as_it_is(client: ollama.Client) -> None:
    assert client.generate("tiny", "Hi").response == "user\nHi"
    raw = client.generate("tiny", "abc", raw=True, options={"num_predict": 3})
    assert raw.response == "bcb" and raw.prompt_eval_count == 3
    assert "".join(part.response or "" for part in client.generate("tiny", "Hi", stream=True)) == "user\nHi"


def test_an_answer_has_the_form_of_a_schema(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="json_schema"):
        client.chat("tiny", HI, format={"type": "hiccup"})


def test_logprobs(client: ollama.Client) -> None:
    made = client.chat("tiny", HI, logprobs=True, top_logprobs=2, options={"num_predict": 2})
    assert made.logprobs is not None and [entry.token for entry in made.logprobs] == ["u", "s"]
    assert len(made.logprobs[0].top_logprobs or ()) == 2


def test_embeddings_have_length_one(client: ollama.Client) -> None:
    made = client.embed("tiny", ["ab", "abcd"])
    assert [math.hypot(*vector) for vector in made.embeddings] == pytest.approx([1, 1])
    assert made.prompt_eval_count == 6
    assert client.embed("tiny", []).embeddings == []
    assert client.embeddings("tiny", "ab").embedding == pytest.approx(made.embeddings[0])
    assert client.embed("tiny", "ab", dimensions=1).embeddings == [[1.0]]
    assert client.embed("tiny", "x" * 400).prompt_eval_count == 256, "it is longer than the context"
    with pytest.raises(ollama.ResponseError, match="the context holds 256"):
        client.embed("tiny", "x" * 400, truncate=False)


def test_models_are_listed_shown_loaded_and_unloaded(several: Served) -> None:
    client = ollama.Client(host=several.url)
    here = client.list().models
    assert {"echo", "other"} <= {model.model for model in here}
    shown = client.show("echo")
    assert shown.capabilities == ["completion", "tools", "thinking"] and shown.template == ECHO
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 1024
    client.generate("echo", keep_alive="10m")
    running = {model.model: model for model in client.ps().models}["echo"]
    assert running.context_length == 1024 and running.expires_at is not None
    assert client.chat("echo", keep_alive=0).done_reason == "unload"
    assert "echo" not in {model.model for model in client.ps().models}
    for name in ("nothing", "../echo", "/etc/passwd"):
        with pytest.raises(ollama.ResponseError, match="there is no model") as caught:
            client.show(name)
        assert caught.value.status_code == 404


def test_a_context_is_made_longer_on_request(several: Served) -> None:
    client = ollama.Client(host=several.url)
    client.generate("other", keep_alive=0)
    for n_ctx in (64, 128):
        client.chat("other", HI, options={"num_ctx": n_ctx, "num_predict": 1})
        running = {model.model: model for model in client.ps().models}["other"]
        assert running.context_length == n_ctx


def test_errors_have_ollamas_form(served: Served, client: ollama.Client) -> None:
    pixel = _png()
    with pytest.raises(ollama.ResponseError, match="message 0 has images") as caught:
        client.chat("tiny", [{"role": "user", "content": "Hi", "images": [pixel]}])
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="suffix is not in vkllm"):
        client.generate("tiny", "Hi", suffix="x")
    assert served.request("POST", "/api/chat", {})[2] == {
        "error": "model is required; GET /api/tags lists the models that are here"
    }
    status, _, body = served.request("POST", "/api/copy", {"source": "a", "destination": "b"})
    assert status == 501 and "not in vkllm" in body["error"]
    assert served.request("DELETE", "/api/delete", {"model": "tiny"})[0] == 403


def _png() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    ).decode()


def test_a_download_says_how_far_it_is(
    served: Served, client: ollama.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pull(name: str, *, on_progress: OnProgress | None = None) -> Path:
        if on_progress is not None:
            on_progress(name, 5, 10)
        return tmp_path

    monkeypatch.setattr(ollama_models, "pull", pull)
    lines = [(line.status, line.completed, line.total) for line in client.pull("smollm2", stream=True)]
    assert lines[0] == ("pulling manifest", None, None) and lines[-1] == ("success", None, None)
    assert client.pull("llama3.2:1b").status == "success"

    def broken(name: str, **_: Any) -> Path:
        raise HttpError(404, f"{name} is not there")

    monkeypatch.setattr(ollama_models, "pull", broken)
    with pytest.raises(ollama.ResponseError, match="smollm2 is not there"):
        list(client.pull("smollm2", stream=True))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("smollm2", "smollm2"),
        ("hf.co/a/b:Q4_0", "hf.co/a/b:Q4_0"),
        ("orca-mini:3b", "ollama:orca-mini:3b"),
        ("user/model", "ollama:user/model"),
    ],
)
def test_what_can_be_fetched(name: str, ours: str) -> None:
    assert fetchable(name) == ours


@pytest.mark.parametrize(
    "name",
    [
        "https://example.com/m.gguf",
        "http://127.0.0.1/m.gguf",
        "127.0.0.1:8000/a/b",
        "example.com/a/b",
        "/etc/x.gguf",
        "../x",
    ],
)
def test_a_client_cannot_make_the_server_ask_any_address(name: str) -> None:
    with pytest.raises(HttpError, match="is no model that can be fetched"):
        fetchable(name)


def test_a_model_that_another_program_fetched_is_not_deleted(several: Served) -> None:
    client = ollama.Client(host=several.url)
    with pytest.raises(ollama.ResponseError, match="was not fetched by vkllm"):
        client.delete("other")
    assert "other" in {model.model for model in client.list().models}
