"""The numpy reference of a model file, and log-probabilities of its logits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vkllm.formats.gguf import ModelFile, read_tensor
from vkllm.formats.quants import dequantize
from vkllm.model.architectures import model_spec
from vkllm.model.reference import Floats, Reference


def file_reference(path: Path, n_ctx: int) -> Reference:
    """The model of a file, for contexts of n_ctx tokens."""
    file = ModelFile.open(path)

    @cache
    def weight(name: str) -> Floats:
        info = file.tensors[name]
        return dequantize(read_tensor(path, info), info.format, info.shape)

    return Reference(model_spec(file.metadata, file.tensors), weight, n_ctx)


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities of logits (..., V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
