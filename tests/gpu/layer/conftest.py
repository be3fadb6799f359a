"""Fixtures of the layer's tests: the active layer, a bare Kompute device, the validation layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bare_kompute import VALIDATION, Gpu

from vkllm.errors import NoDevice
from vkllm.gpu.device.probe import devices
from vkllm.gpu.layer import INJECTIONS, Layer, build


@pytest.fixture(scope="session")
def layer() -> Layer:
    pytest.importorskip("kp")
    build.build()
    try:
        devices()
    except NoDevice as error:
        pytest.skip(str(error))
    return Layer.activate()


@pytest.fixture
def gpu(layer: Layer) -> Iterator[Gpu]:
    gpu = Gpu(layer)
    yield gpu
    for kind in INJECTIONS:
        layer.inject(kind, 0)
    gpu.close()


@pytest.fixture
def has_validation(layer: Layer) -> None:
    import vulkan

    if all(found.layerName != VALIDATION for found in vulkan.vkEnumerateInstanceLayerProperties()):
        pytest.skip(f"{VALIDATION} is not installed (Debian: vulkan-validationlayers)")
