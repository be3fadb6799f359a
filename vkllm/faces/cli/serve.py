"""`vkllm serve`: its options, and what it tells the person who has started it.

It knows Typer and the terminal; the server is `vkllm.faces.server`, imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.loading import LoadingFlags
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.cli.options import ModelName, ModelOption, add_command, chosen
from vkllm.faces.terminal import complain, loading_bar


def _option(*names: str, panel: str = "Server", **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this module to the command line."""
    add_command(
        app,
        serve,
        "vkllm serve smollm2",
        "vkllm serve --models-dir ~/models --port 9000",
        "vkllm serve smollm2 --host 0.0.0.0 --api-key-file keys.txt",
    )


def serve(
    loading: LoadingFlags,
    model: ModelName = None,
    model_option: ModelOption = None,
    host: Annotated[
        str, _option("--host", metavar="HOST", help="Where to listen; 0.0.0.0 is all networks.", show_default=True)
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", min=0, max=65535, help="The port; 0 is any.", show_default=True)] = 8080,
    alias: Annotated[
        str | None, _option("-a", "--alias", metavar="NAME,...", help="Names of the model in answers and requests.")
    ] = None,
    models_dir: Annotated[
        Path | None, _option("--models-dir", metavar="FOLDER", help="A folder whose .gguf files are served too.")
    ] = None,
    models_max: Annotated[
        int | None, _option("--models-max", metavar="N", min=0, help="Models loaded at a time; 0 is as many as fit.")
    ] = None,
    sleep_idle: Annotated[
        float | None,
        _option("--sleep-idle-seconds", metavar="S", help="Unload a model that nobody has used for so long."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        _option("--api-key", metavar="KEY,...", help="Keys, one of which a request must have.", panel="Safety"),
    ] = None,
    api_key_file: Annotated[
        Path | None, _option("--api-key-file", metavar="FILE", help="A file with a key a line.", panel="Safety")
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        _option("--allowed-hosts", metavar="NAME,...", help="Names that the server is reached by.", panel="Safety"),
    ] = None,
    cors_origins: Annotated[
        str,
        _option(
            "--cors-origins",
            metavar="ORIGIN,...",
            help="Websites whose pages may use the server; * is all.",
            panel="Safety",
            show_default=True,
        ),
    ] = "localhost",
) -> None:
    """Serve models over HTTP, as OpenAI, Anthropic, ollama and llama-server do.

    With a model, it is loaded at once, and answers whatever name a request gives. Without one, any model that is on
    this machine is loaded when a request names it; the least recently used ones make room.
    """
    from vkllm.faces.server.models import Models
    from vkllm.faces.server.names import KnownModels
    from vkllm.faces.server.serving import serve as serve_http
    from vkllm.faces.server.settings import ServerSettings

    how: Any = loading.arguments()
    name = chosen(model, model_option, "") or None
    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=_keys(api_key or [], api_key_file),
        allowed_hosts=_listed(allowed_hosts),
        cors_origins=_listed(cors_origins),
    )
    if models_dir is not None and not models_dir.expanduser().is_dir():
        raise InvalidParameter(f"--models-dir {models_dir}: there is no such folder")
    _warn(settings.host, has_key=bool(settings.api_keys))
    found = None if name is None else ensure_here(name)
    if alias and found is None:
        raise InvalidParameter("--alias names a model, and none is given; name one")
    with loading_bar() as on_progress:
        models = Models(
            KnownModels(models_dir),
            only=found,
            aliases=_listed(alias),
            options=how | {"on_progress": on_progress},
            sleep_s=float("inf") if sleep_idle is None or sleep_idle < 0 else sleep_idle,
            most=models_max or None,
        )
        serve_http(models, settings, on_listening=_tell)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an engine in the middle of a step ends by itself; nobody waits for it


def _tell(addresses: list[str], stop: object) -> None:
    print(f"vkllm: listening on {' and '.join(addresses)}", file=sys.stderr, flush=True)


def _warn(host: str, *, has_key: bool) -> None:
    from vkllm.faces.server.guard import is_loopback

    if not has_key and not all(is_loopback(part.strip().strip("[]")) for part in host.split(",")):
        complain(
            "warning",
            f"--host {host} lets everyone on the network use the models; --api-key lets only those with a key",
        )


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    keys = [key for text in given for key in _listed(text)]
    if file is not None:
        try:
            lines = file.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidParameter(f"--api-key-file {file}: it cannot be read ({reason})") from None
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise InvalidParameter(f"--api-key-file {file}: there is no key in it; write one a line")
    return tuple(keys)
