"""The shipped SPIR-V belongs to the sources, and the checks that say so can fail."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vkllm.gpu.device.kernel import QUANTIZED_FORMATS
from vkllm.gpu.program.exchange_kernels import MOST_RANKS
from vkllm.gpu.program.kernels import (
    ATTENTION_PIECE,
    KERNELS,
    KV_BLOCK,
    LINK_WORDS,
    MAX_NARROW,
    MAX_PARTS,
    MAX_ROWS,
    TOP_K,
    TOP_LOGITS,
)
from vkllm.gpu.program.step import HEADER_WORDS
from vkllm.model.memory.exchange_memory import LINE_FOURS

SHADERS = Path(__file__).parents[2] / "shaders"


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shader_build", SHADERS / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_modules_belong_to_their_sources(build: ModuleType) -> None:
    assert build.check() == []


def test_a_changed_source_or_module_is_found(build: ModuleType, tmp_path: Path) -> None:
    for path in SHADERS.rglob("*.*"):
        target = tmp_path / path.relative_to(SHADERS)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    build.SHADERS, build.MANIFEST = tmp_path, tmp_path / "spv" / "manifest.json"
    assert build.check() == []
    (tmp_path / "lib" / "q16.glsl").write_text((tmp_path / "lib" / "q16.glsl").read_text() + "\n")
    (tmp_path / "spv" / "argmax.spv").write_bytes(b"")
    (tmp_path / "rope.comp").write_text((tmp_path / "rope.comp").read_text().replace("k_cache v_cache", "v_cache", 1))
    problems = "\n".join(build.check())
    assert "spv/activate.spv is older" in problems and "spv/argmax.spv is not what was compiled" in problems
    assert "rope.comp: header says bindings" in problems and "spv/matvec_q" not in problems


def test_constants_agree_with_the_shaders() -> None:
    for source in ("lib/step.glsl", "begin_step.comp"):
        text = (SHADERS / source).read_text()
        assert f"#define MAX_ROWS {MAX_ROWS}\n#define MAX_NARROW {MAX_NARROW}\n" in text
        assert f"#define KV_BLOCK {KV_BLOCK}\n" in text or source == "begin_step.comp"
    assert f"#define PIECE {ATTENTION_PIECE} " in (SHADERS / "attention_fused.comp").read_text()
    assert f"#define MAX_PARTS {MAX_PARTS}\n" in (SHADERS / "attention_fused.comp").read_text()
    assert f"#define LINK_WORDS {LINK_WORDS} " in (SHADERS / "lib" / "chain.glsl").read_text()
    assert f"#define HEADER_WORDS {HEADER_WORDS}\n" in (SHADERS / "begin_step.comp").read_text()
    exchange = (SHADERS / "lib" / "exchange.glsl").read_text()
    assert f"#define MOST_RANKS {MOST_RANKS}\n#define LINE_FOURS {LINE_FOURS}\n" in exchange
    largest = (SHADERS / "lib" / "largest.glsl").read_text()
    assert f"#define TOP_K {TOP_K}\n#define TOP_LOGITS {TOP_LOGITS}\n" in largest


def test_only_modules_for_devices_with_the_memory_model_declare_it() -> None:
    logical_vulkan = np.array([3 << 16 | 14, 0, 3], np.uint32).tobytes()  # OpMemoryModel Logical Vulkan
    declare_it = {path.stem for path in (SHADERS / "spv").glob("*.spv") if logical_vulkan in path.read_bytes()}
    matrices = {
        *(module for kernel in KERNELS.values() if kernel.uses_matrices for module in kernel.modules()),
    } - {module for module in KERNELS["delta_net_chunks"].modules() if module.endswith("_plain")}
    in_chains = {f"matvec_fused_{fmt.lower()}_memory_model" for fmt in QUANTIZED_FORMATS}
    assert declare_it == matrices | in_chains | {
        f"{name}_memory_model" for name in ("attention_fused", "route_fused", "delta_net_fused", "norm")
    }


def test_every_kernel_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (SHADERS.parent / "tests" / "gpu").glob("test_*.py"))
    assert [name for name in KERNELS if f'KERNELS["{name}"]' not in tests] == []
