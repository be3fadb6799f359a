"""Programs of mixtures of experts against the numpy reference: a prompt in chunks, then steps of one token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import LAYER, of_layers
from program_case import logit_errors
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part
from vkllm.model.spec import Experts, ModelSpec

pytestmark = pytest.mark.gpu

# Keys and values are rounded to float16 (2^-12), which these random layers amplify some times: (8 * 2^-12)^2. The seed
# has no two experts so close to each other that this changes the choice.
BOUND = 4e-6
# Matrices round the activations of prompts to float16 too.
MATRICES_BOUND = 2e-5

MATRICES = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps"),
)

EXPERTS = {
    "normalized, shared with a gate": Experts(
        12, 3, 64, is_normalized=True, d_ff_shared=96, has_shared_gate=True, scale=1.5
    ),
    "biases, softmax of chosen": Experts(
        6,
        2,
        64,
        gating="softmax_of_chosen",
        function="swiglu_oai",
        biases=("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ),
    "weighs its input": Experts(5, 2, 64, gating="sigmoid", chooses_by_logits=True, weighs_input=True, d_ff_shared=64),
    "one tensor, scales, selection bias": Experts(
        8,
        3,
        32,
        gating="sigmoid",
        has_selection_bias=True,
        n_groups=4,
        n_groups_used=2,
        is_normalized=True,
        has_fused_gate_up=True,
        scales=("ffn_gate_up_exps", "ffn_down_exps"),
    ),
    "no gates": Experts(7, 7, 64, function="relu2", is_gated=False, scales=("ffn_up_exps",)),
}


def written(folder: Path, spec: ModelSpec, fmt: str) -> Path:
    return write_random_model(folder / "model.gguf", spec, dict.fromkeys(MATRICES, fmt), seed=3)


@pytest.mark.parametrize(
    ("name", "fmt", "is_chained"),
    [(name, "Q4_0", i % 2 == 0) for i, name in enumerate(EXPERTS)]
    + [("biases, softmax of chosen", "MXFP4", True), ("normalized, shared with a gate", "F16", False)],
)
def test_logits_equal_the_reference(
    device: Device, tmp_path: Path, name: str, fmt: str, is_chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = of_layers(*2 * [replace(LAYER, d_ff=0, experts=EXPERTS[name])])
    config = engine_config(written(tmp_path, spec, fmt), spec)
    choices = tuning(device.info)
    choices = replace(choices, decode=replace(choices.decode, is_chained=is_chained))
    if device.info.matrix_shape is not None:
        choices = replace(choices, has_matmul=True)
    monkeypatch.setattr(Program, "_may_chain", True)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx, choices=choices)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 43)]
    _, *found = logit_errors(program, tokens, reference(config).run(tokens), (23, 17))  # from the prompt's end on
    assert max(found) < (BOUND if device.info.matrix_shape is None else MATRICES_BOUND), found
    kernels = [dispatch.kernel.name for dispatch in program.dispatches(1, LOGITS)]
    n_fused = kernels.count("route_fused")
    assert n_fused == (2 if fmt != "F16" else 0), kernels
    assert kernels.count("expert_sum") == 2 - n_fused


def test_without_subgroups_logits_equal_the_reference(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "info", without_subgroups(device.info))
    spec = of_layers(replace(LAYER, d_ff=0, experts=EXPERTS["normalized, shared with a gate"]))
    config = engine_config(written(tmp_path, spec, "Q4_0"), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 22)]
    assert max(logit_errors(program, tokens, reference(config).run(tokens), (21,))) < BOUND


@pytest.mark.parametrize(("fmt", "width"), [("Q4_0", 64), ("F16", 48)])
def test_a_mixture_beside_a_dense_layer(device: Device, tmp_path: Path, fmt: str, width: int) -> None:
    """Whose router has a norm of its own; it is fused only where the products with the experts are."""
    experts = Experts(6, 2, width, function="gelu", is_normalized=True, has_fused_gate_up=True, is_beside_dense=True)
    layer = replace(LAYER, function="gelu", d_ff=96, post_ffn_norm="post_ffw_norm", experts=experts)
    spec = of_layers(layer, layer)
    config = engine_config(written(tmp_path, spec, fmt), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 14)]
    assert max(logit_errors(program, tokens, reference(config).run(tokens), (11,))) < BOUND
    kernels = [dispatch.kernel.name for dispatch in program.dispatches(1, LOGITS)]
    assert kernels.count("route_fused") == (2 if fmt == "Q4_0" else 0)


def test_experts_of_unlike_formats(device: Device, tmp_path: Path) -> None:
    spec = of_layers(replace(LAYER, d_ff=0, experts=EXPERTS["biases, softmax of chosen"]))
    formats = dict.fromkeys(MATRICES, "Q4_0") | {"ffn_up_exps": "Q8_0"}
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, formats, seed=3), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 13)]
    assert max(logit_errors(program, tokens, reference(config).run(tokens), (11,))) < BOUND


def test_chunks_of_any_length_give_the_same_logits(device: Device, tmp_path: Path) -> None:
    spec = of_layers(replace(LAYER, d_ff=0, experts=EXPERTS["one tensor, scales, selection bias"]))
    config = engine_config(written(tmp_path, spec, "Q4_0"), spec)
    program = Program(device, spec, config.path, config.tensors, config.n_ctx)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 66)]
    table = list(range(program.n_blocks))
    found = []
    for n_chunk in (66, 13, 1):
        for start in range(0, 66, n_chunk):
            part = Part(0, tokens[start : start + n_chunk], start, table, results=LOGITS)
            step = program.submit([part], is_prompt=True)
        found.append(program.logits(step))
    assert all(np.array_equal(logits, found[0]) for logits in found)
