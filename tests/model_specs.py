"""Small model specifications that several tests share."""

from typing import Any

from vkllm.model.architectures.llama import llama_spec
from vkllm.model.spec import ModelSpec

_TINY: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 32,
    "d_model": 96,
    "d_ff": 160,
    "n_vocab": 301,
    "n_ctx_train": 256,
}


def tiny_spec(**changes: Any) -> ModelSpec:
    """A llama of two small layers. changes: arguments of llama_spec."""
    return llama_spec(**_TINY | changes)


def wide_spec(**changes: Any) -> ModelSpec:
    """One whose columns are whole super-blocks."""
    return tiny_spec(**{"n_heads": 8, "d_model": 256, "d_ff": 512} | changes)


TINY_SPEC = tiny_spec()
WIDE_SPEC = wide_spec()
