"""How a model makes an embedding of the rows of a text: pooling, and the matrices behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import Metadata, TensorInfo, read_tensor
from vkllm.formats.quants import dequantize
from vkllm.model.spec import ModelSpec, Pooling

PROJECTIONS = ("dense_2.weight", "dense_3.weight")
"""Matrices by which a pooled embedding is multiplied, one after the other, where a file has them: the dense modules of
sentence-transformers, as llama.cpp names them."""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

PoolingOfFile = Pooling | Literal["rank"] | None
"""What a file asks for. rank: one number that says how well a text answers a question. None: something unknown."""

_KINDS: dict[int, PoolingOfFile] = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama.cpp's; 0 is none


def pooling(metadata: Metadata) -> PoolingOfFile:
    """How a model makes embeddings: what its file says, the mean where it says nothing."""
    return _KINDS.get(metadata.integer(f"{metadata.string('general.architecture')}.pooling_type", 0))


def named_pooling(name: object) -> Pooling | None:
    """How a user wants embeddings to be made; None leaves it to the file. Raises InvalidParameter."""
    if name is None or name in POOLINGS:
        return name
    raise InvalidParameter(
        f"pooling must be {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}, not {name!r:.40}: an embedding is the mean of "
        "all tokens, the first token or the last one"
    )


def projections(spec: ModelSpec) -> tuple[str, ...]:
    """Which of the PROJECTIONS a model has."""
    return tuple(name for name in PROJECTIONS if name in spec.unread)


def d_embedding(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> int:
    """How many numbers its embeddings have."""
    names = projections(spec)
    return tensors[names[-1]].shape[0] if names else spec.d_model


class Projection:
    """The matrices of a model behind pooling, in float32 on the host: they are small and read once a text."""

    def __init__(self, path: Path, spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> None:
        """Raises ModelFileError."""
        self._matrices: Sequence[npt.NDArray[np.float32]] = [
            dequantize(read_tensor(path, info), info.format, info.shape)
            for info in (tensors[name] for name in projections(spec))
        ]

    def __call__(self, pooled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The embedding (d_embedding,) of pooled rows (d_model,), whose squares add up to 1. Only the direction of
        `pooled` counts."""
        vector = pooled / (np.linalg.norm(pooled) or 1.0)
        for matrix in self._matrices:
            vector = (matrix @ vector.astype(np.float32)).astype(np.float64)
        return vector / (np.linalg.norm(vector) or 1.0)
