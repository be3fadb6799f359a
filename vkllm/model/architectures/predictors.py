"""Heads that predict further tokens: the last layers that a file counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vkllm.errors import ModelFileError
from vkllm.model.architectures.header import Header
from vkllm.model.spec import ModelSpec, Predictor


def n_predictors(header: Header) -> int:
    """How many of the file's layers they are. Raises ModelFileError where none would be left for the model."""
    n = header.integer("nextn_predict_layers", 0)
    if not 0 <= n < header.n_layers:
        raise ModelFileError(
            f"{header.metadata.path}: {n} of its {header.n_layers} layers cannot predict further tokens"
        )
    return n


def with_predictors(header: Header, spec: ModelSpec, **fields: Any) -> ModelSpec:
    """A model of all layers that the file counts, with the last ones as predictors; those without tensors are left
    out, because a file may have dropped them. fields: of Predictor, where they differ from the model's."""
    first = header.n_layers - n_predictors(header)
    predictors = (
        _predictor(header, spec, number, fields)
        for number in range(first, header.n_layers)
        if header.has(f"blk.{number}.nextn.eh_proj.weight")
    )
    return replace(spec, layers=spec.layers[:first], predictors=tuple(predictors))


def _predictor(header: Header, spec: ModelSpec, number: int, fields: dict[str, Any]) -> Predictor:
    def own(name: str, otherwise: str) -> str:
        full = f"blk.{number}.nextn.{name}.weight"
        return full if header.has(full) else otherwise

    predictor = Predictor(
        number=number,
        layer=spec.layers[number],
        embedding=own("embed_tokens", "token_embd.weight"),
        output_norm=own("shared_head_norm", f"{spec.output_norm}.weight").removesuffix(".weight"),
        output_weight=own("shared_head_head", spec.output_weight),
        norm_form=spec.norm_form,
        norm_eps=spec.norm_eps,
    )
    return replace(predictor, **fields)
