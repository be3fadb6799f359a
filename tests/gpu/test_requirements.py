"""What kernels need of a device: the subgroup size they ask for, the modules without subgroups, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from model_specs import LAYER
from quick_choices import SHIPPED
from tunings import H100, RADEON

from vkllm.errors import UnsupportedDevice
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.device.requirements import (
    INTEL,
    OPERATIONS,
    PLAIN_LANES,
    SIZE_FEATURES,
    check_requirements,
    is_plain,
    prepared,
    required_subgroup_size,
    without_subgroups,
)
from vkllm.gpu.program.choices import GPU, VENDORS, tuning
from vkllm.gpu.program.fitting import attention_bytes, fitted, fitted_to_layers, most_invocations
from vkllm.gpu.program.kernels import KERNELS

SHADERS = Path(__file__).parents[2] / "shaders"


def sizes(info: DeviceInfo, reported: int, smallest: int, largest: int) -> DeviceInfo:
    return replace(info, subgroup_size=reported, min_subgroup_size=smallest, max_subgroup_size=largest)


LAVAPIPE = replace(sizes(H100, 8, 8, 8), name="llvmpipe", type="cpu", vendor_id=0x10005, matrix_shape=None)
ARC = replace(sizes(H100, 32, 8, 32), name="Intel Arc A770", vendor_id=INTEL, matrix_shape=None)


@pytest.mark.parametrize(
    ("info", "size"),
    [
        (H100, 32),
        (RADEON, 64),
        (LAVAPIPE, 8),
        (ARC, 16),
        (sizes(ARC, 32, 16, 32), 16),
        (sizes(ARC, 32, 32, 32), 32),
        (sizes(H100, 128, 64, 128), 64),
        (sizes(H100, 128, 128, 128), None),
        (sizes(LAVAPIPE, 4, 4, 4), None),
        (sizes(LAVAPIPE, 4, 4, 16), 8),
        (sizes(LAVAPIPE, 1, 1, 1), None),
        (sizes(H100, 0, 0, 0), None),
        (replace(ARC, features=ARC.features - {"subgroup_size_control"}), None),
        (replace(ARC, features=ARC.features - {"compute_full_subgroups"}), None),
        (replace(ARC, max_workgroup_subgroups=0), None),
        (replace(sizes(RADEON, 64, 64, 64), max_workgroup_subgroups=0), 64),  # Vega: one size, and none to ask for
        (replace(sizes(RADEON, 64, 32, 64), max_workgroup_subgroups=0), None),
        (replace(H100, subgroup_operations=frozenset({"basic", "arithmetic", "vote"})), None),
        (replace(H100, subgroup_operations=frozenset()), None),
    ],
)
def test_kernels_ask_for_full_subgroups_of_a_size_or_use_none(info: DeviceInfo, size: int | None) -> None:
    assert required_subgroup_size(info) == size and is_plain(info) == (size is None)
    used = prepared(info)
    assert used.subgroup_size == (size or PLAIN_LANES)
    assert prepared(used) == used
    if size is None:
        assert used.matrix_shape is None and not used.features & SIZE_FEATURES


def test_a_device_can_be_made_to_use_no_subgroups() -> None:
    assert is_plain(without_subgroups(H100)) and not tuning(without_subgroups(H100)).has_matmul


def test_the_operations_are_those_of_the_registry_and_the_shaders() -> None:
    used = {operation for kernel in KERNELS.values() for operation in kernel.subgroup}
    assert used == OPERATIONS
    assert f"#define SUBGROUP_SIZE {PLAIN_LANES}\n" in (SHADERS / "lib" / "subgroups.glsl").read_text()


def test_each_kernel_of_every_step_runs_without_subgroups() -> None:
    """All but those that a step without subgroups does not take: the fused ones and those of matrices."""
    lacking = {kernel.name for kernel in KERNELS.values() if kernel.subgroup and not kernel.has_plain}
    fused = {f"{name}_fused" for name in ("attention", "matvec", "route", "delta_net")}
    assert lacking == {*fused, "attention_tiled", "matmul", "expert_matmul", "matmul_narrow", "matrix_layout"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_version": (1, 0, 65)}, "need Vulkan 1.1 (it has 1.0)"),
        ({"max_workgroup_invocations": 128}, "need workgroups of 256 invocations (it allows 128)"),
        ({"max_shared_bytes": 8192}, "need 16,384 bytes of shared memory (it has 8,192)"),
        ({"max_shared_bytes": 1, "api_version": (1, 0, 0)}, "need Vulkan 1.1 (it has 1.0) and 16,384 bytes"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UnsupportedDevice) as caught:
        check_requirements(replace(H100, **changes))
    message = str(caught.value)
    assert message.startswith("NVIDIA H100 80GB HBM3 (driver NVIDIA 580.159.04) cannot run")
    assert said in message and "choose another device" in message and "\n" not in message


def test_what_the_specification_promises_is_enough_for_a_cpu() -> None:
    check_requirements(replace(LAVAPIPE, max_workgroup_invocations=128, max_shared_bytes=16384))


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("n_sharing", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("shared_bytes", [16384, 32768, 49152])
@pytest.mark.parametrize("choices", [SHIPPED, GPU, *VENDORS.values()], ids=["CPU", "GPU", *map(hex, VENDORS)])
def test_workgroups_fit_into_the_smallest_device(choices, shared_bytes: int, n_sharing: int, head_dim: int) -> None:
    for size in (4, 8, 16, 32, 64, 128):
        for invocations, subgroups in ((256, 64), (1024, 16), (1024, 64)):
            info = prepared(
                replace(
                    sizes(H100, size, size, size),
                    max_shared_bytes=shared_bytes,
                    max_workgroup_invocations=invocations,
                    max_workgroup_subgroups=subgroups,
                )
            )
            try:
                made = fitted(choices, info, n_sharing, head_dim)
            except UnsupportedDevice:
                # sums of wide heads for a subgroup of 64 take more than 16 KiB
                assert shared_bytes == 16384 and head_dim >= 96, (size, invocations)
                continue
            most = most_invocations(info)
            assert max(attention_bytes(made, info, n_sharing, head_dim)) <= shared_bytes
            for local_size in (made.local_size, made.attention_size, made.decode.size, made.decode.attention_size):
                assert local_size <= most and local_size % min(info.subgroup_size, most) == 0
            assert 4 * made.local_size <= most


def test_workgroups_fit_for_the_heads_of_every_layer() -> None:
    info = prepared(replace(H100, max_shared_bytes=16384))
    layers = [
        replace(LAYER, n_heads=4, n_kv_heads=1, head_dim=128),
        replace(LAYER, n_heads=4, n_kv_heads=4, head_dim=32),
    ]
    for order in (layers, layers[::-1]):
        made = fitted_to_layers(tuning(H100), info, order)
        assert max(attention_bytes(made, info, 4, 128)) <= 16384 and max(attention_bytes(made, info, 1, 32)) <= 16384


@pytest.mark.parametrize("info", [H100, RADEON], ids=["H100", "RX 7900 XTX"])
@pytest.mark.parametrize(("n_sharing", "head_dim"), [(1, 128), (4, 128), (7, 128), (3, 64), (8, 64)])
def test_the_tables_choices_stay_as_they_are_where_they_fit(info: DeviceInfo, n_sharing: int, head_dim: int) -> None:
    assert fitted(tuning(info), prepared(info), n_sharing, head_dim) == tuning(info)
