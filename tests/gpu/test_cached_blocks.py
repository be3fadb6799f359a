"""What is cached goes to the host and back: keys and values, nothing of a layer that has none, latent vectors only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import LAYER, of_layers
from random_model import engine_config, write_random_model

from vkllm.gpu.device.kompute import Device, Words
from vkllm.gpu.program.cached_blocks import CachedBlocks, CachePlace
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part
from vkllm.model.mixers import LatentAttention
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

LATENT = replace(LAYER, n_kv_heads=1, head_dim=48, rope=Rope(1e4, 16), mixer=LatentAttention(0, 32, 32, 16, 32))
SPEC = of_layers(LAYER, replace(LAYER, cache_layer=0), LATENT)


def test_layers_with_fewer_caches(device: Device, tmp_path: Path) -> None:
    config = engine_config(write_random_model(tmp_path / "model.gguf", SPEC, {}), SPEC)
    program = Program(device, SPEC, config.path, config.tensors, 64)
    prompt = [int(t) for t in np.random.default_rng(3).integers(0, SPEC.n_vocab, 41)]

    def logits(tokens: list[int], first: int) -> np.ndarray:
        part = Part(0, tokens, first, [0, 1], results=LOGITS)
        return program.logits(program.submit([part], is_prompt=first == 0))

    logits(prompt[:40], 0)
    blocks = CachedBlocks(program, 40, CachePlace([0, 1]))
    assert blocks.names == ["keys.0", "values.0", "keys.2"]
    kept = {name: blocks.read(name).copy() for name in blocks.names}
    assert kept["keys.2"].shape == (2, 1, 32 * 48 // 2)
    wanted = logits(prompt[40:], 40)
    logits(prompt[:40][::-1], 0)
    assert not np.array_equal(logits(prompt[40:], 40), wanted)

    def fill(words: Words, name: str) -> None:
        words[:] = kept[name]

    for name in blocks.names:
        blocks.write(name, lambda words, name=name: fill(words, name))  # type: ignore[misc]
    assert np.array_equal(logits(prompt[40:], 40), wanted)
