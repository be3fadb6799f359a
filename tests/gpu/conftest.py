"""The device that GPU tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vkllm.errors import NoDevice
from vkllm.gpu.device.kompute import Device


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    try:
        opened = Device(timeout_s=400.0)  # lavapipe compiles a step's kernels while it is waited for
    except NoDevice as error:
        pytest.skip(str(error))
    yield opened
    opened.close()
