"""The models on this machine: what a name stands for, which models are here, how one comes and goes."""

from vkllm.store.models import (
    HubRepo,
    InstalledModel,
    WebSource,
    find_model,
    installed,
    local_model,
    local_path,
    pull,
    quantization_of,
    remove,
    remove_unfinished,
    source_of,
)
from vkllm.store.models import _choose as _choose

__all__ = [
    "HubRepo",
    "InstalledModel",
    "WebSource",
    "find_model",
    "installed",
    "local_model",
    "local_path",
    "pull",
    "quantization_of",
    "remove",
    "remove_unfinished",
    "source_of",
]
