"""`vkllm bench --kernels`: what each kernel of a step takes, beside what the device can do.

It chooses steps and prints; `LLM.measure_kernels` takes the times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vkllm import LLM, DeviceReport, InvalidParameter, KernelTime, StepTimes, __version__
from vkllm.faces.cli.bench import Measured, Setup, device_line, driver, each_loaded, model_type, n_gpu_layers
from vkllm.faces.cli.one_device import check_one_device
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.step import WIDTHS
from vkllm.model.memory.plan import USUAL_CONTEXT

LONGEST_STEP_S = 0.1
"""Prompts run in no wider steps than one that takes so long (engine.py), so none wider is measured unasked."""


@dataclass(frozen=True)
class KernelOptions:
    """What was asked for. prompts: rows of steps of a prompt; None takes all widths that the device suits.

    decodes: whether a step of decoding is measured.
    """

    setups: Sequence[Setup]
    prompts: Sequence[int] | None
    decodes: bool
    depths: Sequence[int]

    def __post_init__(self) -> None:
        """Raises InvalidParameter."""
        for n_rows in self.prompts or ():
            if not 2 <= n_rows <= MAX_ROWS:
                raise InvalidParameter(
                    f"-p takes 2 to {MAX_ROWS} with --kernels, not {n_rows}; a longer prompt runs in several steps"
                )
        if not self.decodes and self.prompts is not None and not self.prompts:
            raise InvalidParameter("there is nothing to measure; give -p or -n a number above 0")

    @property
    def n_ctx(self) -> int | None:
        """Context that it needs; None: the usual one is enough."""
        n_ctx = max(self.depths) + max(self.prompts or (MAX_ROWS,))
        return n_ctx if n_ctx > USUAL_CONTEXT else None


class StepResult(NamedTuple):
    """fields: what was measured; times and report: how fast it was, and how fast the device reads."""

    fields: dict[str, Any]
    times: StepTimes
    report: DeviceReport


def measure_kernels(options: KernelOptions) -> Iterator[StepResult]:
    """Loads the first model, then measures steps as they are asked for. Raises any VkllmError."""
    for setup in options.setups:
        check_one_device(setup.placing, "timed kernel by kernel")
    loaded = each_loaded(options.setups, options.n_ctx)

    def results() -> Iterator[StepResult]:
        for setup, llm in loaded:
            report = llm.measure_device()
            for depth in options.depths:
                for times in _steps(llm, options, depth):
                    yield StepResult(_fields(llm, report, setup, times), times, report)

    return results()


def _steps(llm: LLM, options: KernelOptions, depth: int) -> Iterator[StepTimes]:
    if options.decodes:
        yield llm.measure_kernels(1, depth)
    if options.prompts is not None:
        for n_rows in options.prompts:
            yield llm.measure_kernels(n_rows, depth)
        return
    for width in WIDTHS[1:]:
        if depth + width > llm.n_ctx:
            return
        yield (times := llm.measure_kernels(width, depth))
        if times.step_s > LONGEST_STEP_S:
            return


def _fields(llm: LLM, report: DeviceReport, setup: Setup, times: StepTimes) -> dict[str, Any]:
    """What each row of the step has in common, by the names of `vkllm bench`."""
    return {
        "build_commit": f"vkllm-{__version__}",
        "gpu_info": report.info.name,
        "driver": driver(report),
        "devices": setup.devices,
        "model_filename": str(llm.path),
        "model_type": model_type(llm),
        "model_size": llm.n_bytes,
        "model_n_params": llm.n_params,
        "type_k": setup.type_k,
        "type_v": setup.type_v,
        "n_gpu_layers": n_gpu_layers(llm, setup),
        "read_gb_per_s": report.read_bytes_per_s / 1e9,
        "product_tflop_per_s": times.product_flops_per_s / 1e12,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "n_rows": times.n_rows,
        "n_depth": times.n_depth,
    }


def rows(results: Iterable[StepResult]) -> Iterator[Measured]:
    """A row for each kernel of each step, then one of their sum and one of the whole step."""
    for result in results:
        times, device = result.times, device_line(result.report)
        for kernel in times.kernels:
            yield Measured(result.fields | _kernel_fields(kernel, result), device)
        n_dispatches = sum(kernel.n_dispatches for kernel in times.kernels)
        for name, seconds in (("sum of kernels", times.sum_s), ("whole step", times.step_s)):
            fields = {
                **{"kernel": name, "weight_format": "", "shape": "", "n_tokens": times.n_rows},
                **{"n_dispatches": n_dispatches, "dispatch_us": None, "step_us": 1e6 * seconds},
                **{"read_bytes": times.read_bytes, "n_flops": times.n_flops},
            }
            rates = _rates(times.read_bytes, times.n_flops, seconds, times.n_rows, result)
            yield Measured(result.fields | fields | rates, device)


def _kernel_fields(kernel: KernelTime, result: StepResult) -> dict[str, Any]:
    work = kernel.work
    return {
        "kernel": work.kernel,
        "weight_format": work.weight_format,
        "shape": work.shape,
        "n_tokens": work.n_tokens,
        "n_dispatches": kernel.n_dispatches,
        "dispatch_us": 1e6 * kernel.dispatch_s,
        "step_us": 1e6 * kernel.n_dispatches * kernel.dispatch_s if kernel.n_dispatches else None,
        "read_bytes": work.read_bytes,
        "n_flops": work.n_flops,
        **_rates(work.read_bytes, work.n_flops, kernel.dispatch_s, work.n_tokens, result),
    }


def _rates(n_bytes: int, n_flops: int, seconds: float, n_tokens: int, result: StepResult) -> dict[str, float | None]:
    """Rates and their shares of what the device can do; of one token those of arithmetic say nothing."""
    reads = n_bytes > 0 and seconds > 0
    computes = n_flops > 0 and n_tokens > 1 and seconds > 0
    return {
        "gb_per_s": n_bytes / seconds / 1e9 if reads else None,
        "bandwidth_share": n_bytes / seconds / result.report.read_bytes_per_s if reads else None,
        "tflop_per_s": n_flops / seconds / 1e12 if computes else None,
        "product_share": n_flops / seconds / result.times.product_flops_per_s if computes else None,
    }


# Title, field, width, factor; the first three are text.
_COLUMNS = (
    ("kernel", "kernel", 15, 1),
    ("format", "weight_format", 6, 1),
    ("shape", "shape", 27, 1),
    ("tokens", "n_tokens", 6, 1),
    ("a step", "n_dispatches", 6, 1),
    ("us", "dispatch_us", 9, 1),
    ("us a step", "step_us", 10, 1),
    ("GB/s", "gb_per_s", 7, 1),
    ("% of reading", "bandwidth_share", 12, 100),
    ("TFLOP/s", "tflop_per_s", 8, 1),
    ("% of product", "product_share", 12, 100),
)
_N_TEXTS = 3


def tables(results: Iterable[StepResult]) -> Iterator[str]:
    """A table for each step, then a line for each device with what the shares are of."""
    devices: dict[str, None] = {}
    for result in results:
        fields = result.fields
        step = "decode" if fields["n_rows"] == 1 else f"prompt of {fields['n_rows']}"
        cache = f"cache {fields['type_k']}/{fields['type_v']}"
        yield f"{fields['model_type']}, {step} @ d{fields['n_depth']}, {cache}, {fields['gpu_info']}"
        yield ""
        yield _line([title for title, _, _, _ in _COLUMNS])
        yield "|" + "|".join(f" {'-' * (c[2] - 1)}{'-:'[i >= _N_TEXTS]} " for i, c in enumerate(_COLUMNS)) + "|"
        for row, _ in rows([result]):
            yield _line([_cell(row[field], factor) for _, field, _, factor in _COLUMNS])
        yield ""
        devices[f"{device_line(result.report)} | products {fields['product_tflop_per_s']:.3g} TFLOP/s"] = None
    yield from (f"device: {device}" for device in devices)


def _line(cells: Sequence[str]) -> str:
    padded = []
    for i, (cell, (_, _, width, _)) in enumerate(zip(cells, _COLUMNS, strict=True)):
        padded.append(cell.rjust(width) if i >= _N_TEXTS else cell.ljust(width))
    return "| " + " | ".join(padded) + " |"


def _cell(value: str | float | None, factor: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    value *= factor
    n_decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0  # three digits that count
    return f"{value:.{min(max(n_decimals, 0), 6)}f}"
