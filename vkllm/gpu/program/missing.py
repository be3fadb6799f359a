"""What graphs may ask for and no kernel computes yet."""

from __future__ import annotations

from pathlib import Path

from vkllm.errors import UnsupportedModel
from vkllm.model.graph import decoder, head
from vkllm.model.ops import Op
from vkllm.model.spec import ModelSpec

_KINDS = (
    *("embed", "norm", "matvec", "head_norm", "rope", "attention", "activate", "softcap"),
    *("convolution", "delta_net", "mamba2", "gated_norm", "latent_rope"),
    *("route", "expert_matvec", "expert_sum"),
)


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
    return None if op.kind in _KINDS else f"the operation {op.kind}"
