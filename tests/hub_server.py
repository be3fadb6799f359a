"""A local server that speaks the hub's protocol, serves plain files and pip's links, and fails where it is told to.

The fixtures `server` and `hub` come to all tests by tests/conftest.py.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from vkllm.store import other_tools
from vkllm.store.downloads import files

COMMIT = "0123456789abcdef" * 2 + "01234567"
STALL_S = 12.0
OLLAMA_FACTS = {"model_format": "gguf", "model_family": "llama", "file_type": "Q8_0"}


@dataclass
class Faults:
    """What goes wrong. cut_after: bytes of a body, then the connection ends, so many times (n_cuts; -1: always)."""

    cut_after: int | None = None
    n_cuts: int = -1
    stalls_after_cut: bool = False
    """What is asked for after a cut has to wait until `may_go_on` is set."""
    status: int | None = None
    """Of every answer with a file."""
    announced_sha256: str | None = None
    """Instead of the right one."""
    commit: str = COMMIT
    ignores_ranges: bool = False
    has_lengths: bool = True
    """Whether answers with a file say how long it is."""
    has_etags: bool = True
    is_gated: bool = False
    is_no_hub: bool = False
    """Answers without the hub's headers."""


@dataclass(frozen=True)
class Seen:
    """A request: "GET /path", where its range begins, and its Authorization header."""

    line: str
    start: int
    authorization: str | None


class HubServer(http.server.ThreadingHTTPServer):
    """Serves what is in `hub` (repository -> file -> content) and in `files` (path -> content).

    redirects: path -> the address to look at instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.has_waited_in_vain = False  # a client stayed for all of the stall

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def lines(self, prefix: str = "") -> list[str]:
        return [seen.line for seen in self.seen if seen.line.startswith(prefix)]

    def add_ollama(
        self, model: str, tag: str, weights: bytes, facts: Mapping[str, str] = OLLAMA_FACTS, kind: str = "model"
    ) -> dict[str, Any]:
        """Puts a model with the usual layers into a registry of ollama; returns its manifest. model: library/NAME.

        kind: of the layer that has the weights.
        """
        image = "application/vnd.ollama.image."
        config = json.dumps(dict(facts)).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self.add_ollama_blob(model, config, "application/vnd.docker.container.image.v1+json"),
            "layers": [
                self.add_ollama_blob(model, weights, image + kind),
                self.add_ollama_blob(model, b"{{ .Prompt }}", f"{image}template"),
                self.add_ollama_blob(model, b'{"stop": ["<|end|>"]}', f"{image}params"),
            ],
        }
        self.files[f"/v2/{model}/manifests/{tag}"] = json.dumps(manifest).encode()
        return manifest

    def add_ollama_blob(self, model: str, content: bytes, kind: str) -> dict[str, Any]:
        """Puts a blob into a registry; returns how manifests name it."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.files[f"/v2/{model}/blobs/{digest}"] = content
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def add_wheel(self, wheel: Path) -> None:
        """Makes a wheel findable by pip under /links/."""
        self.files["/links/"] = f'<a href="/{wheel.name}">a wheel</a>'.encode()
        self.files[f"/{wheel.name}"] = wheel.read_bytes()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        start, _ = self._range()
        self.server.seen.append(Seen(f"{self.command} {self.path}", start, self.headers.get("Authorization")))
        path = unquote(urlsplit(self.path).path)
        if path in self.server.redirects:
            return self._refuse(302, {"Location": self.server.redirects[path]})
        if path.startswith("/api/models/"):
            return self._list(path.removeprefix("/api/models/"))
        if "/resolve/main/" in path:
            repo, _, name = path[1:].partition("/resolve/main/")
            return self._resolve(repo, name)
        if path.startswith("/cdn/"):
            contents = {hashlib.sha256(c).hexdigest(): c for files in self.server.hub.values() for c in files.values()}
            return self._send(contents[path.removeprefix("/cdn/")], {})
        if path in self.server.files:
            content = self.server.files[path]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:8]}"'} if self.server.faults.has_etags else {}
            return self._send(content, headers)
        self._refuse(404)

    def _list(self, repo: str) -> None:
        if not self._is_open(repo):
            return
        files = self.server.hub[repo]
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _resolve(self, repo: str, name: str) -> None:
        if not self._is_open(repo):
            return
        content = self.server.hub[repo].get(name)
        if content is None:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        faults = self.server.faults
        if faults.is_no_hub:
            return self._send(content, {})
        sha256 = hashlib.sha256(content).hexdigest()
        # As the hub does with large files: another host has the bytes, the hub says how many there are of what.
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{sha256}")
        self.send_header("X-Repo-Commit", faults.commit)
        if faults.has_lengths:
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-ETag", f'"{faults.announced_sha256 or sha256}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _is_open(self, repo: str) -> bool:
        if self.server.faults.is_gated:
            self._refuse(403, {"X-Error-Code": "GatedRepo"})
        elif repo not in self.server.hub:
            self._refuse(401, {"X-Error-Code": "RepoNotFound"})
        return not self.server.faults.is_gated and repo in self.server.hub

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        faults = self.server.faults
        if faults.status is not None:
            return self._refuse(faults.status)
        wanted = self.headers.get("Range")
        is_part = wanted is not None and not faults.ignores_ranges
        start, last = self._range() if is_part else (0, None)
        end = len(content) if last is None else min(last + 1, len(content))
        if start >= len(content) > 0:
            return self._refuse(416)
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if faults.has_lengths:
            self.send_header("Content-Length", str(end - start))
        else:
            self.close_connection = True
        is_page = self.path.endswith("/")
        if is_page:
            self.send_header("Content-Type", "text/html")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not is_page:
            self.server.has_waited_in_vain |= not self.server.may_go_on.wait(STALL_S)
        rest = content[start:end]
        if faults.cut_after is not None and faults.n_cuts != 0 and len(rest) > faults.cut_after:
            faults.n_cuts -= 1
            if faults.stalls_after_cut:
                self.server.may_go_on.clear()
            rest = rest[: faults.cut_after]
            self.close_connection = True
        self.wfile.write(rest)

    def _range(self) -> tuple[int, int | None]:
        """First and last byte that are asked for."""
        start, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        return int(start), int(last) if last else None

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.may_go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server as this process's hub and registry of ollama, with empty caches for it, vkllm and other programs.

    huggingface_hub reads its environment when it is imported, so its constants are set instead.
    """
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VKLLM_OLLAMA_REGISTRY", server.url)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama.cpp"))
    monkeypatch.setattr(other_tools, "lm_studio_folders", lambda: [tmp_path / "lmstudio"])
    monkeypatch.setattr(files, "RETRY_WAIT_S", 0.0)
    return server
