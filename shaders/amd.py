"""Compiles the shipped SPIR-V with Mesa's own compiler for AMD GPUs, without any AMD GPU.

With RADV_FORCE_FAMILY, RADV makes a device of that family which compiles for the true instruction set and runs nothing.
A child process for each family asks that device what it can do, has a `Program` of each of a few models note the
dispatches that users get there, with kernels, variants and constants, and compiles them. Knows no report:
`amd_report.py` makes it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SHADERS = Path(__file__).parent
sys.path.insert(0, str(SHADERS.parent))

from amd_models import GROUPED_MODEL, LLAMA_3, MIXTURE, MODEL, OTHER_MODELS  # noqa: E402
from paper import FAST_DOT, PaperDevice, Use, paper_program  # noqa: E402

from vkllm.formats.quants import weight_format  # noqa: E402
from vkllm.gpu.device.kernel import KernelSpec  # noqa: E402
from vkllm.gpu.device.probe import DeviceInfo, devices  # noqa: E402
from vkllm.gpu.program.choices import tuning  # noqa: E402
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS  # noqa: E402
from vkllm.gpu.program.step import (  # noqa: E402
    LIKELIEST,
    LOGITS,
    WIDTHS,
    Draw,
    Part,
    Result,
)
from vkllm.model.spec import ModelSpec  # noqa: E402


@dataclass(frozen=True)
class Family:
    """GPUs that share an instruction set. n_cores: compute units of the largest of them, which no null device tells."""

    cards: str
    n_cores: int


FAMILIES = {
    "vangogh": Family("Steam Deck", 8),
    "rembrandt": Family("Radeon 680M", 12),
    "navi21": Family("RX 6800, 6900", 80),
    "gfx1100": Family("RX 7900", 96),
    "renoir": Family("Ryzen 4000 and 5000 with graphics", 8),
    "vega10": Family("RX Vega 56, 64", 64),
}

STEP_FAMILIES = {"gfx1103_r1": Family("Radeon 780M", 12)}
"""Families of which only the steps are compiled that the report counts."""

RDNA = ("vangogh", "rembrandt", "navi21", "gfx1100", "gfx1103_r1")
"""Families of RDNA 2 and 3, which have integer dot products; for the others, GCN, the driver writes them out."""

STEPS: dict[str, tuple[ModelSpec, str, int]] = {
    "7B": (MODEL, "Q4_0", 1),
    "30B-A3B": (MIXTURE, "Q4_K", 1),
    "8 rows": (LLAMA_3, "Q4_K", 8),
}
"""Steps that the report counts: a model, the format of its matrices, and rows."""

COMMON = ("F16", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Formats whose modules are compiled with all constants, of the others those of the largest; it takes a while."""


@dataclass(frozen=True)
class Compiled:
    """What the driver made of a module. statistics: as RADV names them; assembly: without encodings."""

    use: Use
    statistics: dict[str, int]
    assembly: str

    @property
    def n_dot4(self) -> int:
        """Integer dot product instructions."""
        return self.assembly.count("\tv_dot4")


@dataclass(frozen=True)
class FamilyResult:
    """A family's modules. steps: the dispatches of each of STEPS, in order.

    left_out: reason by module that this driver cannot compile.
    """

    family: str
    driver: str
    subgroup_size: int
    compiled: tuple[Compiled, ...]
    steps: dict[str, tuple[Use, ...]]
    left_out: dict[str, str]


def icd() -> Path | None:
    """RADV's manifest for the Vulkan loader, or None where it is not installed."""
    folders = (Path(root) / "vulkan" / "icd.d" for root in ("/etc", "/usr/local/share", "/usr/share"))
    return next((path for folder in folders for path in sorted(folder.glob("radeon_icd*64.json"))), None)


def compile_family(family: str) -> FamilyResult:
    """Compiles every module for a family in a child process, of STEP_FAMILIES those of its steps.

    Raises RuntimeError if the driver fails.
    """
    manifest = icd()
    assert manifest is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VK_")}
    environment |= {"RADV_FORCE_FAMILY": family, "RADV_DEBUG": "nocache", "VK_LOADER_LAYERS_DISABLE": "~implicit~"}
    environment |= {"VK_ICD_FILENAMES": str(manifest), "VK_DRIVER_FILES": str(manifest)}
    environment |= {"VKLLM_TUNING": "off"}  # the report is of what everybody gets
    child = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"RADV fails for {family} ({child.returncode}):\n{child.stderr[-2000:]}")
    made = json.loads(child.stdout)
    compiled = tuple(Compiled(_use(c["use"]), c["statistics"], c["assembly"]) for c in made["compiled"])
    steps = {name: tuple(map(_use, uses)) for name, uses in made["steps"].items()}
    return FamilyResult(family, made["driver"], made["subgroup_size"], compiled, steps, made["left_out"])


def violations(result: FamilyResult) -> list[str]:
    """What no shipped module may do on AMD: spill registers, or miss the integer dot products that it is made for."""
    found = []
    for made in result.compiled:
        name = f"{result.family}: {made.use.module}{made.use.constants}"
        for statistic in ("Spilled VGPRs", "Spilled SGPRs", "Scratch size"):
            if made.statistics[statistic]:
                found.append(f"{name}: {statistic} {made.statistics[statistic]}")
        if (made.n_dot4 > 0) != (result.family in RDNA and made.use.module in dot4_modules()):
            found.append(f"{name}: {made.n_dot4} integer dot products")
    return found


def modules(kernel: KernelSpec) -> dict[str, tuple[str, ...]]:
    """The modules of a kernel that AMD's drivers get, which promise full subgroups and chain nothing; their symbols."""
    left_out = {"PLAIN", "MEMORY_MODEL"}
    return {module: symbols for module, symbols in kernel.modules().items() if not left_out & {*symbols}}


def dot4_modules() -> set[str]:
    """The modules that use integer dot products."""
    return {
        module
        for kernel in KERNELS.values()
        if kernel.uses_dot4
        for module, symbols in modules(kernel).items()
        if weight_format(symbols[0]).is_quantized and "SOFT_DOT" not in symbols
    }


def step_uses(info: DeviceInfo, spec: ModelSpec, fmt: str, n_rows: int) -> tuple[Use, ...]:
    """The dispatches of a step that chooses the token behind each of its rows on the GPU."""
    device = PaperDevice(info)
    program = paper_program(device, spec, fmt)
    n_before = len(device.steps)
    program.submit([Part(0, [0] * n_rows, 0, [0], results=LIKELIEST * n_rows)])
    return tuple(use for submitted in device.steps[n_before:] for use in submitted)


def _steps(info: DeviceInfo, spec: ModelSpec, fmt: str, widths: Iterable[int] = WIDTHS) -> list[tuple[Use, ...]]:
    """What is submitted to load a model whose matrices have one format, and to run a step of every width."""
    device = PaperDevice(info)
    program = paper_program(device, spec, fmt)
    drawn = (Result(Draw(1, 0, 0, 0.0, 0)),)
    for width, results in itertools.product(widths, (LOGITS, drawn, LIKELIEST)):
        program.submit([Part(0, [0] * width, 0, [0], results=results)])
    return device.steps


def _uses(info: DeviceInfo) -> list[Use]:
    """Every different module and set of constants, by name; modules that no step has with their shaders' constants."""
    layer = replace(MODEL, layers=MODEL.layers[:1])
    dot, no_dot = replace(info, features=info.features | FAST_DOT), replace(info, features=info.features - FAST_DOT)
    cases: list[tuple[Any, ...]] = [(info, GROUPED_MODEL, "Q4_0")]
    cases += [(info, model, "Q4_0", WIDTHS[:2]) for model in OTHER_MODELS]
    cases += [(variant, layer, fmt) for fmt in WEIGHT_FORMATS for variant in (dot, no_dot)]
    found = {(use.module, use.constants): use for case in cases for step in _steps(*case) for use in step}
    largest = {module: constants for module, constants in sorted(found)}
    found = {key: use for key, use in found.items() if _is_common(use.module) or largest[use.module] == use.constants}
    stepless = [
        Use(kernel.name, module, (tuning(info).local_size,))
        for kernel in KERNELS.values()
        for module in modules(kernel)
        if module not in {module for module, _ in found} and not kernel.uses_matrices
    ]
    return sorted([*found.values(), *stepless], key=lambda use: (use.module, use.constants))


def _is_common(module: str) -> bool:
    """Whether a module is compiled with all constants. Those of the other formats differ in how they unpack only."""
    formats = {fmt.lower() for fmt in WEIGHT_FORMATS if fmt not in COMMON}
    return not any(f"_{fmt}" in module for fmt in formats)


# The child process


def _use(fields: dict[str, Any]) -> Use:
    return Use(
        fields["kernel"], fields["module"], tuple(fields["constants"]), tuple(fields["groups"]), tuple(fields["push"])
    )


def _child() -> None:
    """Writes a FamilyResult as JSON."""
    import vulkan as vk

    # Mesa 22.3 crashes when a null device of an APU is asked about its memory; it has none anyway
    vk.vkGetPhysicalDeviceMemoryProperties2 = lambda gpu, properties: None
    (info,) = devices()
    family = os.environ["RADV_FORCE_FAMILY"]
    info = replace(info, n_cores=(FAMILIES | STEP_FAMILIES)[family].n_cores)
    steps = {name: step_uses(info, *step) for name, step in STEPS.items()}
    found = {(use.module, use.constants): use for step in steps.values() for use in step}
    wanted = set()
    if family in FAMILIES:
        found |= {(use.module, use.constants): use for use in _uses(info)}
        wanted = {m for kernel in KERNELS.values() for m in modules(kernel)}
    uses = [found[key] for key in sorted(found)]
    compiler = _Compiler(vk)
    missing = sorted(wanted - {use.module for use in uses})
    reason = f"{info.driver_version} has no VK_KHR_cooperative_matrix for this family"
    json.dump(
        {
            "driver": info.driver_version,
            "subgroup_size": info.subgroup_size,
            "compiled": [asdict(compiler.compile(use)) for use in uses],
            "steps": {name: [asdict(use) for use in step] for name, step in steps.items()},
            "left_out": {module: reason for module in missing},
        },
        sys.stdout,
    )


class _Compiler:
    """A device that keeps statistics and assembly of its pipelines (VK_KHR_pipeline_executable_properties)."""

    def __init__(self, vk: Any) -> None:
        self._vk = vk
        application = vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 3, 0))
        self._instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        (gpu,) = vk.vkEnumeratePhysicalDevices(self._instance)
        extensions = {extension.extensionName for extension in vk.vkEnumerateDeviceExtensionProperties(gpu, None)}
        wanted = ["VK_KHR_pipeline_executable_properties"]
        wanted += ["VK_KHR_cooperative_matrix"] * ("VK_KHR_cooperative_matrix" in extensions)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, queueCount=1, pQueuePriorities=[1.0])
        features = vk.VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR(pipelineExecutableInfo=1)
        self._device = vk.vkCreateDevice(
            gpu,
            vk.VkDeviceCreateInfo(
                pNext=features,
                queueCreateInfoCount=1,
                pQueueCreateInfos=[queue],
                enabledExtensionCount=len(wanted),
                ppEnabledExtensionNames=wanted,
            ),
            None,
        )

    def compile(self, use: Use) -> Compiled:
        """Compiles a module; its pipeline is kept, which is harmless in a process that ends soon."""
        vk = self._vk
        info = vk.VkPipelineExecutableInfoKHR(pipeline=self._pipeline(use), executableIndex=0)
        ask = vk.vkGetDeviceProcAddr(self._device, "vkGetPipelineExecutableStatisticsKHR")
        statistics = {entry.name: int(entry.value.u64) for entry in ask(self._device, info)}
        return Compiled(use, statistics, re.sub(r" *;.*", "", self._assembly(info)))

    def _pipeline(self, use: Use) -> Any:
        vk, device = self._vk, self._device
        code = (SHADERS / "spv" / f"{use.module}.spv").read_bytes()
        shader = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
        bindings = [
            vk.VkDescriptorSetLayoutBinding(
                binding=binding,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                descriptorCount=1,
                stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for binding in range(len(KERNELS[use.kernel].bindings))
        ]
        set_layout = vk.vkCreateDescriptorSetLayout(
            device, vk.VkDescriptorSetLayoutCreateInfo(bindingCount=len(bindings), pBindings=bindings), None
        )
        push = vk.VkPushConstantRange(stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT, offset=0, size=128)
        layout = vk.vkCreatePipelineLayout(
            device,
            vk.VkPipelineLayoutCreateInfo(
                setLayoutCount=1, pSetLayouts=[set_layout], pushConstantRangeCount=1, pPushConstantRanges=[push]
            ),
            None,
        )
        values = np.array(use.constants, np.uint32)
        entries = [vk.VkSpecializationMapEntry(constantID=i, offset=4 * i, size=4) for i in range(len(values))]
        constants = vk.VkSpecializationInfo(
            mapEntryCount=len(entries), pMapEntries=entries, dataSize=values.nbytes, pData=vk.ffi.from_buffer(values)
        )
        stage = vk.VkPipelineShaderStageCreateInfo(
            stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=shader, pName="main", pSpecializationInfo=constants
        )
        keeps_all = (
            vk.VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR
            | vk.VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR
        )
        create = vk.VkComputePipelineCreateInfo(flags=keeps_all, stage=stage, layout=layout, basePipelineIndex=-1)
        return vk.vkCreateComputePipelines(device, None, 1, [create], None)[0]

    def _assembly(self, info: Any) -> str:
        # the package's own wrapper of this function cannot return the text
        vk, name = self._vk, "vkGetPipelineExecutableInternalRepresentationsKHR"
        ask = vk.ffi.cast(f"PFN_{name}", vk.lib.vkGetDeviceProcAddr(self._device, name.encode()))
        n_texts, info = vk.ffi.new("uint32_t*"), vk.ffi.addressof(info)
        ask(self._device, info, n_texts, vk.ffi.NULL)
        texts = vk.ffi.new("VkPipelineExecutableInternalRepresentationKHR[]", n_texts[0])
        ask(self._device, info, n_texts, texts)
        data = [vk.ffi.new("char[]", text.dataSize) for text in texts]
        for text, characters in zip(texts, data, strict=True):
            text.pData = characters
        ask(self._device, info, n_texts, texts)
        (assembly,) = (text.pData for text in texts if vk.ffi.string(text.name) == b"Assembly")
        return str(vk.ffi.string(vk.ffi.cast("char*", assembly)).decode())


if __name__ == "__main__":
    _child()
