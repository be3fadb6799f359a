"""`vkllm serve`: its options, and what it tells the person who has started it.

It knows Typer and the terminal; the server is `vkllm.faces.server`, imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vkllm.errors import InvalidParameter, ModelNotFound
from vkllm.faces.cli.llama_variables import VariableCommand
from vkllm.faces.cli.loading import LoadingFlags
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.cli.options import ModelName, ModelOption, add_command, chosen
from vkllm.faces.sampling import SamplingFlags
from vkllm.faces.terminal import complain, loading_bar

if TYPE_CHECKING:
    from vkllm.faces.server.settings import ServerSettings


Reasoning = Literal["on", "off", "auto"]


def _option(*names: str, panel: str = "Server", **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)


@dataclass(frozen=True)
class HttpFlags:
    """Options of how the server is reached and what it tells."""

    host: Annotated[
        str, _option("--host", metavar="HOST", help="Where to listen; 0.0.0.0 is all networks.", show_default=True)
    ] = "127.0.0.1"
    port: Annotated[int, _option("--port", min=0, max=65535, help="The port; 0 is any.", show_default=True)] = 8080
    timeout: Annotated[
        float | None,
        _option("-to", "--timeout", metavar="S", min=0.1, help="Leave clients that send or read nothing so long."),
    ] = None
    ping: Annotated[
        float,
        _option("--sse-ping-interval", metavar="S", help="How often a stream says it is alive; -1 is never."),
    ] = 5.0
    metrics: Annotated[bool, _option("--metrics", help="Counts for Prometheus at /metrics.")] = False
    slots: Annotated[bool, _option("--slots/--no-slots", help="What runs, at /slots.")] = True
    page: Annotated[bool, _option("--ui/--no-ui", help="The page at /.")] = True
    embeddings: Annotated[
        bool,
        _option(
            "--embeddings",
            "--embedding",
            "--rerank",
            "--reranking",
            help="As llama-server has them; every model makes embeddings, and ranks documents by theirs.",
        ),
    ] = False
    tags: Annotated[
        str | None, _option("--tags", metavar="TAG,...", help="Words about the models, for lists of them.")
    ] = None
    prefill: Annotated[
        bool,
        _option(
            "--prefill-assistant/--no-prefill-assistant",
            help="Go on where a last message of the assistant ends, instead of answering it.",
        ),
    ] = True
    verbose: Annotated[
        bool, _option("-v", "--verbose", help="Answers to chats tell the prompt that a conversation became.")
    ] = False
    offline: Annotated[bool, _option("--offline", help="Fetch no model, whoever asks for one.", panel="Safety")] = False
    log_json: Annotated[bool, _option("--log-json", help="A line of JSON for each request, on standard error.")] = False
    quiet: Annotated[bool, _option("--quiet", help="No line for each request.")] = False
    api_key: Annotated[
        list[str] | None,
        _option("--api-key", metavar="KEY,...", help="Keys, one of which a request must have.", panel="Safety"),
    ] = None
    api_key_file: Annotated[
        Path | None, _option("--api-key-file", metavar="FILE", help="A file with a key a line.", panel="Safety")
    ] = None
    ssl_key_file: Annotated[
        Path | None,
        _option("--ssl-key-file", metavar="FILE", help="The private key of TLS (PEM), for https.", panel="Safety"),
    ] = None
    ssl_cert_file: Annotated[
        Path | None, _option("--ssl-cert-file", metavar="FILE", help="Its certificate (PEM).", panel="Safety")
    ] = None
    allowed_hosts: Annotated[
        str | None,
        _option("--allowed-hosts", metavar="NAME,...", help="Names that the server is reached by.", panel="Safety"),
    ] = None
    cors_origins: Annotated[
        str | None,
        _option(
            "--cors-origins",
            metavar="ORIGIN,...",
            help="Websites whose pages may use the server; localhost (the default) are those of this machine, * (the "
            "default with a key, which they must know) is all.",
            panel="Safety",
        ),
    ] = None
    cors_methods: Annotated[
        str, _option("--cors-methods", metavar="METHOD,...", help="What these pages may do.", panel="Safety")
    ] = "GET, POST, DELETE, OPTIONS"
    cors_headers: Annotated[
        str, _option("--cors-headers", metavar="NAME,...", help="Headers that they may send.", panel="Safety")
    ] = "*"
    cors_credentials: Annotated[
        bool,
        _option("--cors-credentials/--no-cors-credentials", help="Whether they may send credentials.", panel="Safety"),
    ] = True
    max_body: Annotated[
        str, _option("--max-body", metavar="SIZE", help="The largest request.", panel="Safety", show_default=True)
    ] = "32MiB"
    max_connections: Annotated[
        int,
        _option("--max-connections", metavar="N", min=1, help="Open at a time.", panel="Safety", show_default=True),
    ] = 512

    def settings(self) -> ServerSettings:
        """The server's settings. Raises InvalidParameter."""
        from vkllm.faces.server.settings import ServerSettings
        from vkllm.gpu.device.probe import memory_bytes

        body_bytes = memory_bytes(self.max_body, "--max-body")
        keys = _keys(self.api_key or [], self.api_key_file)
        waits: Any = {} if self.timeout is None else {"read_s": self.timeout, "write_s": self.timeout}
        return ServerSettings(
            host=self.host,
            port=self.port,
            ssl_key_file=_expanded(self.ssl_key_file),
            ssl_cert_file=_expanded(self.ssl_cert_file),
            api_keys=keys,
            allowed_hosts=_listed(self.allowed_hosts),
            cors_origins=_listed(("*" if keys else "localhost") if self.cors_origins is None else self.cors_origins),
            cors_methods=self.cors_methods,
            cors_headers=self.cors_headers,
            has_cors_credentials=self.cors_credentials,
            max_body_bytes=body_bytes,
            max_bodies_bytes=max(8 * body_bytes, 64 * 2**20),
            max_connections=self.max_connections,
            ping_s=self.ping if self.ping > 0 else None,
            has_metrics=self.metrics,
            has_slots=self.slots,
            has_page=self.page,
            prefills=self.prefill,
            is_verbose=self.verbose,
            is_offline=self.offline,
            tags=_listed(self.tags),
            is_log_json=self.log_json,
            **waits,
        )


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this module to the command line."""
    add_command(
        app,
        serve,
        "vkllm serve smollm2",
        "vkllm serve --models-dir ~/models --port 9000",
        "vkllm serve smollm2 --host 0.0.0.0 --api-key-file keys.txt",
        kind=VariableCommand,
    )


def serve(
    sampling: SamplingFlags,
    loading: LoadingFlags,
    http: HttpFlags,
    model: ModelName = None,
    model_option: ModelOption = None,
    alias: Annotated[
        str | None, _option("-a", "--alias", metavar="NAME,...", help="Names of the model in answers and requests.")
    ] = None,
    models_dir: Annotated[
        Path | None, _option("--models-dir", metavar="FOLDER", help="A folder whose .gguf files are served too.")
    ] = None,
    models_max: Annotated[
        int | None, _option("--models-max", metavar="N", min=0, help="Models loaded at a time; 0 is as many as fit.")
    ] = None,
    autoload: Annotated[
        bool,
        _option(
            "--models-autoload/--no-models-autoload",
            help="Load a model when a request names it, or only by POST /models/load.",
        ),
    ] = True,
    queue: Annotated[
        int,
        _option(
            "--queue", metavar="N", min=0, help="Requests that may wait for a model beside -np.", show_default=True
        ),
    ] = 512,
    sleep_idle: Annotated[
        float | None,
        _option("--sleep-idle-seconds", metavar="S", help="Unload a model that nobody has used for so long."),
    ] = None,
    chat_template: Annotated[
        str | None,
        _option(
            "--chat-template",
            metavar="NAME|JINJA",
            help="A chat template in place of the file's: Jinja, or a name of llama.cpp's, such as chatml or llama3.",
        ),
    ] = None,
    chat_template_file: Annotated[
        Path | None, _option("--chat-template-file", metavar="FILE", help="A file with such a template.")
    ] = None,
    pooling: Annotated[
        str | None,
        _option(
            "--pooling",
            metavar="mean|cls|last",
            help="Of which tokens an embedding is made: all, the first or the last; the file says it otherwise.",
            autocompletion=lambda: ["mean", "cls", "last"],
        ),
    ] = None,
    template_kwargs: Annotated[
        str | None,
        _option("--chat-template-kwargs", metavar="JSON", help="What the template is given, if a request does not."),
    ] = None,
    reasoning: Annotated[
        Reasoning,
        _option(
            "-rea",
            "--reasoning",
            metavar="on|off|auto",
            help="Whether models think first, if a request does not say; auto: those that can.",
        ),
    ] = "auto",
) -> None:
    """Serve models over HTTP, as OpenAI, Anthropic, ollama and llama-server do.

    With a model, it is loaded at once, and answers whatever name a request gives. Without one, any model that is on
    this machine is loaded when a request names it; the least recently used ones make room.

    The options of sampling are for requests that name none. llama.cpp's LLAMA_ARG_* variables are read where they mean
    the same, such as LLAMA_ARG_PORT.
    """
    from vkllm.faces.server.models import Models
    from vkllm.faces.server.names import KnownModels
    from vkllm.faces.server.serving import serve as serve_http
    from vkllm.model.pooling import named_pooling
    from vkllm.store import look_up

    how: Any = loading.arguments() | {
        "sampling": sampling.arguments(),
        "chat_template": _template(chat_template, chat_template_file),
        "pooling": named_pooling(pooling),
        "variables": {"enable_thinking": reasoning != "off"} | _variables(template_kwargs),
    }
    name, settings = chosen(model, model_option, "") or None, http.settings()
    if models_dir is not None and not models_dir.expanduser().is_dir():
        raise InvalidParameter(f"--models-dir {models_dir}: there is no such folder")
    if alias and name is None:
        raise InvalidParameter("--alias names a model, and none is given; name one")
    if settings.has_cors_credentials and "*" in settings.cors_origins and not settings.api_keys:
        complain("warning", "--cors-origins '*' lets every website use the models; name the ones that may")
    _warn(settings.host, has_key=bool(settings.api_keys))
    _log(is_json=http.log_json, is_quiet=http.quiet)
    found = None if name is None else look_up(name)
    if found is not None:
        if found.path is None and http.offline:
            raise ModelNotFound(f"{name} is not on this machine, and with --offline nothing is fetched")
        found = ensure_here(found)
    with loading_bar() as on_progress:
        models = Models(
            KnownModels(models_dir),
            only=found,
            aliases=_listed(alias),
            options=how | {"on_progress": on_progress},
            sleep_s=math.inf if sleep_idle is None or sleep_idle < 0 else sleep_idle,
            queue=queue,
            most=models_max or None,
            loads_on_request=autoload,
        )
        serve_http(models, settings, on_listening=_tell)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)  # an engine in the middle of a step ends by itself; nobody waits for it


def _tell(addresses: list[str], stop: object) -> None:
    logging.getLogger("vkllm.server").info("listening on %s", " and ".join(addresses))


def _warn(host: str, *, has_key: bool) -> None:
    from vkllm.faces.server.guard import is_loopback

    if not has_key and not all(is_loopback(part.strip().strip("[]")) for part in host.split(",")):
        complain(
            "warning",
            f"--host {host} lets everyone on the network use the models; --api-key lets only those with a key",
        )


def _log(*, is_json: bool, is_quiet: bool) -> None:
    """What the server says goes to standard error, in lines or in lines of JSON."""
    if sys.stderr is None:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if is_json else logging.Formatter("vkllm: %(message)s"))
    for name, level in (("vkllm.server", logging.INFO), ("vkllm.access", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING if is_quiet and name == "vkllm.access" else level)
        logger.handlers = [handler]
        logger.propagate = False


class _JsonLines(logging.Formatter):
    """A line of JSON for each message; those of requests are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == "vkllm.access":
            return text
        return json.dumps({"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "message": text})


def _template(text: str | None, file: Path | None) -> str | None:
    from vkllm.text.named_templates import NAMED_TEMPLATES

    if file is None:
        if text is not None and "{" not in text and text.strip() not in NAMED_TEMPLATES:
            raise InvalidParameter(
                f"--chat-template takes a Jinja template, not {text!r:.60}, or a name: {', '.join(NAMED_TEMPLATES)}"
            )
        return text
    if text is not None:
        raise InvalidParameter("--chat-template and --chat-template-file are the same; give one of them")
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameter(f"--chat-template-file {file}: it cannot be read ({reason})") from None


def _variables(text: str | None) -> dict[str, Any]:
    try:
        variables = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidParameter(f"--chat-template-kwargs is no JSON: {error}") from None
    if not isinstance(variables, dict):
        raise InvalidParameter("--chat-template-kwargs must be a JSON object, such as '{\"enable_thinking\": false}'")
    return variables


def _expanded(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    keys = [key for text in given for key in _listed(text)]
    if given and not keys:
        raise InvalidParameter("--api-key is empty; give a key, or leave it out")
    if file is not None:
        try:
            lines = file.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidParameter(f"--api-key-file {file}: it cannot be read ({reason})") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InvalidParameter(f"--api-key-file {file}: there is no key in it; write one a line")
        keys += found
    return tuple(keys)
