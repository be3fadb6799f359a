"""The device that GPU tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kept_devices import N_PIPELINES, KeptDevices

from vkllm.errors import NoDevice
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.layer import Layer


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    try:
        opened = Device(timeout_s=400.0)  # lavapipe compiles a step's kernels while it is waited for
    except NoDevice as error:
        pytest.skip(str(error))
    Layer.activate().keep_pipelines(opened.layer_id, N_PIPELINES)  # tests of a file make equal kernels
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept_devices() -> Iterator[KeptDevices]:
    kept = KeptDevices()
    yield kept
    kept.end()
