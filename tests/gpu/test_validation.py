"""Prefill and decode under the Khronos validation layer with synchronization validation: no message at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vkllm.gpu.device.kompute import Device

pytestmark = pytest.mark.gpu
VALIDATION = "VK_LAYER_KHRONOS_validation"
TESTS = Path(__file__).parents[1]


def output(*arguments: str) -> str:
    """What the run prints under validation."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VK_")}
    inherited |= {key: os.environ[key] for key in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES") if key in os.environ}
    environment = inherited | {
        "VK_INSTANCE_LAYERS": VALIDATION,
        "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    command = [sys.executable, str(TESTS / "gpu" / "validated_engine.py"), *arguments]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=450
    )
    assert done.returncode == 0, done.stdout
    noise = "WARNING: lavapipe is not a conformant vulkan implementation, testing use only."
    return "\n".join(line for line in done.stdout.splitlines() if line.strip() and line != noise)


@pytest.fixture(autouse=True)
def has_validation(device: Device) -> None:
    import vulkan

    if all(found.layerName != VALIDATION for found in vulkan.vkEnumerateInstanceLayerProperties()):
        pytest.skip(f"{VALIDATION} is not installed (Debian: vulkan-validationlayers)")


def test_a_prefill_and_a_decode_give_no_message() -> None:
    assert output() == "done"


def test_a_missing_barrier_would_be_noticed() -> None:
    assert "SYNC-HAZARD" in output("unordered")
