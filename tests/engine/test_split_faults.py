"""What cannot be run on several devices is told in one typed sentence when a model is opened, and when it is served."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm import LLM
from vkllm.engine.load_times import LoadTimes
from vkllm.engine.opening import opened
from vkllm.engine.requests import EngineConfig
from vkllm.errors import InvalidParameter, NoDevice, OutOfDeviceMemory, VkllmError
from vkllm.gpu.device.kompute import Device
from vkllm.model.memory.plan import PlanOptions
from vkllm.resources import child_environment, child_python

pytestmark = pytest.mark.gpu

FAULTS: list[tuple[dict[str, Any], type[VkllmError], str]] = [
    ({"devices": ("0", "77")}, NoDevice, "No Vulkan device is called '77'; choose among"),
    ({"tensor_split": (1, 1, 1)}, InvalidParameter, r"tensor_split \(-ts\) has 3 shares for 2 devices"),
    ({"tensor_split": (1,)}, InvalidParameter, r"tensor_split \(-ts\) has 1 share for 2 devices"),
    ({"main_gpu": 2}, InvalidParameter, r"main_gpu \(-mg\) is 2, and the model has 2 devices, counted from 0"),
    ({"num_shards": 3}, InvalidParameter, "3 shards need as many devices, and 2 devices are named"),
    ({"spec": "mtp"}, InvalidParameter, r"spec \(--spec\) mtp drafts on one device only"),
    (
        {"devices": ("0",) * 8, "split_mode": "layer"},
        InvalidParameter,
        "at most 2 devices, not 8; .*would work",
    ),
    ({"split_mode": "tensor", "vram_limit": 10_000}, OutOfDeviceMemory, r"rank 0 \(.*\): the model needs .* would fit"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    Device().close()
    return engine_config(write_random_model(tmp_path_factory.mktemp("random") / "m.gguf", TINY_SPEC, {}), TINY_SPEC)


@pytest.mark.parametrize(("asked", "error", "message"), FAULTS)
def test_a_model_that_cannot_be_split_so_is_not_opened(
    config: EngineConfig, asked: dict[str, Any], error: type[VkllmError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        opened(
            replace(config, options=PlanOptions(**{"devices": ("0", "0")} | asked)), lambda n_bytes: None, LoadTimes()
        )
    assert "\n" not in str(raised.value)


def test_a_share_of_nothing_is_a_device_that_takes_no_part(config: EngineConfig) -> None:
    options = PlanOptions(devices=("0", "0"), split_mode="tensor", tensor_split=(1, 0))
    made = opened(replace(config, options=options), lambda n_bytes: None, LoadTimes())
    assert len(made.devices) == 1
    made.close()


def test_the_module_and_the_server_say_the_same(tiny_gguf: Path) -> None:
    message = "tensor_split (-ts) has 3 shares for 2 devices; give one for each device"
    with pytest.raises(InvalidParameter) as raised:
        LLM(tiny_gguf, device="0,0", tensor_split=(1, 1, 1))
    assert str(raised.value) == message
    command = [*child_python("vkllm"), "serve", str(tiny_gguf), "--port", "0", "-dev", "0,0", "-ts", "1,1,1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=child_environment())
    assert done.returncode != 0 and done.stderr.splitlines()[-1] == f"vkllm: error: {message}"
