"""A model file's header, as the families read it; it remembers which keys they asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from vkllm.errors import ModelFileError, counted
from vkllm.formats.gguf import Metadata, TensorInfo

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,9})\.")
MAX_PREDICTORS = 8
"""Layers for further tokens that a file may count and not have."""

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The matrices of a layer that may have a bias, where the family has one."""


class Header:
    """A model file's metadata and tensor table, read for one architecture.

    Its methods take keys without the architecture in front. `keys` are those that were asked for: a key that a family
    never asks for is refused unless it changes nothing (model/keys.py).
    """

    def __init__(self, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> None:
        self.metadata = metadata
        self.tensors = tensors
        self.architecture = metadata.string("general.architecture")
        self.keys: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self.tensors

    def full(self, key: str) -> str:
        """The key with the architecture in front; it is kept as one that was read."""
        self.keys.add(key)
        return f"{self.architecture}.{key}"

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer. Raises ModelFileError where it is missing and there is no default, as the next methods do."""
        full = self.full(key)
        return self.metadata.integer(full) if default is None else self.metadata.integer(full, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A float or an integer."""
        full = self.full(key)
        return self.metadata.number(full) if default is None else self.metadata.number(full, default)

    def boolean(self, key: str, default: bool) -> bool:
        """A boolean."""
        return self.metadata.boolean(self.full(key), default)

    def string(self, key: str, default: str) -> str:
        """A string."""
        return self.metadata.string(self.full(key), default)

    @cached_property
    def n_layers(self) -> int:
        """`block_count`. Raises ModelFileError where the file has no tensors of one of these layers."""
        n_layers = self.integer("block_count")
        if not 0 < n_layers < 2**31:
            raise ModelFileError(f"{self.metadata.path}: the block count is {n_layers}, which no model can have")
        found = {int(match[1]) for name in self.tensors if (match := _LAYER.match(name))}
        n_predictors = self.metadata.integer(f"{self.architecture}.nextn_predict_layers", 0)
        n_needed = n_layers - n_predictors if 0 <= n_predictors <= MAX_PREDICTORS else n_layers
        missing = next((layer for layer in range(n_needed) if layer not in found), None)
        if missing is not None:
            raise ModelFileError(
                f"{self.metadata.path}: tensor blk.{missing}.attn_norm.weight is missing, and all others of the layer; "
                "the file is incomplete"
            )
        return n_layers

    def per_layer(self, key: str, default: Sequence[int] | None = None) -> list[int]:
        """A number of each layer, which files give once or as an array.

        Raises ModelFileError for an array that is too short.
        """
        full = self.full(key)
        if not self.metadata.is_array(full):
            if default is not None and full not in self.metadata:
                return list(default)
            return [self.metadata.integer(full)] * self.n_layers
        values = self.metadata.integers(full)
        if self.n_layers > len(values):
            raise ModelFileError(
                f"{self.metadata.path}: {full} has numbers for {counted(len(values), 'layer')}, and the model has "
                f"{self.n_layers}; the file is damaged"
            )
        return values[: self.n_layers]

    def biases(self, layer: int, names: Iterable[str] = MATRICES) -> tuple[str, ...]:
        """Which of these tensors of a layer have a bias in the file."""
        return tuple(name for name in names if self.has(f"blk.{layer}.{name}.bias"))

    def windows(self, period: int, default: int | None = None) -> list[int]:
        """The sliding window of each layer, 0 for those that see all keys.

        period: every so many layers the last one sees all keys, unless `attention.sliding_window_pattern` says
        otherwise, as another number or as a flag of each layer. default: the window, where the file names none.
        """
        window = self.integer("attention.sliding_window", default)
        key = self.full("attention.sliding_window_pattern")
        if self.metadata.is_array(key):
            slides = self.per_layer_flags(key)
        else:
            period = self.metadata.integer(key, period)
            slides = [period == 0 or layer % period < period - 1 for layer in range(self.n_layers)]
        return [window if is_sliding else 0 for is_sliding in slides]

    def per_layer_flags(self, key: str) -> list[bool]:
        """A flag of each layer, by its full key. Raises ModelFileError for an array that is too short."""
        values = self.metadata.plain(key)
        if (
            not isinstance(values, list)
            or len(values) < self.n_layers
            or any(isinstance(value, str) for value in values)
        ):
            raise ModelFileError(f"{self.metadata.path}: {key} has no flag for each layer; the file is damaged")
        return [bool(value) for value in values[: self.n_layers]]
