"""Dispatches stay within the workgroups that a device allows, whatever the vocabulary, and give the same numbers."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_specs import tiny_spec, wide_spec
from random_model import engine_config, write_random_model
from tunings import H100, RADEON

from vkllm.errors import DeviceError
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.hidden_states import HiddenStates
from vkllm.gpu.program.kernels import KERNELS, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.recordings import Submitted
from vkllm.gpu.program.scoring import Scorer
from vkllm.gpu.program.step import LIKELIEST, LOGITS, WIDTHS, Draw, Part, Result

SHADERS = Path(__file__).parents[2] / "shaders"
sys.path.insert(0, str(SHADERS))

from paper import PaperDevice, paper_program  # noqa: E402

MOST = 65535
CPU = replace(H100, type="cpu", vendor_id=0x10005, matrix_shape=None, n_cores=None)


@settings(deadline=None, max_examples=60)
@given(
    n_vocab=st.one_of(st.integers(2**7, 2**22), st.sampled_from([128_256, 131_072, 151_936, 256_000, 262_144])),
    size=st.sampled_from([4, 8, 16, 32, 64, 128]),
    base=st.sampled_from([H100, RADEON, replace(H100, vendor_id=0x13B5, n_cores=None), CPU]),
    fmt=st.sampled_from(["Q4_0", "Q6_K", "F16"]),
    is_tied=st.booleans(),
    d_ff=st.sampled_from([512, 53_248]),
)
def test_no_dispatch_of_a_program_has_more_workgroups_than_any_device_allows(
    n_vocab: int, size: int, base, fmt: str, is_tied: bool, d_ff: int
) -> None:
    info = replace(base, subgroup_size=size, min_subgroup_size=size, max_subgroup_size=size)
    output = "token_embd.weight" if is_tied else "output.weight"
    spec = wide_spec(n_layers=1, n_vocab=n_vocab, d_ff=d_ff, output_weight=output)
    device = PaperDevice(info)
    program = paper_program(device, spec, fmt)
    draw, mask = Draw(1, 0, 0, 0.0, 0), np.zeros(-(-n_vocab // 32), np.uint32)
    kinds = (None, None, True), (None, None), (None, mask), (draw, None), (draw, mask)
    for width, result in itertools.product(WIDTHS, kinds):
        program.submit([Part(0, [0] * width, 0, [0], results=[Result(*result)])])
    Scorer(program.heads).score(0, [1])
    HiddenStates(program).rows(0, 1)
    uses = [use for step in device.steps for use in step]
    found = {use.kernel for use in uses}
    assert found >= {"argmax", "top_logits", "mask_logits", "score", "copy_words", "read_logits"}
    assert found & {"matvec", "matmul_narrow"}
    for use in uses:
        assert all(1 <= n <= MOST for n in use.groups), use
        if use.kernel == "matvec":
            values = dict(
                zip((*KERNELS["matvec"].constants, *KERNELS["matvec"].push), use.constants + use.push, strict=True)
            )
            rows = values["rows_per_subgroup"] * values["local_size"] // device.info.subgroup_size
            assert use.groups[0] * use.groups[2] * rows >= values["n_weight_rows"], "rows that nobody computes"


@pytest.mark.parametrize(("n_vocab", "folds"), [(131_070, False), (131_072, True), (262_144, True)])
def test_a_large_vocabulary_on_subgroups_of_64_goes_on_in_z(n_vocab: int, folds: bool) -> None:
    device = PaperDevice(replace(RADEON, matrix_shape=None))
    program = paper_program(device, wide_spec(n_layers=1, n_vocab=n_vocab), "F16")
    device.steps.clear()
    program.submit([Part(0, [0] * 8, 0, [0], results=LIKELIEST)], is_prompt=True)
    logits = [use for step in device.steps for use in step if use.kernel == "matvec"][-1]
    assert logits.push[0] == n_vocab and (logits.groups[2] > 1) == folds
    assert logits.groups[0] * logits.groups[2] * 2 >= n_vocab


@pytest.mark.parametrize(
    ("kernel", "asked", "given"),
    [
        ("matvec", (100, 3), (100, 3, 1)),
        ("matvec", (101, 3), (51, 3, 2)),
        ("matvec", (1000, 1), (100, 1, 10)),
        ("copy_words", (5000, 1), (100, 1, 1)),
        ("matvec_fused", (5000, 1), (100, 1, 1)),
        ("matvec", (10_001, 1), None),
        ("matvec", (1, 101), None),
        ("rope", (101, 1), None),
    ],
)
def test_surplus_workgroups_go_on_in_z_or_loop_or_are_refused(
    kernel: str, asked: tuple[int, int], given: tuple[int, int, int] | None
) -> None:
    if given is not None:
        assert KERNELS[kernel].workgroups(*asked, (100, 100, 100)) == given
        return
    with pytest.raises(DeviceError, match=f"{kernel} needs .* workgroups, and the device allows 100 x 100 x 100"):
        KERNELS[kernel].workgroups(*asked, (100, 100, 100))


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", ["Q8_0", "F16"])
def test_fewer_workgroups_give_the_very_same_numbers(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:
    spec = tiny_spec(n_layers=1, n_vocab=3001)
    kinds = ("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")
    path = write_random_model(tmp_path / "model.gguf", spec, dict.fromkeys(kinds, fmt))
    config = engine_config(path, spec)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, spec.n_vocab, 9)]
    draw = Draw(top_k=40, top_p=0xFFFFFFFF, min_p=0, slope=1e6, number=7)
    mask = np.packbits(np.random.default_rng(3).random(32 * -(-spec.n_vocab // 32)) < 0.3, bitorder="little")

    def outcome() -> tuple[list[np.ndarray], list[int], int]:
        program = Program(device, spec, path, config.tensors, config.n_ctx)

        def step(tokens: list[int], position: int, result: Result) -> Submitted:
            part = Part(0, tokens, position, [0], results=[result])
            return program.submit([part], is_prompt=len(tokens) > 1)

        wanted = Result(wants_logits=True)
        logits = [program.logits(step(tokens, 0, wanted)), program.logits(step([5], len(tokens), wanted))]
        masked = Result(mask=mask.view(np.uint32))
        steps = step(tokens, 0, Result()), step([5], 9, Result(draw)), step([5], 9, masked)
        chosen = [token for submitted in steps for token in program.tokens(submitted)]
        made = [dispatch for width in WIDTHS[:2] for dispatch in program.dispatches(width, LOGITS)]
        return logits, chosen, max(max(dispatch.groups) for dispatch in made if dispatch.kernel.surplus != "none")

    whole_logits, whole_chosen, most = outcome()
    assert most > 7
    monkeypatch.setattr(device, "info", replace(device.info, max_groups=(7, MAX_ROWS, MOST)))
    logits, chosen, most_x = outcome()
    assert most_x < most and chosen == whole_chosen
    for got, wanted in zip(logits, whole_logits, strict=True):
        assert np.array_equal(got, wanted)
