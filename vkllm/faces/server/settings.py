"""How a server is set up: where it listens, who may use it, how much it takes at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerSettings:
    """The options of a server besides its models.

    host: an address or a name; several are joined by commas. ssl_key_file, ssl_cert_file: of TLS, which is spoken where
    both are given. api_keys: one of them is needed where there are any.
    allowed_hosts: names in `Host` besides the loopback ones and host; "*" is all. cors_origins: websites whose pages
    may use the server; "localhost" are those of this machine, "*" is all. max_body_bytes: of one request.
    max_bodies_bytes: of all requests that are being read or answered. max_connections: open at a time. read_s: how long
    a client may take to send a request. write_s: how long a client may read nothing. ping_s: how often a stream says
    that it is alive; None is never. grace_s: how long answers may go on after the server was told to end. prefills:
    whether the answer to a conversation that ends with the assistant goes on from there, as llama-server has it.
    is_verbose: whether answers tell their prompt (`__verbose`) without being asked. is_offline: whether requests to
    fetch models are refused. tags: of the models, told in lists of them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    ssl_key_file: Path | None = None
    ssl_cert_file: Path | None = None
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ("localhost",)
    cors_methods: str = "GET, POST, DELETE, OPTIONS"
    cors_headers: str = "*"
    has_cors_credentials: bool = True
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_connections: int = 512
    read_s: float = 60.0
    write_s: float = 60.0
    ping_s: float | None = 5.0
    grace_s: float = 0.5
    has_metrics: bool = False
    has_slots: bool = True
    has_page: bool = True
    prefills: bool = True
    is_verbose: bool = False
    is_offline: bool = False
    tags: tuple[str, ...] = ()
    is_log_json: bool = False
