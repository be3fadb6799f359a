"""Programs of layers with a state against the numpy reference: prompts however they are cut, then single tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import LAYER, STATE, of_layers
from program_case import logit_errors
from random_model import engine_config, reference, write_random_model

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, LOGITS, Part
from vkllm.model.mixers import DeltaNet, Mamba2, ShortConvolution
from vkllm.model.spec import ModelSpec

pytestmark = pytest.mark.gpu

BOUND = 4e-6  # see test_kinds_of_layers.py: the layer with attention rounds keys and values to float16

SPECS = {
    "delta net": of_layers(
        replace(STATE, mixer=DeltaNet(2, 6, 16, 4)),
        LAYER,
        replace(STATE, mixer=DeltaNet(1, 2, 32, 3, are_heads_grouped=True, has_fused_beta_alpha=True)),
    ),
    "mamba 2": of_layers(
        replace(STATE, mixer=Mamba2(6, 16, 16, 2, 4)), LAYER, replace(STATE, mixer=Mamba2(4, 32, 64, 1, 4))
    ),
    "columns that are no whole blocks": of_layers(
        replace(STATE, mixer=DeltaNet(1, 3, 24, 4)), LAYER, replace(STATE, mixer=Mamba2(6, 12, 8, 2, 3))
    ),
    "short convolution": of_layers(replace(STATE, mixer=ShortConvolution(3, 96)), LAYER),
    "states only": of_layers(replace(STATE, mixer=ShortConvolution(4, 96))),
}
WITH_NETS = ("delta net", "columns that are no whole blocks")
MATRICES = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "attn_gate",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "in_proj",
    "out_proj",
    "ssm_out",
)


def load(device: Device, folder: Path, spec: ModelSpec) -> tuple[Program, list[int], np.ndarray]:
    """A program, tokens, and the logits (T, V) behind each of them."""
    config = engine_config(write_random_model(folder / "model.gguf", spec, dict.fromkeys(MATRICES, "Q4_0")), spec)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 103)]
    return Program(device, spec, config.path, config.tensors, config.n_ctx), tokens, reference(config).run(tokens)


@pytest.mark.parametrize(("name", "is_chained"), [*((name, False) for name in SPECS), ("delta net", True)])
def test_logits_equal_the_reference(
    device: Device, tmp_path: Path, name: str, is_chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Program, "_may_chain", True)
    program, tokens, wanted = load(device, tmp_path, SPECS[name])
    choices = program.tuning
    program.use(replace(choices, decode=replace(choices.decode, is_chained=is_chained)))
    kernels = [dispatch.kernel.name for dispatch in program.dispatches(1, LIKELIEST)]
    assert device.is_plain or (("delta_net_fused" in kernels) == (name in WITH_NETS) and "delta_net" not in kernels)
    for cuts in ((100,), (1, 2, 8, 70, 19)):
        found = logit_errors(program, tokens, wanted, cuts)
        assert max(found) < BOUND, (cuts, found)
    assert max(logit_errors(program, tokens[:20], wanted, ())) < BOUND


@pytest.mark.parametrize("name", ["delta net", "mamba 2", "columns that are no whole blocks", "short convolution"])
def test_without_subgroups_logits_equal_the_reference(
    device: Device, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "info", without_subgroups(device.info))
    program, tokens, wanted = load(device, tmp_path, SPECS[name])
    assert max(logit_errors(program, tokens[:46], wanted, (45,))) < BOUND


def test_a_step_goes_on_from_the_slot_that_it_names(device: Device, tmp_path: Path) -> None:
    program, tokens, wanted = load(device, tmp_path, SPECS["delta net"])
    assert program.plan.n_state_slots == 6 and set(program.states) == {0, 2}
    table = list(range(program.n_blocks))

    def logits(first: int, end: int, read: int | None, stored: dict[int, int]) -> np.ndarray:
        """Runs tokens first to end - 1, with the states behind some of them stored."""
        part = Part(0, tokens[first:end], first, table, state_slot=read, stored=stored, results=LOGITS)
        return program.logits(program.submit([part], is_prompt=True))

    logits(0, 80, None, {63: 3, 79: 1})
    assert nmse(logits(64, 75, 3, {}), wanted[74]) < BOUND
    assert nmse(logits(80, 87, 1, {1: 0, 6: 2}), wanted[86]) < BOUND
    assert nmse(logits(82, 83, 0, {}), wanted[82]) < BOUND
    assert nmse(logits(87, 88, 2, {}), wanted[87]) < BOUND
    assert nmse(logits(64, 75, 2, {}), wanted[74]) > 100 * BOUND  # the state behind another token
