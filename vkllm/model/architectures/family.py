"""What each file of this folder defines for a family of models, and how it reads what all families have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vkllm.errors import ModelFileError, UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.model.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """A family of models: `general.architecture` names it.

    spec: reads the specification; it need not check numbers or tensors. keys: the metadata keys that it reads, without
    the architecture's prefix. All others are refused, unless they change nothing (model/keys.py).
    """

    spec: Callable[[Metadata, Mapping[str, TensorInfo]], ModelSpec]
    keys: frozenset[str]


def same_in_all_layers(metadata: Metadata, key: str, n_layers: int, default: int | None = None) -> int:
    """A number that files give once or for each layer; `default`, if any, where the key is missing.

    Raises UnsupportedModel where layers differ, ModelFileError for a missing key, another type or an array that is too
    short.
    """
    if not metadata.is_array(key):
        return metadata.integer(key) if default is None else metadata.integer(key, default)
    values = metadata.integers(key)
    if not 0 < n_layers <= len(values):
        raise ModelFileError(
            f"{metadata.path}: {key} has numbers for {len(values)} layers, and the model has {n_layers}; the file is "
            "damaged"
        )
    if len(distinct := sorted(set(values[:n_layers]))) > 1:
        raise UnsupportedModel(
            f"{metadata.path}: layers of different {key} ({distinct[0]} to {distinct[-1]}) are not supported; take "
            "another model."
        )
    return distinct[0]
