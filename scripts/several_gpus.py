"""Writes the expected speeds into docs/several_gpus.md: models on two to eight GPUs, by each way of splitting them.

GPUs are described as their drivers report them; nothing is measured or allocated here.
`python scripts/several_gpus.py` writes the section; tests/model/test_split_plan.py compares it.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from machines import GIB, MODELS, llama, nominal, tensors

from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.model.memory.limits import CHAINED_LAYER_S, LAYER_S, NOMINAL_SHARE, DeviceLimits, Speeds
from vkllm.model.memory.split_plan import MODES, Member, SplitMode, SplitPlans, plan_splits
from vkllm.model.memory.step_time import EXCHANGE_S, HANDOVER_S, HOST_MEMORY_BYTES_PER_S, ROW_WRITES, ExchangeSpeed
from vkllm.model.spec import ModelSpec

PAGE = Path(__file__).parents[1] / "docs" / "several_gpus.md"
BEGIN = "<!-- written by `python scripts/several_gpus.py`; do not edit -->"
END = "<!-- end of what the script writes -->"

N_CTX = 4096
DEPTH = 64
"""Tokens in the cache: the mean of llama-bench's tg128."""

X16, X8 = 25e9, 12.5e9
"""Bytes a second over PCIe 4 with 16 and with 8 lanes, which two cards on a desktop's board share."""

SERVER_BYTES_PER_S = 100e9
"""System memory of a server, which has more channels than a desktop."""

RUN_MODELS = ("Llama-2 7B", "CodeLlama 34B", "Llama-2 70B")


@dataclass(frozen=True)
class Rig:
    """GPUs of one machine, and how they exchange numbers."""

    name: str
    cards: tuple[Member, ...]
    speed: ExchangeSpeed
    source: str


@cache
def plans(rig: Rig, spec: ModelSpec, matrix_format: str | None = None) -> SplitPlans:
    """The plan of each way of splitting."""
    table = tensors(spec, matrix_format)
    return plan_splits(spec, table, rig.cards, N_CTX, MAX_ROWS, HEAD_ROWS, speed=rig.speed)


def card(name: str, gib: float, speeds: Speeds) -> Member:
    """A card with resizable BAR and 64 GiB of system memory beside it."""
    limits = DeviceLimits(int(gib * GIB), 2**32 - 1, spill_bytes=64 * GIB, speeds=speeds)
    return Member(name, limits, name)


def rig(n: int, one: Member, speed: ExchangeSpeed, source: str) -> Rig:
    """n equal cards."""
    return Rig(f"{n} x {one.name}", tuple(replace(one, card=f"{one.name} {i}") for i in range(n)), speed, source)


def _nvidia(gb_per_s: float) -> Speeds:
    return replace(nominal(gb_per_s), layer_s=CHAINED_LAYER_S)


XTX = card("RX 7900 XTX", 23.5, nominal(960))
XT_7800 = card("RX 7800 XT", 15.5, nominal(624))
W7900 = card("W7900", 47.0, nominal(864))
RTX_3090 = card("RTX 3090", 23.3, _nvidia(936))
RTX_4090 = card("RTX 4090", 23.3, _nvidia(1008))
A10G = card("A10G", 22.0, _nvidia(600))
H200 = card("H200", 139.0, Speeds(4424e9, 43.8e9, CHAINED_LAYER_S, is_measured=True))

DESKTOP = ExchangeSpeed(bytes_per_s=X8)
WORKSTATION = ExchangeSpeed(bytes_per_s=X16)
SERVER = ExchangeSpeed(bytes_per_s=X16, host_bytes_per_s=SERVER_BYTES_PER_S)

RIGS = (
    rig(2, XTX, DESKTOP, "960 GB/s each; PCIe 4 x8"),
    rig(2, W7900, WORKSTATION, "864 GB/s each; PCIe 4 x16"),
    rig(2, RTX_4090, DESKTOP, "1,008 GB/s each; PCIe 4 x8"),
    rig(2, RTX_3090, DESKTOP, "936 GB/s each; PCIe 4 x8"),
    rig(4, RTX_3090, WORKSTATION, "936 GB/s each; PCIe 4 x16"),
    rig(4, A10G, SERVER, "600 GB/s each; PCIe 4 x16"),
    rig(8, A10G, SERVER, "600 GB/s each; PCIe 4 x16"),
    rig(2, H200, replace(SERVER, bytes_per_s=43.8e9), "4,424 GB/s of reading and 43.8 GB/s over PCIe, measured"),
    Rig("RX 7900 XTX and RX 7800 XT", (XTX, XT_7800), DESKTOP, "960 and 624 GB/s; PCIe 4 x8"),
)


def llama_8b() -> ModelSpec:
    """Llama 3 8B."""
    return replace(llama(32, 4096, 14336, 32, 8, 8192), n_vocab=128256)


MEASURED = (
    ("H200", 4424, "7B Q4_0", MODELS["Llama-2 7B"], "Q4_0", 625.7),
    ("H200", 4424, "8B Q4_K", llama_8b(), "Q4_K", 532.6),
    ("H100", 3050, "7B Q4_0", MODELS["Llama-2 7B"], "Q4_0", 519.8),
    ("H100", 3050, "7B Q8_0", MODELS["Llama-2 7B"], "Q8_0", 336.4),
    ("H100", 3050, "8B Q4_K", llama_8b(), "Q4_K", 456.1),
    ("H100", 3050, "70B Q4_0", MODELS["Llama-2 70B"], "Q4_0", 68.0),
)
"""vkllm on one card: card, GB/s of reading, model, its shape and format, tok/s of docs/performance.md."""

PUBLISHED = (
    ("2 x RX 7900 XTX", "Llama-2 70B", "tensor", 29.9, "MLC-LLM, ROCm, 2023"),
    ("2 x RTX 4090", "Llama-2 70B", "tensor", 34.5, "MLC-LLM, CUDA, 2023"),
    ("2 x H200", "Llama-2 70B", "tensor", 18.4, "llama.cpp 0.5.0, Vulkan, 2026"),
    ("2 x H200", "Llama-2 70B", "layer", 52.1, "llama.cpp 0.5.0, Vulkan, 2026"),
)
"""Rig, model, way of splitting, tok/s that others published or that were measured of them, and whose."""


def expected_on_one(gb_per_s: float, spec: ModelSpec, matrix_format: str) -> float:
    """Expected tok/s of a model on one card of NVIDIA's that reads at that speed, measured."""
    one = card("", 140.0, Speeds(gb_per_s * 1e9, layer_s=CHAINED_LAYER_S))
    alone = plans(Rig("", (one,), WORKSTATION, ""), spec, matrix_format)
    return 1 / alone.plans["none"].token_s(DEPTH)


def expected(rig_name: str, model: str, mode: SplitMode) -> float:
    """Expected tok/s of a model on a rig."""
    (found,) = (made for made in RIGS if made.name == rig_name)
    return 1 / plans(found, MODELS[model]).plans[mode].token_s(DEPTH)


def section() -> str:
    """What the script writes, with its marks."""
    return "\n".join([BEGIN, "", *_speeds(), *_terms(), *_measured(), *_published(), *_assumptions(), END])


def page() -> str:
    """The whole page, with the section as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return before + section() + rest.partition(END)[2]


def _speeds() -> list[str]:
    lines = [
        "| GPUs | model, Q4_0 | one card | `layer` | `tensor` | taken by default |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for made in RIGS:
        for model in RUN_MODELS:
            found = plans(made, MODELS[model])
            cells = [_cell(found, mode) for mode in MODES]
            lines.append(f"| {made.name} | {model} | {' | '.join(cells)} | {found.chosen} |")
    return [
        *lines,
        "",
        "Tokens a second of one user with a short context; *in italics* where weights lie in system memory.",
        "",
    ]


def _cell(found: SplitPlans, mode: SplitMode) -> str:
    if mode not in found.plans:
        return "no"
    made = found.plans[mode]
    spills = any(tier.tier == "host" and tier.read_bytes for one in made.plans for tier in one.tiers)
    speed = f"{1 / made.token_s(DEPTH):.1f}"
    return f"*{speed}*" if spills else speed


def _terms() -> list[str]:
    lines = [
        "What the milliseconds of a token of Llama-2 70B are, split by tensors:",
        "",
        "| GPUs | reading | fixed, per layer | exchanges | sum | prompts, at most |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for made in RIGS:
        found = plans(made, MODELS["Llama-2 70B"]).plans["tensor"]
        slowest = max(found.plans, key=lambda one: one.token_s(DEPTH))
        fixed, between, whole = slowest.overhead_s, found.between_s, found.token_s(DEPTH)
        most = found.most_prompt_rows_per_s or 0
        times = " | ".join(f"{1e3 * s:.1f}" for s in (whole - fixed - between, fixed, between, whole))
        lines.append(f"| {made.name} | {times} | {most:,.0f} tok/s |")
    return [*lines, ""]


def _measured() -> list[str]:
    lines = [
        "The same arithmetic for one card, beside what vkllm measured (docs/performance.md):",
        "",
        "| card | model | measured tok/s | expected tok/s |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, gb_per_s, model, spec, matrix_format, tok_per_s in MEASURED:
        value = expected_on_one(gb_per_s, spec, matrix_format)
        lines.append(f"| {name}, {gb_per_s:,} GB/s | {model} | {tok_per_s:.1f} | {value:.1f} |")
    return [*lines, ""]


def _published() -> list[str]:
    lines = [
        "Beside it, what other programs made of Llama-2 70B at 4 bit:",
        "",
        "| GPUs | split by | tok/s | whose | expected of vkllm |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    for rig_name, model, mode, tok_per_s, whose in PUBLISHED:
        lines.append(f"| {rig_name} | {mode} | {tok_per_s} | {whose} | {expected(rig_name, model, mode):.1f} |")
    return [*lines, ""]


def _assumptions() -> list[str]:
    points = (
        f"**Reading.** A token reads each rank's part of the weights once, at {100 * NOMINAL_SHARE:.0f} % of the "
        "card's nominal bandwidth, or at what was measured. The embedding table is whole on every rank, and one row "
        "is read.",
        f"**Fixed time.** A layer takes {1e6 * LAYER_S:.0f} us besides reading, or {1e6 * CHAINED_LAYER_S:.0f} us with "
        "NVIDIA's driver, in which its dispatches start and drain. More cards do not shorten it: so eight cards are "
        "not eight times as fast.",
        "**Exchanges.** Two a layer, each of one row in float32. A card writes its own part to system memory, with "
        f"flags and a second copy {ROW_WRITES} times as many bytes, and reads the others' over its own PCIe link. "
        f"{1e6 * EXCHANGE_S:.1f} us pass until the others see it, as measured with flags alone between two H200s, and "
        "each exchange is one more dispatch. All cards together move at most "
        f"{HOST_MEMORY_BYTES_PER_S / 1e9:.0f} GB/s through a desktop's memory, {SERVER_BYTES_PER_S / 1e9:.0f} GB/s "
        "through a server's.",
        f"**Layers.** Cards run one after the other, and {1e3 * HANDOVER_S:.1f} ms pass from one to the next, as a "
        "submit and a wait took on an H100 in a virtual machine.",
        "**Prompts.** What exchanges alone let through, if they did not overlap with computing. Eight numbers are "
        "handed over in 16 bytes. Three cards or more add up a piece of the rows each and then hand over the sums, so "
        "that each reads less.",
    )
    return [
        "These figures assume:",
        "",
        *(textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ") for text in points),
        "",
        "| GPUs | bandwidth, link |",
        "| --- | --- |",
        *(f"| {made.name} | {made.source} |" for made in RIGS),
        "",
    ]


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python scripts/several_gpus.py")
    PAGE.write_text(page(), encoding="utf-8")
