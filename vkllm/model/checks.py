"""Whether a specification makes sense, and whether a file has the tensors that it needs: all of them, and no others.

The time that it takes grows with the number of tensors in the file, not with what its header claims.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.formats.quants import BLOCK, FORMATS, weight_format
from vkllm.model.expert_ops import ExpertMatvec
from vkllm.model.graph import loaded
from vkllm.model.keys import shown
from vkllm.model.layer_checks import check_layer, check_positive, check_wide
from vkllm.model.ops import Embed, Matvec
from vkllm.model.spec import ModelSpec, Rope

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,9})\.(.+)", re.DOTALL)
_ONE_EXPERT = re.compile(r"ffn_(gate|up|down)\.\d+\.weight")


def check_numbers(spec: ModelSpec, metadata: Metadata) -> None:
    """Raises ModelFileError for numbers that no model can have, UnsupportedModel for those that vkllm has no kernels
    for."""
    check_positive(
        metadata.path,
        {
            "embedding length": spec.d_model,
            "context length": spec.n_ctx_train,
            "vocabulary": spec.n_vocab,
            "norm epsilon": spec.norm_eps,
            "embedding scale": abs(spec.embedding_scale),
            "logit scale": abs(spec.logit_scale),
        },
    )
    check_wide(metadata.path, "embeddings", spec.d_model)
    if spec.d_model % 4:
        raise UnsupportedModel(
            f"{metadata.path}: embeddings of {spec.d_model} numbers are not supported; supported: multiples of 4"
        )
    for layer in dict.fromkeys((*spec.layers, *(predictor.layer for predictor in spec.predictors))):
        check_layer(layer, metadata.path)
    if not spec.is_causal and any(layer.mixer is not None for layer in spec.layers):
        raise UnsupportedModel(
            f"{metadata.path}: it reads in both directions (attention.causal is false), which vkllm does not compute "
            f"for {spec.architecture} models; take another model"
        )
    for rope in spec.ropes:
        _check_rope(rope, metadata)


def _check_rope(rope: Rope, metadata: Metadata) -> None:
    check_positive(metadata.path, {"rope base": rope.theta, "rope scale": rope.scale, "rope magnitude": rope.magnitude})
    if rope.dims % 2:
        raise ModelFileError(f"{metadata.path}: cannot rotate {rope.dims} dimensions in pairs")
    if (yarn := rope.yarn) is None:
        return
    check_positive(
        metadata.path,
        {
            "original context length": yarn.n_ctx,
            "yarn_beta_fast": yarn.beta_fast,
            "yarn_beta_slow": yarn.beta_slow,
        },
    )
    if rope.theta <= 1:
        raise ModelFileError(
            f"{metadata.path}: yarn with a rope base of {rope.theta} has no meaning; the file is damaged"
        )


def check_tensors(spec: ModelSpec, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for a tensor that is not computed or whose format has no kernels, ModelFileError for one
    that is missing or has another shape."""
    ops = loaded(spec)
    read = {name for op in ops for name in op.tensors()}
    _refuse_others(spec, metadata, [name for name in tensors if name not in read and name not in spec.unread])
    for op in ops:
        for name, shape in op.tensors().items():
            padding = op.column_padding if isinstance(op, Embed | Matvec | ExpertMatvec) else 0
            _check_tensor(metadata, name, shape, tensors.get(name), is_matrix=name in op.matrices, padding=padding)
        if isinstance(op, Embed | Matvec | ExpertMatvec) and op.is_padded:
            _check_padding(metadata, op, tensors)
        if isinstance(op, ExpertMatvec) and op.routes is None and op.input_stride % BLOCK:
            _check_heads(metadata, op, tensors)


def _check_tensor(
    metadata: Metadata, name: str, shape: tuple[int, ...], tensor: TensorInfo | None, *, is_matrix: bool, padding: int
) -> None:
    if tensor is None:
        raise ModelFileError(f"{metadata.path}: tensor {name} is missing; the file is incomplete")
    if tensor.shape != shape:
        raise ModelFileError(f"{metadata.path}: tensor {name} has shape {tensor.shape}, expected {shape}")
    allowed = list(FORMATS) if is_matrix else ["F32"]
    if tensor.format not in allowed:
        raise UnsupportedModel(
            f"{metadata.path}: tensor {name} is {tensor.format}, which is not supported here; "
            f"supported: {', '.join(allowed)}"
        )
    block = weight_format(tensor.format).block
    if is_matrix and (shape[-1] + padding) % block:
        raise UnsupportedModel(
            f"{metadata.path}: tensor {name} has {shape[-1]} columns; in {tensor.format} they must be a multiple of "
            f"{block}"
        )


def _check_padding(metadata: Metadata, op: Embed | Matvec | ExpertMatvec, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for matrices that cannot be extended to whole blocks."""
    what = "a table of embeddings" if isinstance(op, Embed) else "a feed-forward layer"
    for name in op.weights:
        if weight_format(tensors[name].format).is_quantized:
            raise UnsupportedModel(
                f"{metadata.path}: tensor {name} is {tensors[name].format}; {what} whose width is no "
                f"multiple of {BLOCK} is supported in F32, F16 and BF16 only"
            )


def _check_heads(metadata: Metadata, op: ExpertMatvec, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for quantized matrices of heads whose activations would share blocks."""
    for name in op.weights:
        if weight_format(tensors[name].format).is_quantized:
            raise UnsupportedModel(
                f"{metadata.path}: tensor {name} is {tensors[name].format}; for heads of {op.input_stride} numbers, "
                f"which is no multiple of {BLOCK}, it is supported in F32, F16 and BF16 only"
            )


def _refuse_others(spec: ModelSpec, metadata: Metadata, others: list[str]) -> None:
    """Raises UnsupportedModel for tensors that the model does not read, by the name of the first."""
    if not others:
        return
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    match, reason = _LAYER.fullmatch(others[0]), ""
    if match is not None and int(match[1]) >= spec.n_layers:
        reason = f", of a layer behind the {spec.n_layers} that its metadata counts"
    elif match is not None and _ONE_EXPERT.fullmatch(match[2]):
        reason = ", of one expert, as files made before April 2024 have them"
    elif others[0].startswith("cls"):
        reason = ", of a reranker or a classifier"
    raise UnsupportedModel(
        f"{metadata.path}: it has the tensor {shown(others[0])}{more}{reason}, which vkllm does not compute for "
        f"{spec.architecture} models, so its answers would be wrong; take another model, or another file of it."
    )
