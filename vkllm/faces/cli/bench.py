"""`vkllm bench`: the speed of models, with llama-bench's tests and fields.

It chooses prompts and repeats runs; `LLM.benchmark_generate` takes the times, in which there is neither tokenizing nor
sampling on the CPU. `faces/cli/bench_options.py` reads what is to be measured, `faces/cli/bench_output.py` prints.
"""

from __future__ import annotations

import itertools
import platform
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vkllm import LLM, DeviceReport, InvalidParameter, __version__
from vkllm.api.planning import ModelToPlan
from vkllm.faces.cli.loading import placed
from vkllm.faces.terminal import loading_bar
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.model.memory.plan import decode_bytes
from vkllm.store import FoundModel, look_up


@dataclass(frozen=True)
class Case:
    """One test: n_prompt tokens at once, then n_gen one by one, with n_depth tokens in the cache before them."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def n_ctx(self) -> int:
        """Context that it needs."""
        return self.n_depth + self.n_prompt + self.n_gen + 1


@dataclass(frozen=True)
class Split:
    """How a model is spread over devices, as arguments of `LLM`."""

    split_mode: str | None = None
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int = 0
    num_shards: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where tensors lie. overrides: what -ot says, one expression each. Raises InvalidParameter."""

    n_cpu_moe: int = 0
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self.override_tensor

    @property
    def override_tensor(self) -> str | None:
        """The argument of `LLM`."""
        return placed(self.overrides, self.n_cpu_moe)


@dataclass(frozen=True)
class Setup:
    """One way to load a model. device: one or several; None is the best one. n_gpu_layers: None is all."""

    model: str | FoundModel
    device: str | tuple[str, ...] | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int | None = None
    placement: Placement = Placement()
    n_parallel: int | None = None
    spec: str = "off"
    split: Split = Split()

    @property
    def devices(self) -> str:
        """The devices as llama-bench writes them."""
        return self.device if isinstance(self.device, str) else "/".join(self.device or ("auto",))

    def checked_model(self, n_ctx: int | None) -> FoundModel:
        """Its model, with the file's header if that is here. Raises what loading would raise for the file and a context
        of n_ctx tokens."""
        model = look_up(self.model)
        if model.path is None:
            return model
        found = ModelToPlan.open(model.path, None)
        if n_ctx is not None and n_ctx > found.spec.n_ctx_train:
            raise InvalidParameter(
                f"these tests need a context of {n_ctx} tokens, but {model.path.name} was trained for "
                f"{found.spec.n_ctx_train}; choose shorter ones with -p, -n and -d"
            )
        found.read_text()
        return replace(model, file=found.file)

    def load(self, n_ctx: int | None) -> LLM:
        """The model, with a progress bar. Raises any VkllmError."""
        with loading_bar() as on_progress:
            return LLM(self.model, n_ctx=n_ctx, on_progress=on_progress, **self.placing)

    @property
    def placing(self) -> dict[str, Any]:
        """Options of LLM that say where the model lies."""
        return {
            "device": self.device,
            "type_k": self.type_k,
            "type_v": self.type_v,
            "n_gpu_layers": self.n_gpu_layers,
            "override_tensor": self.placement.override_tensor,
            "n_parallel": self.n_parallel,
            "spec": self.spec,
            "split_mode": self.split.split_mode,
            "tensor_split": self.split.tensor_split,
            "main_gpu": self.split.main_gpu,
            "num_shards": self.split.num_shards,
        }


@dataclass(frozen=True)
class BenchOptions:
    """What was asked for, in the order in which it runs."""

    setups: Sequence[Setup]
    cases: Sequence[Case]
    n_repetitions: int
    warms_up: bool


class Measured(NamedTuple):
    """fields: llama-bench's, and ours; device: a line for people."""

    fields: dict[str, Any]
    device: str


def each_loaded(setups: Sequence[Setup], n_ctx: int | None) -> Iterator[tuple[Setup, LLM]]:
    """The setups with their models, of which one is open at a time.

    The files of all are checked and the first is loaded now, not when the first is asked for: an error comes before any
    output. Raises any VkllmError.
    """
    models: dict[str | FoundModel, FoundModel] = {}
    for setup in setups:
        if setup.model not in models:
            models[setup.model] = setup.checked_model(n_ctx)
    setups = [replace(setup, model=models[setup.model]) for setup in setups]
    first = setups[0].load(n_ctx)

    def loaded() -> Iterator[tuple[Setup, LLM]]:
        for number, setup in enumerate(setups):
            with first if number == 0 else setup.load(n_ctx) as llm:
                yield setup, llm

    return loaded()


def measure(options: BenchOptions) -> Iterator[Measured]:
    """Loads the first model, then runs all tests as they are asked for. Raises any VkllmError."""
    loaded = each_loaded(options.setups, max(case.n_ctx for case in options.cases))

    def results() -> Iterator[Measured]:
        for setup, llm in loaded:
            report = llm.measure_device()
            runs = _Runs(llm)
            for case in options.cases:
                test_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                if options.warms_up:
                    runs.time_ns(case)
                before = llm.stats()
                samples_ns = [runs.time_ns(case) for _ in range(options.n_repetitions)]
                after = llm.stats()
                drafts = after.n_drafted - before.n_drafted, after.n_accepted - before.n_accepted
                fields = _fields(llm, report, setup, case, test_time, samples_ns, drafts)
                yield Measured(fields, device_line(report))

    return results()


class _Runs:
    """Runs of one model. All prompts have the same random beginning, which stays cached, and then differ."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = random.Random(0)
        self._depth_token_ids = self._tokens(llm.n_ctx)
        self._numbers = itertools.count(llm.tokenizer.n_vocab // 2)  # special tokens are mostly the first and last

    def time_ns(self, case: Case) -> int:
        """Nanoseconds of one run of a test, without those of filling the cache to its depth."""
        # The first new token is another one than in the last run, so that nothing behind the depth is cached. Its step
        # is the first of n_gen; after a prompt it is a step more.
        n_new = max(case.n_prompt, 1)
        n_generated = case.n_gen + 1 if case.n_prompt else case.n_gen
        for _ in range(3):  # the first run at a depth fills the cache, and cannot count
            new = [next(self._numbers) % self._llm.tokenizer.n_vocab, *self._tokens(n_new - 1)]
            stats = self._llm.benchmark_generate(self._depth_token_ids[: case.n_depth] + new, n_generated)
            if stats.n_cached == case.n_depth:
                return max(round(1e9 * (stats.prompt_s + (stats.generate_s if case.n_gen else 0.0))), 1)
        raise AssertionError("prompts with the same beginning do not find it in the cache")

    def _tokens(self, n: int) -> list[int]:
        return [self._random.randrange(self._llm.tokenizer.n_vocab) for _ in range(n)]


def _fields(
    llm: LLM,
    report: DeviceReport,
    setup: Setup,
    case: Case,
    test_time: str,
    samples_ns: Sequence[int],
    drafts: tuple[int, int],
) -> dict[str, Any]:
    """llama-bench's JSON fields in its order, then ours; what does not apply here has its default value there."""
    samples_ts = [1e9 * (case.n_prompt + case.n_gen) / sample for sample in samples_ns]
    avg_ts = statistics.fmean(samples_ts)
    bytes_per_s = None
    if not case.n_prompt:
        n_past = case.n_depth + (case.n_gen + 1) / 2
        bytes_per_s = avg_ts * decode_bytes(llm.spec, llm.tensors, n_past, setup.type_k, setup.type_v)
    return {
        "build_commit": f"vkllm-{__version__}",
        "build_number": 0,
        "cpu_info": _cpu_name(),
        "gpu_info": report.info.name,
        "backends": "Vulkan",
        "model_filename": str(llm.path),
        "model_type": model_type(llm),
        "model_size": llm.n_bytes,
        "model_n_params": llm.n_params,
        "n_batch": MAX_ROWS,
        "n_ubatch": MAX_ROWS,
        "n_threads": 1,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 0,
        "type_k": setup.type_k,
        "type_v": setup.type_v,
        "n_gpu_layers": n_gpu_layers(llm, setup),
        "n_cpu_moe": setup.placement.n_cpu_moe,
        "split_mode": setup.split.split_mode or "none",
        "main_gpu": report.info.index,
        "no_kv_offload": False,
        "flash_attn": 1,
        "devices": setup.devices,
        "tensor_split": "/".join(f"{share:.2f}" for share in setup.split.tensor_split or (0.0,)),
        "tensor_buft_overrides": ";".join(setup.placement.overrides) or "none",
        "load_mode": "mmap",
        "lazy_mode": "none",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": False,
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": case.n_prompt,
        "n_gen": case.n_gen,
        "n_depth": case.n_depth,
        "test_time": test_time,
        "avg_ns": round(statistics.fmean(samples_ns)),
        "stddev_ns": round(_deviation(samples_ns)),
        "avg_ts": avg_ts,
        "stddev_ts": _deviation(samples_ts),
        "samples_ns": list(samples_ns),
        "samples_ts": samples_ts,
        "gb_per_s": None if bytes_per_s is None else bytes_per_s / 1e9,
        "bandwidth_share": None if bytes_per_s is None else bytes_per_s / report.read_bytes_per_s,
        "driver": driver(report),
        "spec": setup.spec,
        "n_drafted": drafts[0],
        "n_accepted": drafts[1],
    }


def model_type(llm: LLM) -> str:
    """Such as "llama 135M Q4_1"."""
    return f"{llm.spec.architecture} {_size_label(llm.n_params)} {llm.quantization}"


def n_gpu_layers(llm: LLM, setup: Setup) -> int:
    """Layers that may lie in the GPU's own memory, and the vocabulary projection, as llama.cpp counts."""
    most = llm.spec.n_layers + 1
    return most if setup.n_gpu_layers is None else min(setup.n_gpu_layers, most)


def driver(report: DeviceReport) -> str:
    """Its name and version."""
    return f"{report.info.driver_name} {report.info.driver_version}"


def _deviation(samples: Sequence[float]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def _size_label(n_params: int) -> str:
    """As in the names of models: 135M, 6.7B, 70B."""
    amount, unit = (n_params / 1e9, "B") if n_params >= 1e9 else (n_params / 1e6, "M")
    return f"{amount:.1f}{unit}" if amount < 10 else f"{amount:.0f}{unit}"


def device_line(report: DeviceReport) -> str:
    """A line for people: device, driver, features, how fast it reads memory."""
    info = report.info
    api = ".".join(map(str, info.api_version))
    return (
        f"{info.name} | {driver(report)} | Vulkan {api} | subgroup {info.subgroup_size} "
        f"| {', '.join(sorted(info.features))} | reads {report.read_bytes_per_s / 1e9:.1f} GB/s"
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
