"""A context far beyond a step: 9,000 tokens on a tiny model, whose last tokens are compared with the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import tiny_spec
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part
from vkllm.model.spec import Rope, Yarn

pytestmark = pytest.mark.gpu

N_TOKENS, N_DECODED = 9000, 4
SPEC = tiny_spec(
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    d_model=64,
    d_ff=64,
    n_vocab=64,
    n_ctx_train=16384,
    rope=Rope(10000.0, 32, "interleaved", scale=8.0, magnitude=1.2, yarn=Yarn(2048)),
)
# Keys and values are rounded to float16 (2^-12), which this layer amplifies some times: (8 * 2^-12)^2.
BOUND = 4e-6


def test_prompt_and_answer_at_the_end_of_9000_tokens_equal_the_reference(device: Device, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", SPEC, {"attn_v": "Q8_0"})
    config = engine_config(path, SPEC, N_TOKENS)
    program = Program(device, SPEC, path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, SPEC.n_vocab, N_TOKENS)]
    table = [int(block) for block in np.random.default_rng(1).permutation(program.n_blocks)]  # in any order
    n_prompt = N_TOKENS - N_DECODED
    got = []
    for start in range(0, n_prompt, MAX_ROWS):
        chunk = tokens[start : min(start + MAX_ROWS, n_prompt)]
        is_last = start + len(chunk) == n_prompt
        n_blocks = -(-(start + len(chunk)) // KV_BLOCK)
        results = LOGITS if is_last else ()
        step = program.submit([Part(0, chunk, start, table[:n_blocks], results=results)], is_prompt=True)
    got.append(program.logits(step))
    for position in range(n_prompt, N_TOKENS):
        blocks = table[: position // KV_BLOCK + 1]
        step = program.submit([Part(0, [tokens[position]], position, blocks, results=LOGITS)])
        got.append(program.logits(step))

    oracle = reference(config)
    for start in range(0, n_prompt - 1, 500):  # all at once would need gigabytes
        oracle.run(tokens[start : min(start + 500, n_prompt - 1)])
    wanted = oracle.run(tokens[n_prompt - 1 :])
    assert len(got) == len(wanted) == N_DECODED + 1
    for i, logits in enumerate(got):
        assert nmse(logits, wanted[i]) < BOUND, i
