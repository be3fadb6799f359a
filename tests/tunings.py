"""Devices and choices that several tests of tuning share."""

from __future__ import annotations

from dataclasses import replace

from vkllm.gpu.device.probe import AMD, NVIDIA, NVIDIA_DRIVER, DeviceInfo
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.tuning.cache import KeptTuning, TokenSpeeds, tuning_key
from vkllm.gpu.tuning.space import ModelKind

H100 = DeviceInfo(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    type="discrete",
    vendor_id=NVIDIA,
    device_id=0x2330,
    driver_name="NVIDIA",
    driver_version="580.159.04",
    api_version=(1, 4, 312),
    heaps=(),
    max_binding_bytes=2**32 - 1,
    max_allocation_bytes=2**32,
    max_workgroup_invocations=1024,
    max_shared_bytes=49152,
    subgroup_size=32,
    min_subgroup_size=32,
    max_subgroup_size=32,
    features=frozenset({"fp16", "cooperative_matrix", "subgroup_size_control", "compute_full_subgroups"}),
    driver_id=NVIDIA_DRIVER,
    matrix_shape=(16, 16, 16),
    n_cores=132,
)
RADEON = replace(
    H100,
    name="AMD Radeon RX 7900 XTX (RADV NAVI31)",
    vendor_id=AMD,
    device_id=0x744C,
    driver_name="radv",
    driver_id=3,
    driver_version="Mesa 25.0.0",
    max_shared_bytes=65536,
    subgroup_size=64,
    min_subgroup_size=32,
    max_subgroup_size=64,
    n_cores=96,
)
LLAMA_7B = ModelKind("Q4_0", 1, 128)
LLAMA_8B = ModelKind("Q4_K", 4, 128)


def with_decode(choices: Tuning, **values: int) -> Tuning:
    """The choices with others for steps of one token."""
    return replace(choices, decode=replace(choices.decode, **values))


def kept(info: DeviceInfo, kind: ModelKind, **values: int) -> KeptTuning:
    """An entry of the file: the table's choices with other values for decoding."""
    choice = with_decode(tuning(info), **values)
    before, after = (
        TokenSpeeds({0: 400.0, 4032: 250.0}, {512: 8000.0}),
        TokenSpeeds({0: 440.0, 4032: 280.0}, {512: 8000.0}),
    )
    return KeptTuning(tuning_key(info, kind), choice, before, after)
