"""Fields that several of ollama's requests have: options, format, think, keep_alive."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vkllm.api.answer import SamplingOptions
from vkllm.api.chat_request import SAMPLING_NAMES, text_field
from vkllm.errors import InvalidParameter
from vkllm.parameters import truth, whole_number

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"-?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+|-?\d+(?:\.\d*)?")
_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h|$)")


@dataclass(frozen=True)
class Common:
    """What chats, texts and embeddings have in common.

    n_ctx: the context to load the model with; None leaves that open. keep_alive_s: how long the model stays loaded
    after the answer, which may be infinite; None leaves that to the server.
    """

    model: str
    n_ctx: int | None
    keep_alive_s: float | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Common:
        """Raises InvalidParameter."""
        n_ctx = given_options(body).get("num_ctx")
        return cls(
            model_name(body),
            None if n_ctx in (None, 0, -1) else whole_number("num_ctx", n_ctx, 1, 2**31),
            keep_alive_s(body.get("keep_alive")),
        )


def model_name(body: Mapping[str, Any]) -> str:
    """The model that a body names, which older clients call name. Raises InvalidParameter."""
    name = text_field(body, "model") or text_field(body, "name")
    if not name:
        raise InvalidParameter("model is required; GET /api/tags lists the models that are here")
    return name


def is_stream(body: Mapping[str, Any]) -> bool:
    """Whether the answer comes in lines, which is ollama's default."""
    value = body.get("stream")
    return True if value is None else truth("stream", value)


def given_options(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a body. Raises InvalidParameter."""
    options = body.get("options")
    if not isinstance(options, Mapping | None):
        raise InvalidParameter(f"options must be an object, not of type {type(options).__name__}")
    return options or {}


def sampling_options(body: Mapping[str, Any]) -> SamplingOptions:
    """Options, format and logprobs as our options. A full context loses its middle, as in ollama."""
    given = given_options(body)
    made: dict[str, Any] = {
        ours: given[theirs] for theirs, ours in SAMPLING_NAMES.items() if given.get(theirs) not in (None, [])
    }
    n_predict = given.get("num_predict")
    if n_predict is not None and not (isinstance(n_predict, int) and n_predict < 0):
        made["max_tokens"] = n_predict
    made["context_shift"] = all(truth(name, body.get(name, True)) for name in ("shift", "truncate"))
    match body.get("format"):
        case None | "":
            pass
        case "json":
            made["json_schema"] = {"type": "object"}
        case Mapping() as schema:
            made["json_schema"] = schema
        case other:
            raise InvalidParameter(f'format must be "json" or a JSON schema, not {other!r:.60}')
    if truth("logprobs", body.get("logprobs") or False):
        made["logprobs"] = whole_number("top_logprobs", body.get("top_logprobs") or 0, 0, 20)
    return cast(SamplingOptions, made)


def think_variables(think: Any) -> dict[str, Any]:
    """What think says to a template. Raises InvalidParameter."""
    match think:
        case None:
            return {}
        case bool():
            return {"enable_thinking": think}
        case "low" | "medium" | "high" | "max":
            return {"enable_thinking": True, "reasoning_effort": "high" if think == "max" else think}
    raise InvalidParameter(f'think must be true, false, "low", "medium" or "high", not {think!r:.60}')


def refuse_images(body: Mapping[str, Any], where: str) -> None:
    """Raises InvalidParameter if there are any."""
    if body.get("images"):
        raise InvalidParameter(f"{where} has images; vkllm reads text only, so leave them out")


def keep_alive_s(value: Any) -> float | None:
    """Seconds: a number, or text such as "5m" or "1h30m"; a negative one is for ever. Raises InvalidParameter."""
    if value is None or value == "":
        return None
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not _DURATION.fullmatch(text):
        raise InvalidParameter(f'keep_alive must be a number of seconds or a text such as "5m", not {value!r:.60}')
    seconds = sum(float(number) * _UNITS_S.get(unit, 1.0) for number, unit in _PART.findall(text.lstrip("-")))
    return math.inf if text.startswith("-") else seconds
