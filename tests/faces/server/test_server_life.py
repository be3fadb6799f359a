"""From start to end: loading, clients that hang up or read nothing, engines that die, signals."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fake_engine as fake
import pytest
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

from vkllm.errors import VkllmError
from vkllm.faces.server.settings import ServerSettings

HI = [{"role": "user", "content": "Hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SLOW = {"prompt": chr(fake.SLOW) + "ab", "max_tokens": 240, "stream": True}  # 50 ms a token


def send(server: Served, path: str, body: object) -> socket.socket:
    """A connection on which a request was sent."""
    raw = json.dumps(body).encode()
    client = socket.create_connection((server.host, server.port), timeout=120)
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return client


def wait_until(is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def n_users(server: Served) -> int:
    assert server.models.only is not None
    return server.models.only.n_users


def test_requests_wait_for_the_model_with_503(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf), waits=False) as server:
        status, headers, body = server.request("GET", "/health")
        assert status == 503 and body["error"]["message"] == "Loading model" and headers["retry-after"] == "1"
        assert server.request("POST", CHAT, {"messages": HI})[0] == 503
        assert server.request("GET", "/v1/models")[2]["data"][0]["status"]["value"] == "loading"
        wait_until(lambda: server.request("GET", "/health")[0] == 200)
        assert server.request("GET", "/health")[2] == {"status": "ok"}
        assert server.request("POST", CHAT, {"messages": HI})[0] == 200


def test_a_model_that_was_unloaded_comes_back_with_the_next_request(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf)) as server:
        assert server.request("POST", "/models/unload", {"model": "tiny"})[0] == 200
        assert server.request("GET", "/v1/models")[2]["data"][0]["status"]["value"] == "unloaded"
        assert server.request("GET", "/health")[0] == 200
        assert server.request("POST", CHAT, {"messages": HI})[0] == 200


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_gguf: Path, fake_engines: None) -> None:
    from vkllm.faces.server.serving import serve

    with pytest.raises(VkllmError, match="no Vulkan device was found"):
        serve(single(tiny_gguf, options={"device": "none"}), ServerSettings(port=0))


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_stops_his_answer_within_a_step(served: Served, stream: bool) -> None:
    client = send(served, TEXT, {**SLOW, "stream": stream})
    if stream:
        client.recv(4096)
    else:
        wait_until(lambda: n_users(served) == 1)
        time.sleep(0.1)
    client.close()
    started = time.monotonic()
    assert served.request("POST", CHAT, {"messages": HI})[0] == 200  # the engine runs one request at a time
    assert time.monotonic() - started < 8  # the other one would have taken 12 seconds
    wait_until(lambda: n_users(served) == 0)


def test_a_stream_says_that_it_lives_and_errors_come_in_it(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf), ServerSettings(port=0, ping_s=0.02)) as server:
        raw = server.request("POST", TEXT, {**SLOW, "max_tokens": 3})[2]
        assert b": ping\n\n" in raw and raw.endswith(b"data: [DONE]\n\n")
        events = server.events(TEXT, {"prompt": chr(fake.FAIL) + "ab", "stream": True, "max_tokens": 9})
        assert [event["choices"][0]["text"] for event in events[:-1]] == ["a", "b", "a"]
        assert events[-1]["error"]["message"] == "the fake device was lost"


def test_a_dead_engine_is_told_with_503_and_comes_back(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf)) as server:
        die = {"prompt": chr(fake.DIE) + "ab", "max_tokens": 9}
        status, headers, body = server.request("POST", TEXT, die)
        assert status == 503 and headers["retry-after"] == "1"
        assert "was killed by SIGKILL" in body["error"]["message"]
        assert server.request("POST", CHAT, {"messages": HI})[0] == 200  # with a new engine
        assert server.request("POST", TEXT, die)[0] == 503
        status, _, body = server.request("GET", "/health")
        assert status == 503 and "is being started again" in body["error"]["message"]
        wait_until(lambda: server.request("GET", "/health")[0] == 200)


def test_who_reads_nothing_is_left(tiny_gguf: Path, fake_engines: None) -> None:
    settings = ServerSettings(port=0, write_s=0.3)
    with serving(single(tiny_gguf), settings) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((server.host, server.port))
            body = {
                "messages": [{"role": "user", "content": "x" * 90}],
                "logprobs": True,
                "top_logprobs": 20,
                "n": 9,
                "max_tokens": 90,
            }
            raw = json.dumps({**body, "stream": True}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
            client.sendall(head.encode() + raw)
            wait_until(lambda: n_users(server) == 1)
            wait_until(lambda: n_users(server) == 0, 30)
            n_read = 0
            try:
                while data := client.recv(65536):
                    n_read += len(data)
            except ConnectionResetError:
                n_read += 1
            assert 0 < n_read < 800_000  # of 900 kB
        assert server.request("POST", CHAT, {"messages": HI})[0] == 200


def test_an_engine_that_hangs_does_not_keep_the_server(
    tiny_gguf: Path, fake_engines: None, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(single(tiny_gguf)) as server:
        client = send(server, TEXT, {"prompt": chr(fake.HANG) + "ab"})
        wait_until(lambda: n_users(server) == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 30, "seconds, of the ten minutes that it hangs"
    assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
    client.close()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("path", "body", "head"),
    [
        ("/v1/messages", {"messages": [], "max_tokens": 3}, b"event: message_start"),
        ("/v1/responses", {"input": []}, b"event: response.created"),
    ],
)
def test_a_stream_begins_before_its_prompt_is_read(
    tmp_path: Path, fake_engines: None, path: str, body: dict[str, object], head: bytes
) -> None:
    model = write_tiny_gguf(tmp_path / "echo.gguf", template="{{ messages[-1].content }}")
    turns = [{"role": "user", "content": chr(fake.HANG)}]  # no token ever comes
    with serving(single(model), ServerSettings(port=0, has_metrics=True)) as server:
        asked = {name: value if value else turns for name, value in body.items()}
        client, received = send(server, path, {**asked, "stream": True}), b""
        while head not in received:
            received += (more := client.recv(4096))
            assert more, received
        assert b"vkllm_first_token_seconds_count 0" in server.request("GET", "/metrics")[2]
    client.close()


def test_metrics_count_what_was_answered(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf), ServerSettings(port=0, has_metrics=True)) as server:
        for stream in (False, True):
            server.request("POST", CHAT, {"messages": HI, "stream": stream})
        server.request("GET", "/no/such/path")
        _, headers, raw = server.request("GET", "/metrics")
        lines = raw.decode().splitlines()
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in (
            'vkllm_http_requests_total{path="/v1/chat/completions",status="200"} 2',
            'vkllm_http_requests_total{path="other",status="404"} 1',
            "vkllm_first_token_seconds_count 1",
            'vkllm_generated_tokens_total{model="tiny"} 16',
            'vkllm_cached_tokens_total{model="tiny"} 20',
            "llamacpp:prompt_tokens_total 22",
            "llamacpp:requests_processing 0",
            "llamacpp:n_tokens_max 29",
            "llamacpp:predicted_tokens_seconds 16.0",
        ):
            assert line in lines
        _, _, raw = server.request("GET", "/metrics")
        assert "llamacpp:predicted_tokens_seconds 0.0" in raw.decode().splitlines()  # nothing new since
        assert any(line.startswith('vkllm_memory_bytes{model="tiny",tier="local"}') for line in lines)
    with serving(single(tiny_gguf)) as server:
        assert server.request("GET", "/metrics")[0] == 501


SCRIPT = """
import functools, sys
from vkllm.engine.process.handle import EngineProcess
import vkllm.api.loading
vkllm.api.loading.EngineProcess = functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
sys.argv = ["vkllm", *sys.argv[1:]]
from vkllm.faces.cli.app import main
main()
"""


def test_sigterm_ends_in_time_and_says_so_to_who_waits(tiny_gguf: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}", "LLAMA_ARG_ALIAS": "tiny-alias"}
    command = [sys.executable, str(script), "serve", str(tiny_gguf), "--port", "0", "--log-json"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = json.loads(process.stderr.readline())["message"].rpartition(" ")[2]
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reader.start()
        server = Served(url, single(tiny_gguf), lambda: None)
        wait_until(lambda: server.request("GET", "/health")[0] == 200, 60)
        assert server.request("GET", "/v1/models")[2]["data"][0]["id"] == "tiny-alias"
        stream, whole = send(server, TEXT, SLOW), send(server, TEXT, {**SLOW, "stream": False})
        stream.recv(4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        for client in (stream, whole):
            told = b""
            while data := client.recv(65536):
                told += data
            assert b"the server was told to end" in told, "and not the end of an answer of 12 seconds"
            client.close()
        reader.join(120)
        entries = [json.loads(line) for line in lines]
        ends = [(entry["status"], entry["path"]) for entry in entries if entry.get("path") == TEXT]
        assert sorted(ends) == [(200, TEXT), (503, TEXT)]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_neither_threads_that_compute_nor_collections_of_garbage_hold_the_loop_up(tiny_gguf: Path) -> None:
    """Python's 5 ms for each thread and its 0.1 s for all objects are too long for `/health`."""
    before_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        with serving(single(tiny_gguf)):
            assert sys.getswitchinterval() < 0.001
            assert gc.get_freeze_count() > len(gc.get_objects()), "what stays is passed over"
        assert gc.get_freeze_count() == 0
    finally:
        sys.setswitchinterval(before_s)
