"""The plan counts what will be allocated and refuses what cannot be held."""

from dataclasses import replace

import numpy as np
import pytest
from model_specs import TINY_SPEC, WIDE_SPEC

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.model.plan import DeviceLimits, cache_bytes_per_token, decode_bytes, plan
from vkllm.model.spec import expected_shapes

TENSORS = {
    name: TensorInfo(name, shape, "Q4_0" if len(shape) == 2 else "F32", 0, 0)
    for name, shape in expected_shapes(TINY_SPEC).items()
}
LARGE = DeviceLimits(memory_bytes=2**31, max_binding_bytes=2**27)


def test_bytes_of_each_part() -> None:
    made = plan(TINY_SPEC, TENSORS, LARGE, n_ctx=1024, max_rows=8)
    n_values = sum(int(np.prod(shape)) for shape in expected_shapes(TINY_SPEC).values() if len(shape) == 2)
    n_vector = sum(shape[0] for shape in expected_shapes(TINY_SPEC).values() if len(shape) == 1)
    assert made.weights_bytes == pytest.approx(n_values * 18 / 32 + 4 * n_vector, rel=1e-3)
    assert made.cache_bytes == 1024 * cache_bytes_per_token(TINY_SPEC) == 1024 * 2 * 2 * 2 * 2 * 32


@pytest.mark.parametrize(("fmt", "superblock_bytes"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 212)])
def test_bytes_of_superblocks(fmt: str, superblock_bytes: int) -> None:
    shapes = expected_shapes(WIDE_SPEC)
    tensors = {n: TensorInfo(n, shape, fmt if len(shape) == 2 else "F32", 0, 0) for n, shape in shapes.items()}
    made = plan(WIDE_SPEC, tensors, LARGE, n_ctx=64, max_rows=8)
    n_superblocks = sum(shape[0] * shape[1] // 256 for shape in shapes.values() if len(shape) == 2)
    n_vector = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    assert made.weights_bytes == n_superblocks * superblock_bytes + 4 * n_vector


def test_a_model_that_does_not_fit_says_what_would() -> None:
    needed = plan(TINY_SPEC, TENSORS, LARGE, n_ctx=4096, max_rows=8).total_bytes
    with pytest.raises(OutOfDeviceMemory, match=r"a context of \d+ tokens would fit"):
        plan(TINY_SPEC, TENSORS, DeviceLimits(needed, 2**27), n_ctx=4096, max_rows=8)
    with pytest.raises(OutOfDeviceMemory, match="smaller model"):
        plan(TINY_SPEC, TENSORS, DeviceLimits(100_000, 2**27), n_ctx=4096, max_rows=8)


def test_a_tensor_above_the_largest_binding_is_named() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"token_embd\.weight"):
        plan(TINY_SPEC, TENSORS, DeviceLimits(2**31, 14_000), n_ctx=64, max_rows=8)


def test_a_decode_step_reads_each_weight_once_and_the_cache() -> None:
    all_weights = plan(TINY_SPEC, TENSORS, LARGE, n_ctx=64, max_rows=8).weights_bytes
    embedding = TINY_SPEC.n_vocab * TINY_SPEC.d_model * 18 // 32
    untied = decode_bytes(TINY_SPEC, TENSORS, 0)
    assert untied == pytest.approx(all_weights - embedding, rel=1e-3)
    assert decode_bytes(TINY_SPEC, TENSORS, 100) - untied == 100 * cache_bytes_per_token(TINY_SPEC)
    tied = replace(TINY_SPEC, output_weight="token_embd.weight")
    assert decode_bytes(tied, TENSORS, 0) == untied, "the embedding is the vocabulary projection then"
