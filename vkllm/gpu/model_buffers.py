"""A model's memory on a device: weights, key/value caches, activations.

Allocates and fills it once, at load. Knows which activations exist and which weights stand together, not what is
computed with them (`gpu/operations.py`) or when (`gpu/program.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vkllm.formats.gguf import TensorInfo, map_tensor
from vkllm.formats.quants import BLOCK, dequantize, weight_format
from vkllm.gpu.device import Buffer, Device
from vkllm.gpu.kernels import KV_BLOCK, MAX_ROWS
from vkllm.gpu.weights import Tensor, Uploader, WeightPlanes
from vkllm.model.graph import decoder, head, widths
from vkllm.model.reference import rope_table
from vkllm.model.spec import ModelSpec

Floats = npt.NDArray[np.float32]

HEAD_ROWS = 8
"""Rows whose logits there is room for at once."""


@dataclass(frozen=True)
class Activation:
    """(MAX_ROWS, columns) float32, and the same as q16 blocks where a quantized matvec reads it."""

    values: Buffer
    q16: Buffer | None = None
    scales: Buffer | None = None


class ModelBuffers:
    """Everything that the operations of a model bind, besides the step.

    activations: by name in the graph. vectors: norms and the rope table. matrices: planes by the names of the tensors
    that stand above each other, several where their formats differ. caches: keys and values of each layer.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        n_ctx: int,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Raises OutOfDeviceMemory, DeviceError or ModelFileError."""
        self.device = device
        self.spec = spec
        self.n_blocks = -(-n_ctx // KV_BLOCK)
        self.activations = self._allocate_activations()
        cache_words = self.n_blocks * KV_BLOCK * spec.n_kv_heads * spec.head_dim // 2
        self.caches = [(device.buffer(cache_words), device.buffer(cache_words)) for _ in range(spec.n_layers)]
        self.k_format = self.v_format = "f16"
        self.vectors: dict[str, Buffer] = {}
        self.matrices: dict[tuple[str, ...], list[WeightPlanes]] = {}
        self._load(path, tensors, on_bytes)

    def _allocate_activations(self) -> dict[str, Activation]:
        activations = {}
        for name, columns in widths(self.spec).items():
            n_rows = HEAD_ROWS if name in ("final", "logits") else MAX_ROWS
            n_blocks = n_rows * columns // BLOCK
            values = self.device.buffer(n_rows * columns)
            if name in ("normed", "attended", "hidden", "final"):
                q16, scales = self.device.buffer(16 * n_blocks), self.device.buffer(2 * n_blocks)
                activations[name] = Activation(values, q16, scales)
            else:
                activations[name] = Activation(values)
        return activations

    def _load(self, path: Path, tensors: Mapping[str, TensorInfo], on_bytes: Callable[[int], None]) -> None:
        spec, uploader = self.spec, Uploader(self.device, on_bytes)

        def vector(name: str) -> Floats:
            info = tensors[name]
            return dequantize(map_tensor(path, info), info.format, info.shape)

        for op in (*decoder(spec), *head(spec)):
            if op.kind == "rms_norm":
                weight = vector(op.weights[0])
                self.vectors[op.weights[0]] = self.device.buffer(len(weight))
                uploader.words(weight, self.vectors[op.weights[0]])
            elif op.weights and op.weights not in self.matrices:
                parts = [_tensor(path, tensors[name]) for name in op.weights]
                self.matrices[op.weights] = [uploader.matrix(list(group)) for group in _stackable(parts)]
        factors = vector("rope_freqs.weight") if spec.has_rope_freqs else None
        table = rope_table(spec, self.n_blocks * KV_BLOCK, factors)
        self.vectors["rope_table"] = self.device.buffer(table.size)
        uploader.words(table, self.vectors["rope_table"])
        uploader.finish()


def _tensor(path: Path, info: TensorInfo) -> Tensor:
    return Tensor(map_tensor(path, info), info.format, (info.shape[0], info.shape[1]))


def _stackable(parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups neighbours that can be one matrix: of one format, with whole units of it before each."""
    groups: list[list[Tensor]] = []
    for part in parts:
        before = groups[-1] if groups else []
        n_values = sum(other.shape[0] * other.shape[1] for other in before)
        if before and before[0].format == part.format and n_values % weight_format(part.format).unit == 0:
            before.append(part)
        else:
            groups.append([part])
    return groups
