"""Whether a specification makes sense, and whether a file has the tensors that it needs: all of them, and no others.

The time that it takes grows with the number of tensors in the file, not with what its header claims.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.formats.quants import BLOCK, FORMATS, weight_format
from vkllm.model.keys import shown
from vkllm.model.spec import ModelSpec, each_expected, tensors_of_layer, tensors_outside_layers

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,9})\.(.+)", re.DOTALL)


def check_numbers(spec: ModelSpec, metadata: Metadata) -> None:
    """Raises ModelFileError for numbers that no model can have, UnsupportedModel for those that vkllm has no kernels
    for."""
    positive = {
        "block count": spec.n_layers,
        "head count": spec.n_heads,
        "key/value head count": spec.n_kv_heads,
        "head size": spec.head_dim,
        "embedding length": spec.d_model,
        "feed-forward length": spec.d_ff,
        "context length": spec.n_ctx_train,
        "vocabulary": spec.n_vocab,
        "norm epsilon": spec.norm_eps,
        "rope base": spec.rope_theta,
        "rope scale": spec.rope_scale,
        "rope magnitude": spec.rope_magnitude,
    }
    if spec.yarn is not None:
        positive |= {
            "original context length": spec.yarn.n_ctx,
            "yarn_beta_fast": spec.yarn.beta_fast,
            "yarn_beta_slow": spec.yarn.beta_slow,
        }
    for name, value in positive.items():
        if not 0 < value < 2**31:
            raise ModelFileError(f"{metadata.path}: the {name} is {value}, which no model can have")
    if spec.n_heads % spec.n_kv_heads:
        raise ModelFileError(
            f"{metadata.path}: {spec.n_heads} heads cannot share {spec.n_kv_heads} key/value heads evenly"
        )
    if spec.head_dim % BLOCK or spec.head_dim > 256:
        raise UnsupportedModel(
            f"{metadata.path}: a head size of {spec.head_dim} is not supported; multiples of {BLOCK} up to 256 are"
        )
    if spec.yarn is not None and (not 0 <= spec.yarn.strength <= 1 or spec.rope_theta <= 1):
        raise ModelFileError(
            f"{metadata.path}: yarn with a yarn_ext_factor of {spec.yarn.strength} and a rope base of "
            f"{spec.rope_theta} has no meaning; the file is damaged"
        )
    if not 0 < spec.rope_dims <= spec.head_dim or spec.rope_dims % 2:
        raise ModelFileError(f"{metadata.path}: cannot rotate {spec.rope_dims} of {spec.head_dim} dimensions")


def check_tensors(spec: ModelSpec, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for a tensor that is not computed or whose format has no kernels, ModelFileError for one
    that is missing or has another shape."""
    _refuse_others(spec, metadata, tensors)
    for name, shape in each_expected(spec):  # ends at the first missing one, so soon after the file's own number
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{metadata.path}: tensor {name} is missing; the file is incomplete")
        if tensor.shape != shape:
            raise ModelFileError(f"{metadata.path}: tensor {name} has shape {tensor.shape}, expected {shape}")
        allowed = list(FORMATS) if len(shape) == 2 else ["F32"]
        if tensor.format not in allowed:
            raise UnsupportedModel(
                f"{metadata.path}: tensor {name} is {tensor.format}, which is not supported here; "
                f"supported: {', '.join(allowed)}"
            )
        block = weight_format(tensor.format).block
        if len(shape) == 2 and shape[1] % block:
            raise UnsupportedModel(
                f"{metadata.path}: tensor {name} has {shape[1]} columns; in {tensor.format} they must be a multiple "
                f"of {block}"
            )


def _refuse_others(spec: ModelSpec, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for tensors that the model does not read, by the name of the first."""
    outside, of_layer = tensors_outside_layers(spec), tensors_of_layer(spec, 0)
    others = []
    for name in tensors:
        match = _LAYER.fullmatch(name)
        is_read = name in outside if match is None else int(match[1]) < spec.n_layers and match[2] in of_layer
        if not is_read:
            others.append(name)
    if not others:
        return
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    match = _LAYER.fullmatch(others[0])
    reason = (
        f", of a layer behind the {spec.n_layers} that its metadata counts"
        if match is not None and int(match[1]) >= spec.n_layers
        else ""
    )
    raise UnsupportedModel(
        f"{metadata.path}: it has the tensor {shown(others[0])}{more}{reason}, which vkllm does not compute for "
        f"{spec.architecture} models, so its answers would be wrong; take another model, or another file of it."
    )
