"""Writes docs/machines.md: which models run on which machines, where their parts lie, and how fast they would be.

Machines are described as their drivers report them; nothing is measured or allocated here.
`python scripts/machines.py` writes the page; tests/model/test_machines.py compares it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.model.architectures.llama import llama_spec
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import (
    CHAINED_LAYER_S,
    CPU_CORE_BYTES_PER_S,
    EXPERTS_LAYERS,
    LAYER_S,
    NOMINAL_SHARE,
    PCIE_BYTES_PER_S,
    DeviceKind,
    DeviceLimits,
    HeapLimits,
    Speeds,
    limits_of_heaps,
)
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan
from vkllm.model.spec import Experts, HeadNorm, LayerSpec, ModelSpec, Rope

PAGE = Path(__file__).parents[1] / "docs" / "machines.md"
GIB = 2**30
N_CTX = 4096


@dataclass(frozen=True)
class Machine:
    """A device as its driver reports it. host_bytes: system memory that is free. source: of its heaps and speeds."""

    name: str
    kind: DeviceKind
    heaps: tuple[HeapLimits, ...]
    max_binding_bytes: int
    max_allocation_bytes: int
    host_bytes: int
    speeds: Speeds
    source: str

    @property
    def limits(self) -> DeviceLimits:
        return limits_of_heaps(
            self.kind,
            self.heaps,
            max_binding_bytes=self.max_binding_bytes,
            max_allocation_bytes=self.max_allocation_bytes,
            host_bytes=self.host_bytes,
            speeds=self.speeds,
        )


def _local(gib: float, budget_gib: float | None = None) -> HeapLimits:
    return HeapLimits(int(gib * GIB), None if budget_gib is None else int(budget_gib * GIB), True)


def _system(gib: float) -> HeapLimits:
    return HeapLimits(int(gib * GIB), None, False)


def _radeon_apu(name: str, system_gib: float, carve_out_gib: float, gb_per_s: float, source: str) -> Machine:
    """An APU under RADV: half of the system's memory and the carve-out, split into a third and two thirds."""
    total = system_gib / 2 + carve_out_gib
    return Machine(
        name=name,
        kind="unified",
        heaps=(_system(total / 3), _local(total * 2 / 3)),
        max_binding_bytes=2**32 - 1,
        max_allocation_bytes=2**32 - 4,
        host_bytes=int((system_gib - 3) * GIB),
        speeds=nominal(gb_per_s),
        source=source,
    )


def nominal(gb_per_s: float, host_bytes_per_s: float = PCIE_BYTES_PER_S) -> Speeds:
    """Speeds of a device whose nominal bandwidth is known."""
    return Speeds(local_bytes_per_s=gb_per_s * 1e9 * NOMINAL_SHARE, host_bytes_per_s=host_bytes_per_s)


MACHINES = (
    _radeon_apu("Steam Deck 16 GB, 1 GiB carve-out", 14.5, 1, 88, "88 GB/s nominal; stock limit of half the memory"),
    _radeon_apu("Steam Deck 16 GB, 4 GiB carve-out", 11.5, 4, 88, "88 GB/s nominal; stock limit of half the memory"),
    _radeon_apu("Radeon 780M, 32 GB, 1 GiB carve-out", 30.5, 1, 89.6, "89.6 GB/s nominal (DDR5-5600); the same limit"),
    Machine(
        name="RX 7900 XTX 24 GB, 64 GB host",
        kind="discrete",
        heaps=(_local(23.98, 23.5), _system(31.2)),
        max_binding_bytes=2**32 - 1,
        max_allocation_bytes=2**32 - 4,
        host_bytes=56 * GIB,
        speeds=nominal(960),
        source="960 GB/s nominal; RADV, resizable BAR",
    ),
    Machine(
        name="RTX 3060 12 GB without resizable BAR, 32 GB host",
        kind="discrete",
        heaps=(_local(12, 11.6), _system(23.4), _local(0.24)),
        max_binding_bytes=2**32 - 1,
        max_allocation_bytes=0xFFE00000,
        host_bytes=26 * GIB,
        speeds=replace(nominal(360), layer_s=CHAINED_LAYER_S),
        source="360 GB/s nominal; NVIDIA's driver, 246 MiB visible",
    ),
    Machine(
        name="RX 6800 XT 16 GB with AMDVLK, 32 GB host",
        kind="discrete",
        heaps=(_local(15.98), _system(15.6)),
        max_binding_bytes=2**31,
        max_allocation_bytes=2**31,
        host_bytes=26 * GIB,
        speeds=nominal(512),
        source="512 GB/s nominal; buffers and allocations of at most 2 GiB",
    ),
    Machine(
        name="H100 80 GB",
        kind="discrete",
        heaps=(_local(79.6, 79.0), _system(94)),
        max_binding_bytes=2**32 - 1,
        max_allocation_bytes=0xFFE00000,
        host_bytes=120 * GIB,
        speeds=Speeds(3050e9, 43.8e9, CHAINED_LAYER_S, is_measured=True),
        source="3,050 GB/s and 43.8 GB/s, both measured",
    ),
    Machine(
        name="lavapipe, 2 cores",
        kind="cpu",
        heaps=(_local(2),),
        max_binding_bytes=2**27,
        max_allocation_bytes=2**31,
        host_bytes=20 * GIB,
        speeds=Speeds(local_bytes_per_s=2 * CPU_CORE_BYTES_PER_S),
        source="one heap of 2 GiB, bindings of 128 MiB; bound by arithmetic",
    ),
)


def llama(n_layers: int, d_model: int, d_ff: int, n_heads: int, n_kv_heads: int, n_ctx_train: int) -> ModelSpec:
    """A published Llama shape with 32,000 tokens."""
    return llama_spec(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=d_model // n_heads,
        d_model=d_model,
        d_ff=d_ff,
        n_vocab=32000,
        n_ctx_train=n_ctx_train,
    )


def qwen3_30b_a3b() -> ModelSpec:
    """Qwen3-30B-A3B: a token takes 8 of 128 experts in each layer."""
    layer = LayerSpec(
        n_heads=32,
        n_kv_heads=4,
        head_dim=128,
        d_ff=0,
        rope=Rope(1e6, 128),
        attention_scale=128**-0.5,
        head_norm=HeadNorm(),
        experts=Experts(n_experts=128, n_used=8, d_ff=768, is_normalized=True),
    )
    return _mixture("qwen3moe", (layer,) * 48, 2048, 151_936, 40_960)


def gpt_oss_20b() -> ModelSpec:
    """gpt-oss-20b: a token takes 4 of 32 experts in each layer; every second layer has a window of 128 tokens."""
    names = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    experts = Experts(32, 4, 2880, gating="softmax_of_chosen", function="swiglu_oai", biases=names)
    layer = LayerSpec(
        n_heads=64,
        n_kv_heads=8,
        head_dim=64,
        d_ff=0,
        rope=Rope(150_000.0, 64),
        attention_scale=64**-0.5,
        biases=("attn_q", "attn_k", "attn_v", "attn_output"),
        has_sinks=True,
        experts=experts,
    )
    return _mixture("gpt-oss", (replace(layer, window=128), layer) * 12, 2880, 201_088, 131_072)


def _mixture(
    architecture: str, layers: tuple[LayerSpec, ...], d_model: int, n_vocab: int, n_ctx_train: int
) -> ModelSpec:
    return ModelSpec(
        architecture=architecture,
        layers=layers,
        d_model=d_model,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        norm_eps=1e-6,
        output_weight="output.weight",
    )


MODELS = {
    "Llama-2 7B": llama(32, 4096, 11008, 32, 32, 4096),
    "Llama-2 13B": llama(40, 5120, 13824, 40, 40, 4096),
    "CodeLlama 34B": llama(48, 8192, 22016, 64, 8, 16384),
    "Llama-2 70B": llama(80, 8192, 28672, 64, 8, 4096),
    "Qwen3-30B-A3B": qwen3_30b_a3b(),
    "gpt-oss-20b": gpt_oss_20b(),
}

FORMATS = {"llama": ("Q4_0", "Q4_0"), "qwen3moe": ("Q4_K", "Q4_K"), "gpt-oss": ("Q8_0", "MXFP4")}
"""Formats of matrices and of experts, by architecture; a router is in F32."""

PUBLISHED = (
    ("RX 7900 XTX", 960, 182.6),
    ("RX 7900 XT", 800, 123.2),
    ("RX 7800 XT", 624, 118.3),
    ("RX 6900 XT", 512, 108.0),
    ("RX 6800 XT", 512, 100.3),
    ("RX 6700 XT", 384, 83.9),
    ("RX 7600", 288, 58.0),
    ("Ryzen AI Max+ 395", 256, 53.6),
)
"""llama.cpp's Vulkan backend on RADV, tg128 of Llama-2 7B Q4_0 (its discussion 10879): name, GB/s, tok/s."""


PUBLISHED_MIXTURES = (("Qwen3-30B-A3B", 152), ("gpt-oss-20b", 163))
"""Decode of llama.cpp's Vulkan backend on an RX 7900 XT (RADV of Mesa 25.0.7; llmfit's pull request 808)."""


def tensors(spec: ModelSpec, matrix_format: str | None = None) -> dict[str, TensorInfo]:
    """The tensor table of a file in which all matrices have one format, by default the architecture's of FORMATS."""
    matrices, experts = FORMATS[spec.architecture] if matrix_format is None else (matrix_format, matrix_format)

    def format_of(name: str, n_dimensions: int) -> str:
        if n_dimensions < 2 or not name.endswith(".weight") or "gate_inp" in name:
            return "F32"
        return experts if n_dimensions == 3 else matrices

    return {
        name: TensorInfo(name, shape, format_of(name, len(shape)), 0, 0)
        for name, shape in expected_shapes(spec).items()
    }


def planned(machine: Machine, spec: ModelSpec, n_ctx: int = N_CTX) -> MemoryPlan | OutOfDeviceMemory:
    """The plan of a model, or why there is none. n_ctx 0: the longest context that costs no speed."""
    try:
        return plan(spec, tensors(spec), machine.limits, n_ctx, MAX_ROWS, HEAD_ROWS, PlanOptions())
    except OutOfDeviceMemory as error:
        return error


def page() -> str:
    """The whole page."""
    return "\n".join([*_introduction(), *_overview(), *_details(), *_assumptions()])


def _introduction() -> list[str]:
    return [
        "# Which machine runs what",
        "",
        "The plan of `vkllm/model/memory/plan.py` for well-known machines: Llama in Q4_0, Qwen3 in Q4_K, gpt-oss with",
        "experts in MXFP4 and all else in Q8_0; a context of 4,096 tokens in f16. Speeds are **expected, not",
        "measured**: tok/s at half the context, by the assumptions at the end.",
        "`vkllm plan MODEL` says the same for the machine at hand.",
        "",
        "Written by `python scripts/machines.py`; do not edit.",
        "",
    ]


def _overview() -> list[str]:
    lines = ["| machine | " + " | ".join(MODELS) + " |", "| --- |" + " ---: |" * len(MODELS)]
    for machine in MACHINES:
        cells = []
        for spec in MODELS.values():
            made, longest = planned(machine, spec), planned(machine, spec, 0)
            if isinstance(made, MemoryPlan):
                cells.append(f"{_speed(made)}{_where(made)}")
            elif isinstance(longest, MemoryPlan):
                cells.append(f"context {longest.n_ctx:,}: {_speed(longest)}{_where(longest)}")
            else:
                cells.append("no")
        lines.append(f"| {machine.name} | " + " | ".join(cells) + " |")
    return [*lines, "", "Shares in system memory are read over PCIe; all memory of an APU is equally fast.", ""]


def _where(made: MemoryPlan) -> str:
    """The share of the weights that lies behind a bus."""
    host = sum(tier.weights_bytes for tier in made.tiers if tier.tier == "host")
    return f", {100 * host / made.weights_bytes:.0f} % in system memory" if host else ""


def _speed(made: MemoryPlan) -> str:
    return f"{made.tokens_per_s:.1f} tok/s"


def _details() -> list[str]:
    lines = ["## Where the parts lie", ""]
    for machine in MACHINES:
        lines += [f"### {machine.name}", "", machine.source[0].upper() + machine.source[1:] + ".", ""]
        refused = []
        rows = []
        for name, spec in MODELS.items():
            made = planned(machine, spec)
            if isinstance(made, OutOfDeviceMemory):
                refused.append(f"- {name}: {made}.")
                made = planned(machine, spec, 0)
            if isinstance(made, MemoryPlan):
                rows += _rows(name, made)
        if rows:
            lines += [
                "| model | context | tok/s, empty | half full | memory | weights | cache | working memory | free |"
            ]
            lines += ["| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |", *rows, ""]
        lines += [*refused, ""] if refused else []
    return lines


def _rows(name: str, made: MemoryPlan) -> list[str]:
    rows = []
    for tier in made.tiers:
        sizes = (tier.weights_bytes, tier.cache_bytes, tier.arena_bytes, tier.free_bytes)
        speeds = (f"{1 / made.token_s(0):.1f}", f"{made.tokens_per_s:.1f}")
        first = (name, f"{made.n_ctx:,}", *speeds) if tier is made.tiers[0] else ("",) * 4
        rows.append(f"| {' | '.join((*first, tier.tier))} | " + " | ".join(f"{n / GIB:.2f}" for n in sizes) + " |")
    return rows


def _assumptions() -> list[str]:
    lines = [
        "Sizes are in GiB; free is what a plan may still use, without its margin.",
        "",
        "## Assumptions",
        "",
        "A token takes the time to read all weights (only one row of the embedding table) and the keys and values of",
        "half the context, each at the speed of the memory where it lies, plus",
        f"{1e6 * LAYER_S:.0f} us per layer in which dispatches start and drain, or {1e6 * CHAINED_LAYER_S:.0f} us on",
        "NVIDIA, where they overlap; both were fitted to speeds measured on an H100 and an H200 (docs/performance.md).",
        f"A layer with experts takes {1 + EXPERTS_LAYERS:.1f} times as long; of its experts, a token reads the chosen.",
        "",
        f"- A GPU reads its own memory at {100 * NOMINAL_SHARE:.0f} % of the nominal bandwidth, unless it was",
        f"  measured, and system memory over PCIe 4 x16 at {PCIE_BYTES_PER_S / 1e9:.0f} GB/s (H100: 43.8 GB/s,",
        "  measured).",
        "- On a Steam Deck, shaders compute while they wait for memory, so computing adds no time (docs/amd.md). MLC",
        "  published 13.2 tok/s for a 7B model there, less than expected here.",
        "- A plan leaves a 20th of each heap's budget free, at most 1 GiB. A card without resizable BAR has one more",
        "  heap of 256 MiB, through which the CPU sees its memory; it stays free.",
        "- Linux lets an AMD GPU use half of the system's memory in addition to its carve-out. The kernel parameter",
        "  `ttm.pages_limit` (in pages of 4 KiB) raises that, so that a 32 GB APU has room for CodeLlama 34B.",
        "",
        "On all but one of these Radeons, the assumptions predict within 10 % what llama.cpp's Vulkan backend reached",
        "(RADV, Llama-2 7B Q4_0, tg128; its discussion 10879). vkllm has not run on any of them; this is its target:",
        "",
        "| GPU | GB/s | published tok/s | expected tok/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, gb_per_s, published in PUBLISHED:
        lines.append(f"| {name} | {gb_per_s} | {published:.1f} | {expected_7b(gb_per_s):.1f} |")
    lines += [
        "",
        "The same for mixtures of experts on an RX 7900 XT (800 GB/s), published for llama.cpp's Vulkan backend:",
        "",
        "| model | published tok/s | expected tok/s |",
        "| --- | ---: | ---: |",
    ]
    for name, published in PUBLISHED_MIXTURES:
        lines.append(f"| {name} | {published:.0f} | {expected(name, 800):.0f} |")
    return [*lines, ""]


def expected_7b(gb_per_s: float) -> float:
    """Expected tok/s of Llama-2 7B Q4_0 at the mean depth of tg128, on a card with room."""
    return expected("Llama-2 7B", gb_per_s)


def expected(model: str, gb_per_s: float) -> float:
    """Expected tok/s of a model at the mean depth of tg128, on a card with room."""
    spec = MODELS[model]
    limits = DeviceLimits(80 * GIB, 2**32 - 1, speeds=nominal(gb_per_s))
    return 1 / plan(spec, tensors(spec), limits, N_CTX, MAX_ROWS, HEAD_ROWS).token_s(64)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python scripts/machines.py")
    PAGE.write_text(page(), encoding="utf-8")
