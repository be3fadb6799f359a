"""`/openapi.json`: what the server answers, for programs that read such descriptions.

Paths are those of the application, parameters those that `vkllm.api` takes, answers the shapes that it makes: nothing
is described twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, create_model
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.openai.completions import ChatCompletion, Completion, EmbeddingResponse
from vkllm.api.openai.options import ChatCompletionOptions, EmbeddingOptions, TextOptions, TransportOptions
from vkllm.faces.server.answers import Json
from vkllm.faces.server.guard import dialect_of
from vkllm.faces.server.settings import ServerSettings

_MESSAGES = {"type": "array", "items": {"type": "object"}}
_TEXT_OR_IDS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
    ]
}
_STRING, _TRUTH, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
_TEXTS = {"type": "array", "items": _STRING}
_FIELDS: dict[str, tuple[type[Any] | None, dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": (ChatCompletionOptions, {"messages": _MESSAGES}, ("messages",)),
    "/v1/completions": (TextOptions, {"prompt": _TEXT_OR_IDS}, ("prompt",)),
    "/v1/embeddings": (EmbeddingOptions, {"input": _TEXT_OR_IDS}, ("input",)),
    "/v1/responses": (
        None,
        {
            "input": {"anyOf": [_STRING, {"type": "array", "items": {"type": "object"}}]},
            "instructions": _STRING,
            "max_output_tokens": _COUNT,
            "tools": _MESSAGES,
        },
        ("input",),
    ),
    "/v1/messages": (None, {"messages": _MESSAGES, "max_tokens": _COUNT}, ("messages", "max_tokens")),
    "/v1/messages/count_tokens": (None, {"messages": _MESSAGES}, ("messages",)),
    "/api/chat": (None, {"messages": _MESSAGES, "options": {"type": "object"}}, ("model",)),
    "/api/generate": (None, {"prompt": _STRING, "options": {"type": "object"}}, ("model",)),
    "/api/embed": (None, {"input": _TEXT_OR_IDS}, ("model", "input")),
    "/api/show": (None, {}, ("model",)),
    "/completion": (None, {"prompt": _TEXT_OR_IDS, "n_predict": _COUNT}, ("prompt",)),
    "/infill": (None, {"input_prefix": _STRING, "input_suffix": _STRING}, ()),
    "/v1/responses/input_tokens": (None, {"input": _STRING, "instructions": _STRING, "tools": _MESSAGES}, ()),
    "/v1/chat/completions/input_tokens": (None, {"messages": _MESSAGES, "tools": _MESSAGES}, ("messages",)),
    "/models/load": (None, {}, ("model",)),
    "/models/unload": (None, {}, ("model",)),
    "/tokenize": (None, {"content": _STRING}, ("content",)),
    "/detokenize": (None, {"tokens": {"type": "array", "items": _COUNT}}, ("tokens",)),
    "/apply-template": (None, {"messages": _MESSAGES}, ("messages",)),
    "/embedding": (None, {"content": _TEXT_OR_IDS}, ("content",)),
    "/v1/rerank": (None, {"query": _STRING, "documents": _TEXTS, "top_n": _COUNT}, ("query", "documents")),
}
"""Path -> the parameters that its body may have, further ones, and the names of those that it must have. They are those
of all paths with the same endpoint."""
_STREAMS = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/api/pull",
    "/completion",
    "/infill",
}
"""What can answer piece by piece."""
_REFUSED = {
    "/api/copy",
    "/api/create",
    "/api/push",
    "/slots/{slot}",
    "/favicon.ico",
}
"""What only says that it is not there."""
_PLACE = "#/components/schemas/{model}"
_ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": EmbeddingResponse,
}


def described(routes: Sequence[Route], version: str, without: Collection[str] = ()) -> dict[str, Any]:
    """The description of an application with these routes. without: paths that are switched off."""
    paths: dict[str, Any] = {}
    same = {route.endpoint: route.path for route in routes if route.path in _FIELDS}
    for route in routes:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        if path in _REFUSED or path in without:
            continue
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, method, same.get(route.endpoint, path))
    return {
        "openapi": "3.1.0",
        "info": {"title": "vkllm", "version": version, "description": "Language models on any GPU with Vulkan."},
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {"type": "object", "required": ["error"]}, **_shapes()},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Route, path: str, method: str, same: str) -> dict[str, Any]:
    """What is done at a path. same: the path with the same endpoint that `_FIELDS` knows."""
    summary = (inspect.getdoc(route.endpoint) or "").partition("\n")[0]
    error = {
        "description": f"An error in the form of {dialect_of(path)}.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    answer = _ANSWERS.get(same)
    whole = {} if answer is None else {"$ref": _PLACE.format(model=answer.__name__)}
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "2XX": {
                "description": "The answer; a stream where one was asked for.",
                "content": {
                    "application/json": {"schema": whole},
                    "text/event-stream": {},
                    "application/x-ndjson": {},
                    "text/plain": {},
                    "text/html": {},
                },
            },
            "4XX": error,
            "5XX": error,
        },
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        made["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _STRING} for name in names]
    if method == "POST":
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": _body(same)}}}
    return made


def _body(path: str) -> dict[str, Any]:
    options, more, required = _FIELDS.get(path, (None, {}, ()))
    properties: dict[str, Any] = {"model": _STRING, **more}
    if path in _STREAMS:
        properties["stream"] = _TRUTH
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": list(required)}
    if options is not None:
        hints = get_type_hints(options)
        fields: dict[str, Any] = {
            name: (hint, None) for name, hint in hints.items() if name not in TransportOptions.__annotations__
        }
        made = create_model(options.__name__, **fields).model_json_schema()
        for given in made["properties"].values():
            given.pop("title", None)
            given.pop("default", None)
        schema["properties"] = {**made["properties"], **properties}
    return schema


def _shapes() -> dict[str, Any]:
    """The shapes of answers, and those in them, by their names."""
    _, made = models_json_schema([(shape, "serialization") for shape in _ANSWERS.values()], ref_template=_PLACE)
    shapes: dict[str, Any] = _loose(made["$defs"])
    return shapes


def _loose(schema: Any) -> Any:
    """A schema whose objects may have more fields: llama.cpp's are sent too."""
    if isinstance(schema, dict):
        return {key: _loose(value) for key, value in schema.items() if key != "additionalProperties"}
    return list(map(_loose, schema)) if isinstance(schema, list) else schema


async def openapi(request: Request) -> Response:
    """This description."""
    from vkllm import __version__

    settings: ServerSettings = request.app.state.settings
    has = {"/metrics": settings.has_metrics, "/slots": settings.has_slots, "/": settings.has_page}
    return Json(described(request.app.routes, __version__, [path for path, is_there in has.items() if not is_there]))


ROUTES = [Route("/openapi.json", openapi)]
