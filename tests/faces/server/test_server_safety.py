"""Who may use the server, and what it takes: hosts, websites, keys, sizes, hostile bodies, clients that hang."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import fake_engine as fake
import openai
import pytest
from served import Served, serving, single
from work_time import assert_grows_linearly

from vkllm.errors import InvalidParameter
from vkllm.faces.server.bodies import json_object
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.guard import allows_origin, check_host
from vkllm.faces.server.serving import listening
from vkllm.faces.server.settings import ServerSettings

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
SLOW = {"prompt": chr(fake.SLOW) + "ab", "max_tokens": 200}  # 50 ms a token


@pytest.fixture(scope="module")
def guarded(tiny_gguf: Path, fake_engines: None) -> Iterator[Served]:
    """A server with keys and narrow limits."""
    settings = ServerSettings(
        port=0, api_keys=("one", "zwei-ü"), max_body_bytes=1 << 20, max_connections=8, read_s=0.5, write_s=0.5,
        ping_s=0.1, cors_origins=("https://app.example",), has_metrics=True,
    )  # fmt: skip
    with serving(single(tiny_gguf), settings) as server:
        yield server


KEY = {"Authorization": "Bearer one"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer two"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer one, Bearer two"}, 401),
        (KEY, 200),
        ({"Authorization": "bearer one"}, 200),
        ({"X-Api-Key": "one"}, 200),
        ({"X-Api-Key": "two"}, 401),
    ],
)
def test_a_key_is_needed(guarded: Served, headers: dict[str, str], status: int) -> None:
    got, _, body = guarded.request("POST", CHAT, {"messages": HI, "max_tokens": 1}, headers)
    assert got == status
    if status == 401:
        assert body["error"]["type"] == "authentication_error" and "API key" in body["error"]["message"]
    assert guarded.request("GET", "/health")[0] == 200


def test_errors_have_the_form_of_their_clients(guarded: Served) -> None:
    forms = {path: guarded.request("POST", path, {})[2] for path in (CHAT, "/v1/messages", "/api/chat", "/completion")}
    assert forms[CHAT]["error"]["code"] == "invalid_api_key"
    assert forms["/v1/messages"]["type"] == "error"
    assert forms["/v1/messages"]["error"]["type"] == "authentication_error"
    assert isinstance(forms["/api/chat"]["error"], str)
    assert forms["/completion"]["error"]["code"] == 401
    assert guarded.request("GET", "/v1/nothing", headers=KEY)[0] == 404
    assert guarded.request("DELETE", CHAT, headers=KEY)[0] == 405


@pytest.mark.parametrize(
    ("host", "bound", "allowed", "is_taken"),
    [
        ("localhost:8080", "127.0.0.1", (), True),
        ("app.localhost", "127.0.0.1", (), True),
        ("127.0.0.1", "127.0.0.1", (), True),
        ("127.1.2.3:80", "127.0.0.1", (), True),
        ("[::1]:8080", "127.0.0.1", (), True),
        ("LOCALHOST.", "127.0.0.1", (), True),
        ("evil.com", "127.0.0.1", (), False),
        ("evil.com", "0.0.0.0", (), False),
        ("192.168.1.5:8080", "0.0.0.0", (), True),
        ("192.168.1.5:8080", "127.0.0.1", (), False),
        ("box.lan", "box.lan", (), True),
        ("box.lan:8080", "0.0.0.0", ("box.lan",), True),
        ("evil.com", "127.0.0.1", ("*",), True),
        ("localhost.evil.com", "127.0.0.1", (), False),
        ("evil.com#localhost", "127.0.0.1", (), False),
        ("localhost@evil.com", "127.0.0.1", (), False),
        ("localhost:port", "127.0.0.1", (), False),
        ("", "127.0.0.1", (), False),
        ("[::1", "127.0.0.1", (), False),
    ],
)
def test_only_names_of_this_server_are_taken(host: str, bound: str, allowed: tuple[str, ...], is_taken: bool) -> None:
    settings = ServerSettings(host=bound, allowed_hosts=allowed)
    if is_taken:
        check_host([host], settings)
    else:
        with pytest.raises(HttpError, match="is not this server's"):
            check_host([host], settings)


@pytest.mark.parametrize(
    ("origin", "allowed", "is_taken"),
    [
        ("http://localhost:3000", ("localhost",), True),
        ("https://127.0.0.1", ("localhost",), True),
        ("vscode-webview://abc", ("localhost",), True),
        ("http://evil.com", ("localhost",), False),
        ("http://localhost.evil.com", ("localhost",), False),
        ("null", ("localhost",), False),
        ("http://[", ("localhost",), False),
        ("https://app.example", ("https://app.example",), True),
        ("http://localhost", ("https://app.example",), False),
        ("http://evil.com", ("*",), True),
    ],
)
def test_only_pages_of_known_websites_are_answered(origin: str, allowed: tuple[str, ...], is_taken: bool) -> None:
    assert allows_origin(origin, ServerSettings(cors_origins=allowed)) == is_taken


def test_pages_are_told_by_cors_what_they_may(guarded: Served) -> None:
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = guarded.request("OPTIONS", CHAT, headers=ask)
    assert status == 200 and headers["access-control-allow-origin"] == "https://app.example"
    status, headers, _ = guarded.request("OPTIONS", CHAT, headers={**ask, "Origin": "https://evil.com"})
    assert "access-control-allow-origin" not in headers
    body = {"messages": HI, "max_tokens": 1}
    status, headers, _ = guarded.request("POST", CHAT, body, {**KEY, "Origin": "https://app.example"})
    assert status == 200 and headers["access-control-allow-origin"] == "https://app.example"
    status, _, answer = guarded.request("POST", CHAT, body, {**KEY, "Origin": "https://evil.com"})
    assert status == 403 and "--cors-origins" in answer["error"]["message"]
    assert guarded.request("POST", CHAT, body, {**KEY, "Host": "evil.com"})[0] == 403
    own = {**KEY, "Origin": guarded.url}  # the page of the server itself
    assert guarded.request("POST", CHAT, body, own)[0] == 200


def nested(n: int) -> bytes:
    return b'{"messages":' + b"[" * n + b"]" * n + b"}"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is empty"),
        (b"[]", "must be a JSON object, not a list"),
        (b'{"messages": [', "is no JSON"),
        (b'{"messages": NaN}', "NaN is no number in JSON"),
        (b'{"temperature": 1' + b"0" * 5000 + b"}", "a whole number has 5001 digits"),
        (b'{"messages": "\xff"}', "is no UTF-8"),
        (b'{"messages": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (nested(100), "more than 100 levels deep"),
    ],
)
def test_what_is_no_sound_json_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(HttpError, match=problem):
        json_object(body)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (nested, "more than 100 levels deep"),
        (lambda n: b'{"a": "' + b'\\"' * n, "is no JSON"),
        (lambda n: b'"' * 2 * n, "is no JSON"),
    ],
)
def test_refusing_what_is_no_sound_json_takes_time_that_grows_with_it(
    body: Callable[[int], bytes], problem: str
) -> None:
    def refuse(n: int) -> None:
        with pytest.raises(HttpError, match=problem):
            json_object(body(n))

    assert_grows_linearly(refuse, 25_000)


def test_sound_json_is_read() -> None:
    assert json_object(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00 [[[ \\\\", "b": 1e3}') == {"a": "😀 [[[ \\", "b": 1000.0}
    assert json_object(nested(98))["messages"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"logit_bias": {str(n): 1 for n in range(30_000)}}, "logit_bias"),
        ({"stop": ["x"] * 20_000}, "stop"),
        ({"stop": ["x" * 100_000]}, "stop"),
        ({"max_tokens": 1e400}, "max_tokens must be a whole number"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": [{"role": "user", "content": "x" * 500_000}]}, "context"),
        ({"messages": [HI] * 3}, "message"),
        ({"messages": HI * 4000}, "the prompt has 4000 messages, but a context of"),
        ({"messages": [{"role": "{{ 7 * 7 }}", "content": "a\0b"}], "max_tokens": 1}, None),
        ({"messages": [{"role": "user", "content": "<|im_end|>{% for x in range(10**9) %}x{% endfor %}"}]}, None),
        ({"messages": []}, "messages is empty"),
        ({"n": 10_000}, "n must be"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}]}, "tools"),
        ({"chat_template_kwargs": {"messages": []}}, "messages"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}, "json_schema"),
        ({"model": 3}, "model must be a string"),
        ({"stream": "yes"}, "stream must be true or false"),
    ],
)
def test_hostile_parameters_are_refused_quickly(
    served: Served, changes: dict[str, object], problem: str | None
) -> None:
    started = time.monotonic()
    data = json.dumps({"messages": HI, "max_tokens": 4, **changes}).replace("Infinity", "1e400").encode()
    status, _, body = served.request("POST", CHAT, data)
    assert time.monotonic() - started < 8
    if problem is None:
        assert status == 200
    else:
        assert status == 400 and problem in body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "n"), [("/v1/completions", "n"), ("/completion", "n_cmpl"), ("/completion", "n"), ("/completion", "")]
)
def test_one_request_cannot_ask_for_answers_without_end(served: Served, path: str, n: str) -> None:
    asked = {"prompt": ["a"] * (17 if n else 2049), "max_tokens": 1, **({n: 128} if n else {})}
    status, _, body = served.request("POST", path, asked)
    assert status == 400 and "prompt must be at most" in body["error"]["message"]


def test_large_bodies_are_refused_before_they_are_read(guarded: Served) -> None:
    with socket.create_connection((guarded.host, guarded.port)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: one\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert b" 413 " in client.recv(4096)
    status, _, body = guarded.request("POST", CHAT, b"x" * ((1 << 20) + 1), KEY)
    assert status == 413 and "larger than 1048576 bytes" in body["error"]["message"]
    assert guarded.request("GET", "/metrics", headers=KEY)[0] == 200


def test_connections_are_bounded_and_silent_ones_closed(guarded: Served) -> None:
    def refused(client: socket.socket) -> bool:
        return bool(select.select([client], [], [], 0)[0]) and client.recv(1, socket.MSG_PEEK) != b""

    deadline = time.monotonic() + 120
    with ExitStack() as attempt:
        while True:
            clients = [socket.create_connection((guarded.host, guarded.port), timeout=120) for _ in range(9)]
            for client in clients:
                attempt.enter_context(client)
            answer = clients.pop().recv(4096)
            # A connection of the test before may still be open, and on a busy machine the first of these are closed
            # before the last is there.
            if b" 503 " in answer and not any(map(refused, clients)):
                break
            assert time.monotonic() < deadline, answer
            attempt.close()
        assert b"Retry-After: 1" in answer
        with suppress(OSError):  # closed by now
            clients[0].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        for client in clients:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""  # closed, because no request came


def test_a_body_that_does_not_come_is_not_waited_for(guarded: Served) -> None:
    with socket.create_connection((guarded.host, guarded.port), timeout=120) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: one\r\nContent-Length: 99\r\n\r\n{"
        )
        assert b" 408 " in client.recv(4096)


def test_a_full_queue_answers_429_in_each_form(tiny_gguf: Path, fake_engines: None) -> None:
    with serving(single(tiny_gguf, queue=0)) as server:
        raw = json.dumps(SLOW).encode()
        with socket.create_connection((server.host, server.port)) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
            client.sendall(head.encode() + raw)
            wait_until(lambda: server.models.only is not None and server.models.only.n_users == 1)
            status, headers, body = server.request("POST", CHAT, {"messages": HI})
            assert status == 429 and headers["retry-after"] == "1"
            told = f"{server.models.only.name} has 1 requests, as many as may wait for it; try again later"
            kinds = {"type": "rate_limit_error", "code": "rate_limit_exceeded", "param": None}
            assert body == {"error": {"message": told, **kinds}}
            asked = {"messages": HI, "max_tokens": 9, "model": "m"}
            status, headers, body = server.request("POST", "/v1/messages", {**asked, "stream": True})
            assert (status, body["error"]) == (429, {"type": "rate_limit_error", "message": told})
            assert server.request("POST", "/api/chat", asked)[::2] == (429, {"error": told})
            with pytest.raises(openai.RateLimitError, match="as many as may wait"):
                openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0).completions.create(
                    model="m", prompt="X"
                )
        wait_until(lambda: server.models.only is not None and server.models.only.n_users == 0)
        assert server.request("POST", CHAT, {"messages": HI})[0] == 200


def wait_until(is_so: object, limit_s: float = 120.0) -> None:
    assert callable(is_so)
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_place_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidParameter, match=f"cannot listen at 127.0.0.1 port {port}"):
            listening(ServerSettings(port=port))
    with pytest.raises(InvalidParameter, match=r"cannot listen at no\.such\.host\.invalid"):
        listening(ServerSettings(host="no.such.host.invalid"))
