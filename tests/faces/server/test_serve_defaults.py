"""`vkllm serve` with sampling and a chat template for requests that name none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vkllm.errors import InvalidParameter, ModelNotFound
from vkllm.faces.cli.app import app
from vkllm.faces.server import serving
from vkllm.faces.server.models import Models
from vkllm.faces.server.settings import ServerSettings


def options_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The options that the models of a server would be loaded with."""
    return started(monkeypatch, *arguments)[0]


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServerSettings:
    """The settings of a server."""
    return started(monkeypatch, *arguments)[1]


def started(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict[str, Any], ServerSettings]:
    """What a server would be started with."""
    found: list[tuple[dict[str, Any], ServerSettings]] = []

    def serve(models: Models, settings: ServerSettings, **_: Any) -> None:
        found.append((dict(models.options), settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "serve", serve)
    # what it logs to is closed when the command ends, and the servers of later tests would log there
    monkeypatch.setattr("vkllm.faces.cli.serve._log", lambda **_: None)
    result = CliRunner().invoke(app, ["serve", *arguments], standalone_mode=False)
    if isinstance(result.exception, InvalidParameter | ModelNotFound):
        raise result.exception
    (made,) = found
    return made


def test_sampling_and_template_are_those_of_requests_that_name_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    options = options_of(monkeypatch, "--temp", "0", "-s", "5", "-n", "7", "--chat-template-file", str(file))
    assert options["sampling"] == {"temperature": 0.0, "seed": 5, "max_tokens": 7}
    assert options["chat_template"] == "{{ messages }}"
    plain = options_of(monkeypatch, "--embedding", "--tags", "small,chat")
    assert plain["sampling"] == {} and plain["chat_template"] is None and plain["pooling"] is None
    named = options_of(monkeypatch, "--chat-template", "llama3", "--pooling", "last", "--reranking")
    assert named["chat_template"] == "llama3" and named["pooling"] == "last"


def test_pages_of_all_websites_may_ask_where_they_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("--api-key", "a")
    assert settings_of(monkeypatch).cors_origins == ("localhost",)
    assert settings_of(monkeypatch, *key).cors_origins == ("*",)
    assert settings_of(monkeypatch, *key, "--cors-origins", "https://app.example").cors_origins == (
        "https://app.example",
    )
    assert settings_of(monkeypatch, "--verbose").is_verbose and not settings_of(monkeypatch).is_verbose


def test_offline_no_model_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path))
    assert settings_of(monkeypatch, "--offline").is_offline and not settings_of(monkeypatch).is_offline
    with pytest.raises(ModelNotFound, match="with --offline nothing is fetched"):
        settings_of(monkeypatch, "smollm2", "--offline")


def test_models_think_unless_an_option_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def variables(*arguments: str) -> Any:
        return options_of(monkeypatch, *arguments)["variables"]

    assert variables() == variables("--reasoning", "auto") == variables("-rea", "on") == {"enable_thinking": True}
    assert variables("--reasoning", "off") == {"enable_thinking": False}
    given = '{"enable_thinking": false, "role": "x"}'
    assert variables("--chat-template-kwargs", given) == {"enable_thinking": False, "role": "x"}
    monkeypatch.setenv("LLAMA_ARG_REASONING", "off")
    assert variables() == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat-template-file", "/no/such"], "--chat-template-file /no/such: it cannot be read"),
        (["--chat-template-file", "/no/such", "--chat-template", "x"], "are the same"),
        (["--chat-template", "llama33"], "takes a Jinja template, not 'llama33', or a name: chatml, "),
        (["--pooling", "rank"], "pooling must be mean, cls or last, not 'rank'"),
        (["--temp", "-1"], "--temp"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs is no JSON"),
        (["--chat-template-kwargs", "[1]"], "must be a JSON object"),
    ],
)
def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        options_of(monkeypatch, *arguments)
