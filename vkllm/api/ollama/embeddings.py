"""Embeddings in the shape of ollama's API: /api/embed, and /api/embeddings of older clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vkllm.api.async_llm import AsyncLLM
from vkllm.api.chat_request import body_of, text_field
from vkllm.api.ollama.options import Common
from vkllm.errors import ContextOverflow, InvalidParameter, counted
from vkllm.model.pooling import d_embedding
from vkllm.parameters import truth, whole_number
from vkllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EmbedRequest:
    """Texts to embed. cuts: a text that is longer than the context loses its end, but not the token that models want
    behind each text. n_dimensions: of each embedding's beginning, which is what models that are trained for it need;
    None is all."""

    common: Common
    texts: Sequence[str]
    cuts: bool = True
    n_dimensions: int | None = None

    async def run(self, llm: AsyncLLM) -> tuple[list[list[float]], int]:
        """The embeddings, whose squares add up to 1, and the number of tokens. Errors as of `LLM.embed`."""
        prompts = [await llm.tokenize(text) for text in self.texts]
        n_ctx, most = llm.llm.n_ctx, d_embedding(llm.llm.spec, llm.llm.tensors)
        if self.n_dimensions is not None and self.n_dimensions > most:
            raise InvalidParameter(f"dimensions must be at most {most}, as the model's embeddings have so many")
        for number, ids in enumerate(prompts):
            if len(ids) > n_ctx and not self.cuts:
                raise ContextOverflow(
                    f"text {number} has {counted(len(ids), 'token')} and the context holds {n_ctx}; cut it into parts"
                )
        prompts = [_cut(ids, n_ctx, llm.llm.tokenizer) for ids in prompts]
        vectors = await llm.embed(prompts) if prompts else []
        return [_shortened(vector, self.n_dimensions) for vector in vectors], sum(map(len, prompts))


def embed_request(value: Any) -> EmbedRequest:
    """The body of POST /api/embed. Raises InvalidParameter."""
    body = body_of(value)
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidParameter("input must be a text or a list of texts")
    return _request(body, texts)


def embeddings_request(value: Any) -> EmbedRequest:
    """The body of POST /api/embeddings. Raises InvalidParameter."""
    body = body_of(value)
    prompt = text_field(body, "prompt")
    return _request(body, [prompt] if prompt else [])


def _request(body: Mapping[str, Any], texts: Sequence[str]) -> EmbedRequest:
    n_dimensions = body.get("dimensions")
    return EmbedRequest(
        Common.of(body),
        texts,
        truth("truncate", body.get("truncate", True)),
        whole_number("dimensions", n_dimensions, 1, 2**31) if n_dimensions else None,
    )


def _cut(ids: list[int], n_ctx: int, tokenizer: Tokenizer) -> list[int]:
    """The beginning of a text that fits into the context, and the token behind it."""
    if len(ids) <= n_ctx:
        return ids
    end = ids[-1:] if tokenizer.adds_eos else []
    return [*ids[: n_ctx - len(end)], *end]


def _shortened(vector: list[float], n: int | None) -> list[float]:
    if n is None:
        return vector
    length = math.hypot(*vector[:n]) or 1.0
    return [number / length for number in vector[:n]]
