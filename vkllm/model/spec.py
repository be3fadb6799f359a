"""What a model is, as numbers: GGUF metadata and tensor table -> ModelSpec.

Knows which architectures vkllm runs and checks that every tensor is there with the right shape and a
format that has kernels. Knows nothing of devices, memory or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.formats.quants import BLOCK, FORMATS, weight_format

Pooling = Literal["mean", "cls", "last"]
"""Which rows of the final norm make the embedding of a text: the mean of all, the first, the last."""


@dataclass(frozen=True)
class Yarn:
    """Which rotations YaRN leaves alone. Peng et al. 2023, arXiv 2309.00071.

    Those that turn beta_fast times or more within n_ctx tokens, the context before scaling, keep their speed; those
    that turn beta_slow times or less are scaled whole; those between in part. strength: how much of its speed a
    rotation keeps that is left alone, 1 in the paper.
    """

    n_ctx: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    strength: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with grouped-query attention and a gated feed-forward layer.

    rope_pairing: which dimensions rotate together: "interleaved" (2i, 2i+1) or "half" (i, i + rope_dims/2).
    rope_scale: positions are divided by it, with yarn those of slow rotations only. rope_magnitude: rotated queries and
    keys are multiplied by it. output_weight: the tensor of the vocabulary projection, which is the token embedding
    itself where the file ties them. n_vocab: tokens that can be chosen; a caller may lower it to the tokenizer's number
    where the matrices have rows for padding.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    rope_theta: float
    rope_dims: int
    rope_scale: float
    rope_pairing: Literal["interleaved", "half"]
    has_rope_freqs: bool
    output_weight: str
    rope_magnitude: float = 1.0
    yarn: Yarn | None = None


def model_spec(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    """Reads and checks the specification of a model file.

    Raises UnsupportedModel for an architecture, shape or format that vkllm cannot run, ModelFileError for
    metadata or tensors that are missing or contradict each other.
    """
    architecture = metadata.string("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{metadata.path}: architecture {architecture!r} is not supported; supported: {known}")
    spec = ARCHITECTURES[architecture](metadata, tensors)
    _check_numbers(spec, metadata)
    _check_tensors(spec, metadata, tensors)
    return spec


def pooling(metadata: Metadata) -> Pooling | None:
    """How a model makes embeddings: what its file says, the mean where it says nothing, None for what is not supported,
    such as a rank."""
    kinds: dict[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers; 0 is none
    return kinds.get(metadata.integer(f"{metadata.string('general.architecture')}.pooling_type", 0))


def _llama(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    """Llama 1 to 3, Mistral, SmolLM2, TinyLlama and others that were converted as "llama"."""
    n_heads = metadata.integer("llama.attention.head_count")
    d_model = metadata.integer("llama.embedding_length")
    head_dim = metadata.integer("llama.attention.key_length", d_model // max(n_heads, 1))
    if metadata.integer("llama.expert_count", 0) > 0:
        raise UnsupportedModel(f"{metadata.path}: mixtures of experts are not supported")
    n_ctx_train = metadata.integer("llama.context_length")
    scaling = _rope_scaling(metadata, "llama", n_ctx_train)
    embedding = tensors.get("token_embd.weight")
    return ModelSpec(
        architecture="llama",
        n_layers=metadata.integer("llama.block_count"),
        n_heads=n_heads,
        n_kv_heads=metadata.integer("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        d_model=d_model,
        d_ff=metadata.integer("llama.feed_forward_length"),
        n_vocab=embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else 0,
        n_ctx_train=n_ctx_train,
        norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.number("llama.rope.freq_base", 10000.0),
        rope_dims=metadata.integer("llama.rope.dimension_count", head_dim),
        rope_scale=scaling.factor,
        rope_pairing="interleaved",
        has_rope_freqs="rope_freqs.weight" in tensors,
        output_weight="output.weight" if "output.weight" in tensors else "token_embd.weight",
        rope_magnitude=scaling.magnitude,
        yarn=scaling.yarn,
    )


class _RopeScaling(NamedTuple):
    factor: float
    magnitude: float
    yarn: Yarn | None


def _rope_scaling(metadata: Metadata, architecture: str, n_ctx_train: int) -> _RopeScaling:
    """How a file wants rotations scaled; what it does not say is as in llama.cpp."""
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.string(prefix + "type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"{metadata.path}: rope scaling {kind!r} is not supported; supported: none, linear, yarn"
        )
    factor = metadata.number(prefix + "factor", metadata.number(f"{architecture}.rope.scale_linear", 1.0)) or 1.0
    magnitude = metadata.number(prefix + "attn_factor", 1.0)
    if kind == "none":
        factor = 1.0
    if kind != "yarn" or not 0 < factor < math.inf:  # what is no factor is refused with the other numbers
        return _RopeScaling(factor, magnitude, None)
    yarn = Yarn(
        n_ctx=metadata.integer(prefix + "original_context_length", n_ctx_train),
        beta_fast=metadata.number(prefix + "yarn_beta_fast", 32.0),
        beta_slow=metadata.number(prefix + "yarn_beta_slow", 1.0),
        strength=metadata.number(prefix + "yarn_ext_factor", 1.0),
    )
    if yarn.strength < 0:  # llama.cpp's word for the default
        yarn = replace(yarn, strength=1.0)
    if yarn.strength != 0:
        # the share that a model's attention brings along by itself; 0 in most files
        share = max(metadata.number(prefix + "yarn_log_multiplier", 0.0), 0.0)
        magnitude *= _sharpening(factor) / _sharpening(factor, share)
    return _RopeScaling(factor, magnitude, yarn)


def _sharpening(factor: float, share: float = 1.0) -> float:
    """By how much queries and keys grow for a context that is `factor` times as long, so that attention stays sharp."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


ARCHITECTURES: dict[str, Callable[[Metadata, Mapping[str, TensorInfo]], ModelSpec]] = {"llama": _llama}


def _check_numbers(spec: ModelSpec, metadata: Metadata) -> None:
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


def _check_tensors(spec: ModelSpec, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
    for name, shape in expected_shapes(spec).items():
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
    biases = [name for name in tensors if name.endswith(".bias")]
    if biases:
        raise UnsupportedModel(f"{metadata.path}: biases such as {biases[0]} are not supported in this architecture")


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape (rows, columns) of every tensor that the model needs."""
    q_rows, kv_rows = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (spec.n_vocab, spec.d_model)}
    for layer in range(spec.n_layers):
        block = f"blk.{layer}."
        shapes |= {
            block + "attn_norm.weight": (spec.d_model,),
            block + "attn_q.weight": (q_rows, spec.d_model),
            block + "attn_k.weight": (kv_rows, spec.d_model),
            block + "attn_v.weight": (kv_rows, spec.d_model),
            block + "attn_output.weight": (spec.d_model, q_rows),
            block + "ffn_norm.weight": (spec.d_model,),
            block + "ffn_gate.weight": (spec.d_ff, spec.d_model),
            block + "ffn_up.weight": (spec.d_ff, spec.d_model),
            block + "ffn_down.weight": (spec.d_model, spec.d_ff),
        }
    shapes |= {"output_norm.weight": (spec.d_model,), spec.output_weight: (spec.n_vocab, spec.d_model)}
    if spec.has_rope_freqs:
        shapes["rope_freqs.weight"] = (spec.rope_dims // 2,)
    return shapes
