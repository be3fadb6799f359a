"""Programs of layers unlike llama's against the numpy reference: a prompt in chunks, then steps of one token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import KINDS_OF_LAYERS, LAYER, of_layers
from program_case import logit_errors
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.model.graph import decoder
from vkllm.model.spec import ModelSpec

pytestmark = pytest.mark.gpu

# Keys and values are rounded to float16 (2^-12), which these random layers amplify some times: (8 * 2^-12)^2.
BOUND = 4e-6

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "inp_gate")
MATRICES += ("attn_kv_a_mqa", "attn_q_a", "attn_v_b")


def write(folder: Path, spec: ModelSpec, fmt: str) -> Path:
    return write_random_model(folder / "model.gguf", spec, dict.fromkeys(MATRICES, fmt))


@pytest.mark.parametrize(
    ("name", "fmt", "is_chained"),
    [
        *(("qwen3", "Q4_0", True), ("gemma", "Q4_0", False), ("starcoder2", "Q4_0", True)),
        *(("command-r", "Q4_0", False), ("olmo2", "Q4_0", True), ("hunyuan", "Q4_0", False)),
        *(("gpt-oss", "Q4_0", True), ("qwen3.5", "Q4_0", True), ("llama4", "Q4_0", True)),
        *(("gemma4 with large heads", "Q4_0", True), ("gemma4", "F16", False)),
        *(("deepseek2", "Q4_0", True), ("deepseek2", "F16", False)),
        ("embeddings that are no whole blocks", "Q4_0", True),
    ],
)
def test_logits_equal_the_reference(
    device: Device, tmp_path: Path, name: str, fmt: str, is_chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = KINDS_OF_LAYERS[name]
    config = engine_config(write(tmp_path, spec, fmt), spec)
    choices = tuning(device.info)
    if "large heads" in name:  # two keys at once take twice as long to compile
        choices = replace(choices, keys_at_once=1, decode=replace(choices.decode, keys_at_once=1))
    choices = replace(choices, decode=replace(choices.decode, is_chained=is_chained))
    if device.info.matrix_shape is not None:
        choices = replace(choices, has_matmul=True, has_tiled_attention=True)
    monkeypatch.setattr(Program, "_may_chain", True)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx, choices=choices)
    norms = [made for made in program.dispatches(1) if made.kernel.name == "norm"]
    assert norms or not name.startswith(("gemma", "command-r", "olmo2"))
    assert all((made.values["most_polls"] > 0) == (is_chained and device.has_memory_model) for made in norms)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 103)]
    found = logit_errors(program, tokens, reference(config).run(tokens), (60, 40))
    assert max(found) < BOUND, found


@pytest.mark.parametrize("name", ["gemma", "command-r", "hunyuan", "gemma4", "qwen3.5"])
def test_without_subgroups_logits_equal_the_reference(
    device: Device, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "info", without_subgroups(device.info))
    spec = KINDS_OF_LAYERS[name]
    config = engine_config(write(tmp_path, spec, "Q4_0"), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 46)]
    assert max(logit_errors(program, tokens, reference(config).run(tokens), (45,))) < BOUND


def test_a_model_that_is_not_causal(device: Device, tmp_path: Path) -> None:
    spec = of_layers(LAYER, replace(LAYER, window=5), is_causal=False)
    config = engine_config(write(tmp_path, spec, "Q4_0"), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 50)]
    assert max(logit_errors(program, tokens, reference(config).run(tokens), (50,))) < BOUND


@pytest.mark.parametrize(("name", "n_dispatches"), [("qwen3", 5), ("starcoder2", 5), ("gemma", 7)])
def test_dispatches_of_a_layer_in_a_step_of_one_token(
    device: Device, tmp_path: Path, name: str, n_dispatches: int
) -> None:
    spec = replace(KINDS_OF_LAYERS[name], layers=2 * KINDS_OF_LAYERS[name].layers[:1])
    config = engine_config(write(tmp_path, spec, "Q4_0"), spec)
    program = Program(device, spec, config.path, config.tensors, KV_BLOCK)
    without = 2  # begin_step and embed
    assert len(program.dispatches(1)) - without == 2 * n_dispatches
    assert decoder(spec)[-1].output == "x"
