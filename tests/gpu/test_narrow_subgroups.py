"""Kernels where subgroups are too small for them: lavapipe with vectors of 128 bits, as on CPUs without AVX.

The tests of the kernels run again in a process of their own, where such a device takes the `_plain` modules.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vkllm.gpu.device.kompute import Device

pytestmark = pytest.mark.gpu

TESTS = Path(__file__).parent
IS_CHILD = "VKLLM_TEST_NARROW" in os.environ

# Most time goes into compiling, so of each kernel a few shapes.
KERNEL_TESTS = (
    "test_norm.py",
    "test_activate.py",
    "test_rope.py",
    "test_head_norm.py",
    "test_attention.py::test_scores_and_windows[tiny heads]",
    "test_attention.py::test_scores_and_windows[softcap and blocks of a window]",
    "test_attention.py::test_scores_and_windows[window ahead]",
    "test_attention.py::test_scores_and_windows[sinks, gates and blocks of a window]",
    "test_attention.py::test_scores_and_windows[chunks and sinks]",
    "test_matvec.py::test_a_tile_of_tokens",
    "test_attention.py::test_attention[[150, 151, 152, 153, 154]-9-3-64-3-q8_0-f16]",
    "test_attention.py::test_attention[[63]-4-4-32-1-f16-f16]",
    "test_program.py::test_without_subgroups_logits_equal_the_reference",
    "test_argmax.py",
    "test_embed.py",
)


@pytest.mark.skipif(IS_CHILD, reason="starts the process that the others run in")
def test_kernels_are_right_with_subgroups_of_four(device: Device) -> None:
    if device.info.type != "cpu":
        pytest.skip("only lavapipe can be made to have narrow subgroups")
    environment = os.environ | {"LP_NATIVE_VECTOR_WIDTH": "128", "VKLLM_TEST_NARROW": "1"}
    tests = [
        f"{__file__}::{test_the_process_has_a_narrow_device.__name__}",
        *(str(TESTS / name) for name in KERNEL_TESTS),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parents[1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.skipif(not IS_CHILD, reason="runs in the process that the test above starts")
def test_the_process_has_a_narrow_device(device: Device) -> None:
    assert device.info.max_subgroup_size == 4 and device.is_plain
