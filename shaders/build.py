"""Compiles the shaders to SPIR-V, or checks that what is committed belongs to the sources.

    python shaders/build.py            compiles what changed (needs glslc 2024 or newer: GLSLC=/path/to/glslc)
    python shaders/build.py --check    compares headers, sources and SPIR-V with the manifest; needs no compiler
    python shaders/build.py --amd-report    writes docs/amd.md: what RADV makes of every module (needs RADV, no GPU)

The compiled modules are committed, so that neither users nor CI need a compiler. `spv/manifest.json` holds
for each module a hash of all its sources and a hash of the SPIR-V.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

SHADERS = Path(__file__).parent
sys.path.insert(0, str(SHADERS.parent))

from vkllm.gpu.device.kernel import QUANTIZED_FORMATS, KernelSpec  # noqa: E402
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS  # noqa: E402

OPTIONS = ("--target-env=vulkan1.1", "-O")
MANIFEST = SHADERS / "spv" / "manifest.json"


def sources(path: Path, weight_format: str | None = None) -> list[Path]:
    """A shader and everything that it includes, in order of first use; of the formats' files, only that of the format.

    Without a format, of all of them.
    """
    found = [path]
    for include in re.findall(r'^#include "(.+)"', path.read_text(), re.M):
        # glslc looks beside the including file; paths with a folder start at shaders/
        target = (SHADERS if "/" in include else path.parent) / include
        is_other = path.name == "format.glsl" and weight_format is not None and target.stem != weight_format.lower()
        if not is_other:
            found += [source for source in sources(target, weight_format) if source not in found]
    return found


def source_hash(kernel: KernelSpec, symbols: tuple[str, ...]) -> str:
    """Hash of all that decides a module: options, symbols, sources."""
    digest = hashlib.sha256(repr((OPTIONS, symbols)).encode())
    for path in sources(SHADERS / f"{kernel.name}.comp", symbols[0] if kernel.formats else None):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def header_errors(kernel: KernelSpec) -> list[str]:
    """Where a shader's header comment and its registry entry disagree."""
    text = (SHADERS / f"{kernel.name}.comp").read_text()
    errors = []
    if not text.startswith(f"// {kernel.name}: "):
        errors.append(f"{kernel.name}.comp: the first line must be '// {kernel.name}: what it does'")
    for field in ("bindings", "constants", "push", "formats", "subgroup"):
        line = re.search(rf"^// {field}:(.*)$", text, re.M)
        stated = tuple(line.group(1).split()) if line else ()
        if field == "formats" and len(stated) == 1:
            stated = {"all": WEIGHT_FORMATS, "quantized": QUANTIZED_FORMATS}.get(stated[0], stated)
        if stated != getattr(kernel, field):
            errors.append(f"{kernel.name}.comp: header says {field} {stated}, kernels.py {getattr(kernel, field)}")
    declared = [name for name in ("numerics", "dispatch") if f"// {name}:" not in text]
    errors += [f"{kernel.name}.comp: the header lacks '// {name}:'" for name in declared]
    has = {"z": "gl_WorkGroupID.z" in text, "loops": "gl_NumWorkGroups.x" in text and "gl_WorkGroupID.z" not in text}
    if {kind for kind, is_there in has.items() if is_there} != {kernel.surplus} - {"none"}:
        errors.append(f"{kernel.name}.comp: does not what kernels.py says of surplus workgroups, {kernel.surplus!r}")
    text_of_all = "".join(p.read_text() for p in sources(SHADERS / f"{kernel.name}.comp"))
    n_bindings = len(set(re.findall(r"(?:binding = |_BINDING )(\d+)", text_of_all)))
    if n_bindings != len(kernel.bindings):
        errors.append(f"{kernel.name}.comp: declares {n_bindings} bindings, kernels.py {len(kernel.bindings)}")
    return errors


CAPABILITIES = {
    "vote": 62, "arithmetic": 63, "ballot": 64, "shuffle": 65, "shuffle_relative": 66, "clustered": 67, "quad": 68,
}  # fmt: skip
"""Numbers of the SPIR-V capabilities for subgroup operations. Number 61, basic, comes with each of them."""


def subgroup_errors(kernel: KernelSpec, module: str, symbols: tuple[str, ...]) -> list[str]:
    """Where the subgroup operations that a compiled module declares are not those of the registry."""
    words = np.fromfile(SHADERS / "spv" / f"{module}.spv", np.uint32)
    declared, at = set(), 5
    while at < len(words) and words[at] & 0xFFFF == 17:  # OpCapability: all of them come first
        declared.add(int(words[at + 1]))
        at += int(words[at] >> 16)
    used = {name for name, number in CAPABILITIES.items() if number in declared}
    wanted = set() if "PLAIN" in symbols else set(kernel.subgroup)
    is_right = used == wanted - {"basic"} and (61 in declared) == bool(wanted)
    return [] if is_right else [f"spv/{module}.spv uses subgroups for {sorted(used)}, kernels.py says {sorted(wanted)}"]


def check() -> list[str]:
    """Every disagreement between registry, sources, manifest and compiled modules."""
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    errors = []
    expected = set()
    for kernel in KERNELS.values():
        errors += header_errors(kernel)
        for module, symbols in kernel.modules().items():
            expected.add(module)
            entry, spv = manifest.get(module), SHADERS / "spv" / f"{module}.spv"
            if entry is None or not spv.exists():
                errors.append(f"spv/{module}.spv is missing; run python shaders/build.py")
            elif entry["source"] != source_hash(kernel, symbols):
                errors.append(f"spv/{module}.spv is older than its sources; run python shaders/build.py")
            elif entry["spirv"] != hashlib.sha256(spv.read_bytes()).hexdigest():
                errors.append(f"spv/{module}.spv is not what was compiled; run python shaders/build.py")
            else:
                errors += subgroup_errors(kernel, module, symbols)
    errors += [f"{p.name} belongs to no kernel" for p in SHADERS.glob("*.comp") if p.stem not in KERNELS]
    errors += [f"spv/{p.name} belongs to no kernel" for p in SHADERS.glob("spv/*.spv") if p.stem not in expected]
    return errors


def build() -> None:
    """Compiles every module whose sources changed and writes the manifest."""
    glslc = os.environ.get("GLSLC", "glslc")
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    MANIFEST.parent.mkdir(exist_ok=True)
    fresh: dict[str, dict[str, str]] = {}
    for kernel in KERNELS.values():
        for module, symbols in kernel.modules().items():
            spv, digest = SHADERS / "spv" / f"{module}.spv", source_hash(kernel, symbols)
            entry = manifest.get(module)
            if entry is None or entry["source"] != digest or not spv.exists():
                defines = [f"-D{symbol}" for symbol in symbols]
                command = [glslc, *OPTIONS, *defines, f"-I{SHADERS}", f"{kernel.name}.comp", "-o", str(spv)]
                subprocess.run(command, check=True, cwd=SHADERS)
                print(f"compiled {module}")
            fresh[module] = {"source": digest, "spirv": hashlib.sha256(spv.read_bytes()).hexdigest()}
    for spv in SHADERS.glob("spv/*.spv"):
        if spv.stem not in fresh:
            spv.unlink()
    MANIFEST.write_text(json.dumps(fresh, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if "--amd-report" in sys.argv:
        import amd_report

        amd_report.write()
    elif "--check" not in sys.argv:
        build()
    problems = check()
    print("\n".join(problems) or f"{sum(len(k.modules()) for k in KERNELS.values())} modules belong to their sources")
    sys.exit(bool(problems))
