"""Features: what a device reports and no more, whatever its Vulkan version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bare_kompute import Gpu, under_validation

from vkllm.gpu.device.probe import devices

pytestmark = pytest.mark.gpu

SPV = Path(__file__).parents[3] / "shaders" / "spv"


def test_only_reported_features_are_enabled_and_the_probe_sees_the_same(gpu: Gpu) -> None:
    enabled, reported = gpu.layer.features(gpu.device), gpu.layer.reported(gpu.device)
    assert enabled <= reported
    assert devices()[0].features - {"fast_integer_dot"} == reported & {
        "fp16", "integer_dot_product", "cooperative_matrix", "subgroup_size_control", "compute_full_subgroups",
        "memory_budget", "external_memory_host",
    }  # fmt: skip


def test_features_are_those_that_shaders_declare_and_the_layer_uses(gpu: Gpu) -> None:
    # of the optional SPIR-V capabilities: subgroup operations are properties of a device, not features
    feature_of = {
        9: "fp16", 6018: "integer_dot_product", 6019: "integer_dot_product", 5345: "memory_model",
        6022: "cooperative_matrix",
    }  # fmt: skip
    always = {1, *range(61, 67)}  # Shader, GroupNonUniform and its kinds
    declared = {capability for path in SPV.glob("*.spv") for capability in capabilities(path.read_bytes())} - always
    needed = {feature_of[capability] for capability in declared}
    by_the_layer = {
        "subgroup_size_control", "compute_full_subgroups", "memory_budget", "memory_model_device_scope",
        "external_memory_host",
    }  # fmt: skip
    assert set(gpu.layer.feature_names) == needed | by_the_layer


def capabilities(module: bytes) -> Iterator[int]:
    """The capabilities that a SPIR-V module declares."""
    words = np.frombuffer(module, np.uint32)
    place = 5
    while place < len(words) and words[place] & 0xFFFF == 17:  # OpCapability; all of them come first
        yield int(words[place + 1])
        place += int(words[place] >> 16)


def test_a_feature_that_the_device_lacks_is_not_enabled(has_validation: None, tmp_path: Path) -> None:
    with_it, messages = under_validation("half", tmp_path)
    if "fp16" not in with_it["enabled"]:
        pytest.skip("the device has no 16-bit floats")
    assert messages == ""
    hidden = {"fp16", "memory_model", "memory_budget"}
    without, messages = under_validation("half", tmp_path, VKLLM_LAYER_HIDE_FEATURES=",".join(sorted(hidden)))
    # Cooperative matrices and the device's scope are of no use without the memory model.
    hidden |= {"cooperative_matrix", "memory_model_device_scope"}
    assert set(without["enabled"]) == set(with_it["enabled"]) - hidden
    # The driver's side of it: the shader's capability was not there. What else was enabled is as before.
    assert "Capability (Float16) was declared, but none of the requirements were met" in messages


@pytest.mark.parametrize("minor", [0, 1, 2])
def test_an_older_device_gets_its_features_through_extensions_and_vulkan_1_0_gets_none(
    has_validation: None, tmp_path: Path, minor: int
) -> None:
    as_it_is, _ = under_validation("opened", tmp_path)
    seen, messages = under_validation("opened", tmp_path, VKLLM_LAYER_VULKAN_MINOR=str(minor))
    assert messages == ""
    # Drivers go on listing the extensions that their version has in its core.
    assert seen["features"] == (as_it_is["features"] if minor else [])
    if minor and "fp16" in seen["features"]:
        _, messages = under_validation("half", tmp_path, VKLLM_LAYER_VULKAN_MINOR=str(minor))
        assert messages == ""
