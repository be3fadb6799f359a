"""The command `vkllm serve` with the real engine, asked by the packages of OpenAI, Anthropic, ollama and LangChain, and
by Simon Willison's llm.

All tests ask one server. A greedy answer is known once it was given, so other clients and other ways to ask are
compared with it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from openai import OpenAI

pytestmark = [pytest.mark.gpu, pytest.mark.weights]

LONG_S = 400.0  # CI's machines are slow when they are busy
ASKED: list[Any] = [{"role": "user", "content": "Say hi"}]
GREEDY: dict[str, Any] = {"model": "smollm2", "messages": ASKED, "max_tokens": 5, "temperature": 0}
TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools: {{ tools | map(attribute="function.name") | join }} <tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # SmolLM2's own has no place for tools
FRUIT = {
    "type": "object",
    "properties": {"ripe": {"type": "boolean"}},
    "required": ["ripe"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "lamp",
        "parameters": {
            "type": "object",
            "properties": {"state": {"enum": ["on", "off"]}},
            "required": ["state"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Server:
    """A running `vkllm serve`. log: the file of its standard error."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    log, template = folder / "log", folder / "chat.jinja"
    template.write_text(TEMPLATE)
    command = [sys.executable, "-m", "vkllm", "serve", str(default_model), "--alias", "smollm2", "--port", "0"]
    command += ["-np", "4", "-c", "1024", "--metrics", "--log-json", "--chat-template-file", str(template)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream, text=True)
    try:
        end = time.monotonic() + LONG_S
        while not (lines := log.read_text()).endswith("\n"):
            assert process.poll() is None and time.monotonic() < end, lines
            time.sleep(0.05)
        port = int(json.loads(lines.splitlines()[0])["message"].rpartition(":")[2])
        made = Server(process, port, log)
        while (status := made.get("/health")[0]) != 200:
            assert status == 503 and process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield made
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def what_the_server_said(server: Server) -> Iterator[None]:
    """Its log during a test, which pytest shows if the test fails."""
    before = len(server.log.read_text())
    yield
    print(server.log.read_text()[before:])


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=LONG_S, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def greeting(client: OpenAI) -> str:
    """The greedy answer to ASKED."""
    answer = client.chat.completions.create(**GREEDY)
    assert answer.model == "smollm2" and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= 5 < answer.usage.prompt_tokens
    return str(answer.choices[0].message.content)


def test_a_stream_of_openai_has_the_text_of_the_whole_answer(client: OpenAI, greeting: str) -> None:
    stream = client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == greeting
    assert len(chunks) > 4
    usage = chunks[-1].usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens


def test_anthropics_package_gets_the_same_answer_whole_and_streamed(server: Server, greeting: str) -> None:
    greedy: Any = {"model": "smollm2", "messages": ASKED, "max_tokens": 5, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=server.url, api_key="any", timeout=LONG_S, max_retries=0) as client:
        answer = client.messages.create(**greedy)
        assert [block.text for block in answer.content if block.type == "text"] == [greeting]
        assert answer.role == "assistant" and answer.usage.output_tokens <= 5
        with client.messages.stream(**greedy) as stream:
            assert "".join(stream.text_stream) == greeting
        assert client.messages.count_tokens(model="smollm2", messages=ASKED).input_tokens > 2
        with pytest.raises(anthropic.BadRequestError, match="max_tokens") as caught:
            client.messages.create(**{**greedy, "max_tokens": 0})
        assert caught.value.status_code == 400
        assert isinstance(caught.value.body, dict) and caught.value.body["error"]["type"] == "invalid_request_error"


def test_ollamas_package_gets_the_same_answer_whole_and_streamed(server: Server, greeting: str) -> None:
    client = ollama.Client(server.url, timeout=LONG_S)
    options = {"num_predict": 5, "temperature": 0}
    answer = client.chat("smollm2", ASKED, options=options)
    assert answer.message.content == greeting and answer.done and answer.eval_count == 5
    parts = list(client.chat("smollm2", ASKED, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == greeting
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [(model.model or "").partition(":")[0] for model in client.ps().models] == ["smollm2"]
    with pytest.raises(ollama.ResponseError, match="suffix") as caught:
        client.generate("smollm2", "Hi", suffix="end")
    assert caught.value.status_code == 400


def test_langchain_gets_the_same_answer(server: Server, greeting: str) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(
        model="smollm2", base_url=f"{server.url}/v1", api_key="any", temperature=0, max_tokens=5, timeout=LONG_S
    )
    answer = model.invoke([("user", "Say hi")])
    assert answer.content == greeting and answer.usage_metadata["output_tokens"] == 5


def test_the_command_llm_gets_the_same_answer_whole_streamed_and_by_a_schema(
    server: Server, greeting: str, tmp_path: Path
) -> None:
    """With an entry as docs/serve.md shows it."""
    entry = f"- model_id: here\n  model_name: smollm2\n  api_base: {server.url}/v1\n  supports_schema: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)

    def llm(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "any"}
        command = [sys.executable, "-m", "llm", "-m", "here", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S)

    greedy = ["Say hi", "-o", "temperature", "0", "-o", "max_tokens"]
    for options in (["--no-stream"], []):
        done = llm(*greedy, "5", *options)
        assert (done.returncode, done.stdout.strip()) == (0, greeting.strip()), done.stderr
    done = llm(*greedy, "24", "--schema", json.dumps(FRUIT))
    assert isinstance(json.loads(done.stdout)["ripe"], bool), done.stderr
    done = llm("Say hi", "-o", "temperature", "9")
    assert done.returncode and "temperature" in done.stderr and "Traceback" not in done.stderr


def test_a_json_schema_is_kept(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "fruit", "strict": True, "schema": FRUIT}}
    answer = client.chat.completions.create(**{**GREEDY, "max_tokens": 24}, response_format=form)
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(answer.choices[0].message.content or "")
    assert list(found) == ["ripe"] and isinstance(found["ripe"], bool)


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(**{**GREEDY, "max_tokens": 48}, tools=[TOOL], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].type == "function" and calls[0].function.name == "lamp"
    arguments = json.loads(calls[0].function.arguments)
    assert list(arguments) == ["state"] and arguments["state"] in ("on", "off")


def test_embeddings_are_of_length_1_and_tell_texts_apart(client: OpenAI) -> None:
    answer = client.embeddings.create(model="smollm2", input=["cat", "the moon", "cat"])
    cat, moon, again = (each.embedding for each in answer.data)  # the package asks for base64
    assert len(cat) == 576 and abs(sum(x * x for x in cat) - 1) < 1e-3
    assert sum(x * y for x, y in zip(cat, again, strict=True)) > 0.999
    assert sum(x * y for x, y in zip(cat, moon, strict=True)) < 0.99
    assert answer.usage.prompt_tokens > 3


def test_errors_have_the_types_and_status_of_openai(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**GREEDY, "temperature": -1})
    assert (caught.value.status_code, caught.value.type, caught.value.param) == (
        400,
        "invalid_request_error",
        "temperature",
    )
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="smollm2", prompt="a b " * 1000, max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as not_found:
        client.files.list()
    assert not_found.value.status_code == 404


def test_four_requests_at_once_all_get_the_text_that_they_get_alone(client: OpenAI) -> None:
    prompts = ["One two three", "The sea is", "def add(a, b):", "Once upon a time"]

    def text_of(prompt: str) -> str:
        answer = client.completions.create(model="smollm2", prompt=prompt, max_tokens=4, temperature=0)
        return answer.choices[0].text

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(text_of, prompts))
    assert together == list(map(text_of, prompts)) and len(set(together)) == 4


def test_the_server_is_idle_soon_after_a_stream_was_cancelled(server: Server, client: OpenAI) -> None:
    stream = client.completions.create(model="smollm2", prompt="One two three", max_tokens=500, stream=True)
    next(iter(stream))
    assert [slot["is_processing"] for slot in json.loads(server.get("/slots")[1])].count(True) == 1
    stream.close()
    end = time.monotonic() + 10  # a step of a busy machine may take seconds
    while any(slot["is_processing"] for slot in json.loads(server.get("/slots")[1])):
        assert time.monotonic() < end
        time.sleep(0.05)
    lines = server.get("/metrics")[1].decode().splitlines()
    assert "llamacpp:requests_processing 0" in lines and "llamacpp:requests_deferred 0" in lines


def test_sigterm_ends_it_in_time_and_a_stream_is_told(server: Server, client: OpenAI) -> None:
    stream = client.completions.create(model="smollm2", prompt="One two three", max_tokens=500, stream=True)
    chunks = iter(stream)
    next(chunks)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="the server was told to end"):
        list(chunks)
    assert server.process.wait(120) == 0
    assert time.monotonic() - started < 2
    for line in server.log.read_text().splitlines():
        assert json.loads(line).keys() & {"message", "path"}, line  # no traceback
