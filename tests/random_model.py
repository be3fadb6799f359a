"""A GGUF with random weights of any specification, in any formats, for tests of programs and engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from random_weights import quantized

from vkllm.engine.requests import EngineConfig
from vkllm.formats.gguf import ModelFile
from vkllm.formats.quants import dequantize
from vkllm.model.graph import expected_shapes
from vkllm.model.reference import Reference
from vkllm.model.spec import ModelSpec


def write_random_model(path: Path, spec: ModelSpec, formats: Mapping[str, str], seed: int = 0) -> Path:
    """formats: last part of a tensor's name ("attn_q") -> GGML format; F32 for those not named, or whose rows are no
    whole blocks."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    shapes = expected_shapes(spec)
    # as files have them: the embedding, the layers, the output
    for name in sorted(shapes, key=lambda name: (not name.startswith("token_embd"), not name.startswith("blk."))):
        shape = shapes[name]
        wanted = formats.get(name.removesuffix(".weight").split(".")[-1], "F32")
        kind = gguf.GGMLQuantizationType[wanted if shape[-1] % 32 == 0 or wanted == "F16" else "F32"]
        # norms around 1, and matrices that keep the scale of what they multiply
        values = rng.normal(1, 0.1, shape) if len(shape) == 1 else rng.normal(0, 1.5 / np.sqrt(shape[-1]), shape)
        if name.endswith(".ssm_a"):
            values = -np.abs(values)  # states decay
        raw = quantized(values.astype(np.float32), kind.name)
        writer.add_tensor(name, raw.reshape(*shape[:-1], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def engine_config(path: Path, spec: ModelSpec, n_ctx: int = 256) -> EngineConfig:
    return EngineConfig(path, ModelFile.open(path).tensors, spec, n_ctx)


def reference(config: EngineConfig) -> Reference:
    """The oracle on the same file."""
    file = ModelFile.open(config.path)
    weights = {n: dequantize(file.raw(n), info.format, info.shape) for n, info in file.tensors.items()}
    return Reference(config.spec, weights.__getitem__, config.n_ctx)
