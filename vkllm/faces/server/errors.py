"""Errors as HTTP has them: a status, and a body in the form that each kind of client reads.

It knows vkllm's errors and these forms, and nothing of requests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vkllm.errors import (
    ContextOverflow,
    DeadlineExceeded,
    DeviceError,
    InvalidParameter,
    ModelNotFound,
    QueueFull,
    RequestError,
    UnsupportedModel,
    VkllmError,
)

Dialect = Literal["openai", "anthropic", "ollama", "llama.cpp"]
"""Whose form errors have."""

_LOG = logging.getLogger("vkllm.server")


class HttpError(VkllmError):
    """An error of the server itself. status: HTTP's. kind: llama.cpp's and OpenAI's `type`. code: OpenAI's `code`.

    retry_after_s: when to try again. is_final: the openai package must not try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.is_final = is_final


_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Problem:
    """An error on its way to a client. more: fields of the error beside its message."""

    status: int
    message: str
    kind: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_too_long(self) -> bool:
        """Whether the prompt does not fit into the context."""
        return self.kind == "exceed_context_size_error"

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """The body of the answer."""
        match dialect:
            case "anthropic":
                kind = _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
                too_long = "prompt is too long: "  # Claude Code looks for these words
                message = f"{too_long if self.is_too_long else ''}{self.message}"
                return {"type": "error", "error": {"type": kind, "message": message}}
            case "ollama":
                return {"error": self.message}
            case "llama.cpp":
                too_long = "the request exceeds the available context size: "  # what its clients look for
                message = f"{too_long if self.is_too_long else ''}{self.message}"
                return {"error": {"code": self.status, "message": message, "type": self.kind, **self.more}}
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                **self.more,
            }
        }


def problem_of(error: BaseException) -> Problem:
    """What a client is told of an error. One that is a mistake of vkllm's own is logged, and told without details."""
    message = str(error)
    match error:
        case HttpError():
            headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
            if error.is_final:
                headers["x-should-retry"] = "false"
            return Problem(error.status, message, error.kind, error.code, error.param, headers)
        case ContextOverflow():
            more = {"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx} if error.n_ctx is not None else {}
            return Problem(400, message, "exceed_context_size_error", "context_length_exceeded", more=more)
        case InvalidParameter():
            return Problem(400, message, "invalid_request_error", param=parameter_in(message))
        case ModelNotFound():
            return Problem(404, message, "not_found_error", "model_not_found", "model")
        case UnsupportedModel():
            return Problem(501, message, "not_supported_error")
        case QueueFull():
            return Problem(429, message, "rate_limit_error", "rate_limit_exceeded", headers={"Retry-After": "1"})
        case DeadlineExceeded():
            return Problem(408, message, "timeout_error", headers={"x-should-retry": "false"})
        case DeviceError():
            return Problem(503, message, "unavailable_error", headers={"Retry-After": "1"})
        case RequestError():
            return Problem(400, message, "invalid_request_error")
        case VkllmError():  # a damaged file
            return Problem(500, message, "server_error", headers={"x-should-retry": "false"})
    _LOG.error("a mistake in vkllm", exc_info=error)
    told = "vkllm made a mistake; the server's log says which"
    return Problem(500, told, "server_error", headers={"x-should-retry": "false"})


_PARAMETER = re.compile(r"([a-z][a-z_]*) (must|is not in vkllm|is empty|is for|needs|cannot)\b")


def parameter_in(message: str) -> str | None:
    """The parameter that a message of `InvalidParameter` is about, where it begins with its name."""
    return match[1] if (match := _PARAMETER.match(message)) else None
