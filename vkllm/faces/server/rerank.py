"""`/rerank`: which documents are nearest to a query, in Jina's form and in that of Text Embeddings Inference (TEI).

The score of a document is the likeness of its embedding to the query's, from -1 to 1. It knows HTTP and these forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.errors import InvalidParameter
from vkllm.faces.server.answers import Json, answered
from vkllm.faces.server.bodies import body_of, text_in, truth_in
from vkllm.faces.server.embeddings import MAX_TEXTS
from vkllm.faces.server.models import Models
from vkllm.parameters import whole_number


async def rerank(request: Request) -> Response:
    """The documents in the order of their likeness to the query."""
    body = await body_of(request)
    return Json(await answered(request, _ranked(request.app.state.models, body)))


async def _ranked(models: Models, body: Mapping[str, Any]) -> Any:
    is_tei = "texts" in body
    name = "texts" if is_tei else "documents"
    query, documents = body.get("query"), body.get(name)
    if not isinstance(query, str):
        raise InvalidParameter("query must be a text")
    if not isinstance(documents, list) or not 0 < len(documents) < MAX_TEXTS:
        raise InvalidParameter(f"{name} must be a list of 1 to {MAX_TEXTS - 1} texts")
    texts = [_text(document, f"{name}[{place}]") for place, document in enumerate(documents)]
    top_n = len(texts) if body.get("top_n") is None else whole_number("top_n", body["top_n"], 1)
    async with models.use(text_in(body, "model")) as model:
        found = await model.llm.embeddings.create(input=[query, *texts])
        wanted, *vectors = np.array([each.embedding for each in found.data], np.float64)
        scores = [float(vector @ wanted) for vector in vectors]
        best = sorted(range(len(texts)), key=lambda place: -scores[place])[:top_n]
        if is_tei:
            shows = truth_in(body, "return_text")
            return [{"index": n, "score": scores[n]} | ({"text": texts[n]} if shows else {}) for n in best]
        shows = truth_in(body, "return_documents")
        return {
            "model": model.name,
            "object": "list",
            "usage": {"prompt_tokens": found.usage.prompt_tokens, "total_tokens": found.usage.total_tokens},
            "results": [
                {"index": n, "relevance_score": scores[n]} | ({"document": {"text": texts[n]}} if shows else {})
                for n in best
            ],
        }


def _text(document: Any, where: str) -> str:
    match document:
        case str() | {"text": str()}:
            return document if isinstance(document, str) else str(document["text"])
    raise InvalidParameter(f"{where} must be a text")


ROUTES = [
    Route(f"{prefix}/{name}", rerank, methods=["POST"]) for prefix in ("", "/v1") for name in ("rerank", "reranking")
]
