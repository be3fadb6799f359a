"""What is no request that HTTP allows, or none that this server takes: each gets a status and a sentence in JSON."""

from __future__ import annotations

import gzip
import json
import socket

import pytest
from served import Served

CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n"


def raw(server: Served, sent: bytes) -> bytes:
    """All that the server answers until it closes the connection."""
    with socket.create_connection((server.host, server.port), timeout=120) as client:
        client.sendall(sent)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    "sent",
    [
        "GARBAGE\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        f"{HEAD}Content-Length: abc\r\n\r\n",
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n",
    ],
)
def test_what_is_no_http_is_told_in_json(served: Served, sent: str) -> None:
    head, _, body = raw(served, sent.encode("latin-1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request") and b"application/json" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["message"].startswith("this is no HTTP/1.1")


def test_compressed_bodies_and_wrong_methods_are_told(served: Served) -> None:
    body = gzip.compress(json.dumps({"messages": []}).encode())
    status, _, told = served.request("POST", CHAT, body, {"Content-Encoding": "gzip"})
    assert status == 415 and "compressed (gzip)" in told["error"]["message"]
    status, headers, told = served.request("PUT", CHAT, {})
    assert status == 405 and headers["allow"] == "POST" and "does not take PUT" in told["error"]["message"]
    assert served.request("POST", CHAT, {"messages": "x"}, {"Content-Encoding": "identity"})[0] == 400
