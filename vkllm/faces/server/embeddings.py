"""`/v1/embeddings` of OpenAI."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.api.llama_cpp.prompts import is_mixed, prompts_of, token_ids_of
from vkllm.api.openai.options import EmbeddingOptions
from vkllm.errors import InvalidParameter
from vkllm.faces.server.answers import Json, answered
from vkllm.faces.server.bodies import body_of, text_in
from vkllm.faces.server.models import Models
from vkllm.faces.server.openai import known

MAX_TEXTS = 2048
"""Texts in one request, as OpenAI has it."""


async def embeddings(request: Request) -> Response:
    """The embeddings of a text, or of each in a list."""
    body = await body_of(request)
    return Json(await answered(request, _embeddings(request.app.state.models, body)))


async def _embeddings(models: Models, body: dict[str, Any]) -> dict[str, Any]:
    texts = body.get("input")
    if texts is None:
        raise InvalidParameter("input must be a text, a list of token ids, or a list of these")
    if isinstance(texts, list) and not texts:
        raise InvalidParameter("input is empty; give at least one text")
    if isinstance(texts, list) and len(texts) > MAX_TEXTS and not isinstance(texts[0], int):
        raise InvalidParameter(f"input must have at most {MAX_TEXTS} texts, not {len(texts)}")
    options: Any = known(body, EmbeddingOptions)
    async with models.use(text_in(body, "model")) as model:
        if is_mixed(texts):  # as llama.cpp's server takes them
            prompts, has_several = prompts_of(texts)
            ids = [token_ids_of(prompt, model.llm.llm.tokenizer) for prompt in prompts]
            texts = ids if has_several else ids[0]
        found = await model.llm.embeddings.create(input=texts, **options)
        return found.model_dump() | {"model": model.name}


ROUTES = [Route("/v1/embeddings", embeddings, methods=["POST"])]
