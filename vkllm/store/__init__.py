"""The models on this machine: what a name stands for, which models are here, how a model is fetched and removed."""

from vkllm.store.choice import choose as _choose
from vkllm.store.choice import quantization_of
from vkllm.store.models import (
    FoundModel,
    InstalledModel,
    check_is_own,
    find_model,
    headers_of,
    installed,
    local_model,
    local_path,
    look_up,
    pull,
    remove,
    remove_unfinished,
)
from vkllm.store.names import HubRepo, WebSource, looks_like_path, source_of

__all__ = [
    "FoundModel",
    "HubRepo",
    "InstalledModel",
    "WebSource",
    "_choose",
    "check_is_own",
    "find_model",
    "headers_of",
    "installed",
    "local_model",
    "local_path",
    "look_up",
    "looks_like_path",
    "pull",
    "quantization_of",
    "remove",
    "remove_unfinished",
    "source_of",
]
