"""What graphs may ask for and no kernel computes yet."""

from __future__ import annotations

from pathlib import Path

from vkllm.errors import UnsupportedModel
from vkllm.model.graph import decoder, head
from vkllm.model.ops import Activate, Attention, HeadNormalization, Norm, Op, Rotation
from vkllm.model.spec import ModelSpec

_KINDS = ("embed", "norm", "matvec", "head_norm", "rope", "attention", "activate", "softcap")


def missing(spec: ModelSpec) -> str | None:
    """The first operation of a model that no kernel computes, None if there is none."""
    return next((what for op in (*decoder(spec), *head(spec)) if (what := _missing_of(op)) is not None), None)


def check_kernels(spec: ModelSpec, path: Path) -> None:
    """Raises UnsupportedModel for a model with an operation that no kernel computes."""
    if (what := missing(spec)) is not None:
        raise UnsupportedModel(
            f"{path}: {spec.architecture} models need {what}, which vkllm has no kernel for yet; take another model"
        )


def _missing_of(op: Op) -> str | None:
    if op.kind not in _KINDS:
        return f"the operation {op.kind}"
    match op:
        case Norm() if op.group or op.column or op.factor != 1 or op.scale is not None:
            return "norms of groups of columns, or with factors"
        case Activate() if op.slots > 1 or op.up is not None or op.function == "swiglu_oai":
            return f"the activation {op.function} of several slots"
        case HeadNormalization() if op.has_gates or op.values != "as they are" or not op.n_kv_heads:
            return "norms of values, or of queries alone"
        case HeadNormalization() if op.weights is None and not op.norm.is_after_rope:
            return "norms of heads without weights"
        case Rotation() if op.has_gates or not op.n_kv_heads:
            return "gates of queries, or queries alone"
        case Attention() if op.sinks or op.gates or op.chunk or op.is_latent or op.cache_layer != op.layer:
            return "attention with sinks, gates, chunks, or another layer's cache"
    return None
