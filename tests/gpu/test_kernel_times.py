"""Every dispatch of a step is timed once, under a name that says what it does, and counts the bytes it must read."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import constants
from model_specs import WIDE_SPEC, wide_spec
from random_model import engine_config, write_random_model

from vkllm.gpu.device.kompute import Device, Dispatch
from vkllm.gpu.measure import arithmetic, kernel_times, timing
from vkllm.gpu.measure.kernel_times import kernel_work, step_times
from vkllm.gpu.measure.step_times import KernelWork, StepTimes
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.decode import Decode
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, WIDTHS, Part
from vkllm.model.memory.plan import PlanOptions, decode_bytes

pytestmark = pytest.mark.gpu

Q4 = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q4_0")
MODELS = {
    "tied": (wide_spec(output_weight="token_embd.weight"), Q4 | {"token_embd": "Q8_0"}),
    "mixed": (WIDE_SPEC, Q4 | {"attn_v": "Q6_K", "ffn_up": "F16", "token_embd": "F16", "output": "Q6_K"}),
}
D, FF, VOCAB, QKV = WIDE_SPEC.d_model, WIDE_SPEC.d_ff, WIDE_SPEC.n_vocab, 256 + 2 * 64


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is right or wrong however long it is measured."""
    for module in (timing, kernel_times):
        monkeypatch.setattr(module, "MEASURE_S", 0.002)
    monkeypatch.setattr(timing, "SUBMIT_S", 0.0002)


def load(
    device: Device, folder: Path, name: str, *, is_chained: bool = False, options: PlanOptions | None = None
) -> tuple[Program, dict]:
    spec, formats = MODELS[name]
    path = write_random_model(folder / "model.gguf", spec, formats)
    config = engine_config(path, spec, 640)
    choices = tuning(device.info)
    choices = replace(choices, decode=replace(choices.decode, is_chained=is_chained))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_module, "tuning", lambda info: choices)
        return Program(device, spec, path, config.tensors, config.n_ctx, options=options), config.tensors


def timed(program: Program, n_rows: int, n_depth: int = 0) -> StepTimes:
    return step_times(program, n_rows, n_depth, range(-(-(n_depth + n_rows) // KV_BLOCK)), 1e9)


def names(times: StepTimes) -> list[tuple[str, str, str, int, int]]:
    return [
        (kernel.work.kernel, kernel.work.weight_format, kernel.work.shape, kernel.work.n_tokens, kernel.n_dispatches)
        for kernel in times.kernels
    ]


@pytest.mark.parametrize("is_chained", [False, True], ids=["", "chained"])
def test_kernels_of_a_decode_step(device: Device, tmp_path: Path, quick: None, is_chained: bool) -> None:
    program, _ = load(device, tmp_path, "tied", is_chained=is_chained)
    times = timed(program, 1, 70)
    # in a chain a kernel that waited for one before it, which is not there, would never end
    assert names(times) == [
        ("begin_step", "", "", 1, 1),
        ("embed", "Q8_0", str(D), 1, 1),
        ("matvec_fused", "Q4_0", f"{QKV} x {D}, norm", 1, 2),
        ("attention_fused", "", "8 / 2 x 32", 1, 2),
        ("matvec_fused", "Q4_0", f"{D} x {D}, sum", 1, 2),
        ("matvec_fused", "Q4_0", f"{2 * FF} x {D}, norm, activation", 1, 2),
        ("matvec_fused", "Q4_0", f"{D} x {FF}, sum", 1, 2),
        ("matvec_fused", "Q8_0", f"{VOCAB} x {D}, norm", 1, 1),
        ("argmax", "", str(VOCAB), 1, 1),
        ("top_logits", "", str(VOCAB), 1, 0),  # only with a temperature
        ("sample", "", str(VOCAB), 1, 0),
    ]


def test_kernels_of_a_prompt(device: Device, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "info", replace(device.info, matrix_shape=None))
    program, _ = load(device, tmp_path, "mixed")
    assert names(timed(program, 50)) == [
        ("begin_step", "", "", 1, 1),
        ("embed", "F16", str(D), 50, 1),
        ("norm", "", str(D), 50, 4),
        ("matvec", "Q4_0", f"320 x {D}", 50, 2),  # q and k
        ("matvec", "Q6_K", f"64 x {D}", 50, 2),
        ("rope", "", "8 / 2 x 32", 50, 2),
        ("attention", "", "8 / 2 x 32", 50, 2),
        ("matvec", "Q4_0", f"{D} x {D}, sum", 50, 2),
        ("matvec", "Q4_0", f"{FF} x {D}", 50, 2),  # gate
        ("matvec", "F16", f"{FF} x {D}", 50, 2),
        ("activate", "", str(FF), 50, 2),
        ("matvec", "Q4_0", f"{D} x {FF}, sum", 50, 2),
        ("norm", "", str(D), 1, 1),  # the last row's
        ("matvec", "Q6_K", f"{VOCAB} x {D}", 1, 1),
        ("argmax", "", str(VOCAB), 1, 1),
    ]


@pytest.mark.parametrize(("model", "n_rows"), [("tied", 1), *(("mixed", width) for width in WIDTHS)])
def test_each_dispatch_of_the_recording_counts_once(
    device: Device, tmp_path: Path, quick: None, model: str, n_rows: int
) -> None:
    program, _ = load(device, tmp_path, model)
    recordings: list[list[Dispatch]] = []
    record = device.record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "record", lambda dispatches: record(recordings.append(list(dispatches)) or dispatches))
        part = Part(0, [1] * n_rows, 0, range(-(-n_rows // KV_BLOCK)), results=LIKELIEST)
        step = program.submit([part], is_prompt=n_rows > 1)
    program.wait(step)
    recorded = [dispatch for part in recordings for dispatch in part]
    times = timed(program, n_rows, 3)
    assert len({kernel.work for kernel in times.kernels}) == len(set(names(times))) == len(times.kernels)
    counts: Counter[tuple[str, str]] = Counter()
    for kernel in times.kernels:
        counts[kernel.work.kernel, kernel.work.weight_format] += kernel.n_dispatches
    assert +counts == Counter((dispatch.kernel.name, dispatch.weight_format or "") for dispatch in recorded)
    # that of attention_fused is the difference of two times, and on a busy machine may be none
    assert all(kernel.dispatch_s > 0 or kernel.work.kernel == "attention_fused" for kernel in times.kernels)
    assert times.step_s > 0
    assert times.sum_s == pytest.approx(sum(kernel.n_dispatches * kernel.dispatch_s for kernel in times.kernels))


@pytest.mark.parametrize("options", [PlanOptions(), PlanOptions("q8_0", "f16")], ids=["f16", "q8_0"])
@pytest.mark.parametrize("model", MODELS)
def test_a_decode_step_reads_what_the_plan_says(
    device: Device, tmp_path: Path, quick: None, model: str, options: PlanOptions
) -> None:
    program, tensors = load(device, tmp_path, model, options=options)
    for depth in (0, 500):
        # those before it, and itself
        wanted = decode_bytes(program.spec, tensors, depth + 1, options.type_k, options.type_v)
        # the norm before q, k and v is read again for v, which has a format of its own
        again = program.spec.n_layers * 4 * D if model == "mixed" else 0
        assert timed(program, 1, depth).read_bytes == wanted + again


def test_a_prompt_computes_two_operations_a_weight_and_token(device: Device, tmp_path: Path, quick: None) -> None:
    program, tensors = load(device, tmp_path, "mixed")
    n_rows, depth = 20, 90
    matrices = sum(math.prod(info.shape) for name, info in tensors.items() if ".ffn_" in name or ".attn_" in name)
    matrices -= sum(math.prod(info.shape) for name, info in tensors.items() if "norm" in name and "blk" in name)
    pairs = sum(depth + i + 1 for i in range(n_rows))  # of a token with those that it sees
    attention = 2 * program.spec.n_layers * program.spec.n_heads * program.spec.head_dim * pairs
    assert timed(program, n_rows, depth).n_flops == 2 * (n_rows * matrices + VOCAB * D + attention)


def test_parts_too_wide_for_shared_memory_add_up(
    device: Device, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decode, "_most_columns", lambda self, matvec: D)
    program, tensors = load(device, tmp_path, "tied")
    times = timed(program, 1)
    # in each of the two layers the halves of the last product, and attention's own, which has their shape
    assert ("matvec_fused", "Q4_0", f"{D} x {FF // 2}, sum", 1, 6) in names(times)
    assert times.read_bytes == decode_bytes(program.spec, tensors, 1)


@pytest.mark.parametrize(("width", "tile_tokens", "n_tokens"), [(64, 64, 33), (512, 128, 300)])
def test_the_work_of_cooperative_matrices(width: int, tile_tokens: int, n_tokens: int) -> None:
    constants, groups = (256, 4096, tile_tokens, 4, 2, 1, 16, 16, 16, 128, 1, 0, 0, 1, 0), (96, width // tile_tokens)
    push = np.array([12288, 0, 12288], np.uint32)
    dispatch = Dispatch(KERNELS["matmul"], "Q4_0", constants, groups, None, push)
    n = 12288 * 4096
    assert kernel_work(dispatch, n_tokens, 70) == KernelWork(
        "matmul", "Q4_0", "12288 x 4096, sum", n_tokens, n // 32 * 18, 2 * n * n_tokens
    )


@pytest.mark.parametrize(
    ("n_rows", "n_depth", "n_read", "n_pairs"), [(1, 300, 100, 100), (1, 30, 31, 31), (3, 98, 101, 299)]
)
def test_the_work_of_attention_in_a_window(n_rows: int, n_depth: int, n_read: int, n_pairs: int) -> None:
    values = constants("attention", n_heads=8, n_kv_heads=2, head_dim=64, window=100)
    dispatch = Dispatch(KERNELS["attention"], None, values, (8, 1, 1), None, np.zeros(0, np.uint32))
    work = kernel_work(dispatch, n_rows, n_depth)
    assert work.read_bytes == n_read * 2 * 2 * 64 * 2, "float16 keys and values of two heads"
    assert work.n_flops == 4 * 8 * 64 * n_pairs


def test_the_largest_product_takes_as_long_as_the_clock_says(
    device: Device, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = load(device, tmp_path, "tied")
    passes: list[float] = []

    def clocked(device: Device, dispatches: list[Dispatch]) -> float:
        device.run(dispatches)
        start_s = time.perf_counter()
        device.run(dispatches)
        passes.append(time.perf_counter() - start_s)
        return passes[-1]

    monkeypatch.setattr(arithmetic, "pass_s", clocked)
    rate = arithmetic.product_rate(device, program.operations, by_matrices=False)
    assert rate == 2 * 64 * 2048**2 / passes[0]
    # not one that ends at once: a core does less than 1e12 operations a second, and no device 1e16
    assert 1e8 < rate < (1e12 * (os.cpu_count() or 1) if device.info.type == "cpu" else 1e16)
