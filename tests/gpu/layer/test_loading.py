"""How the layer is built, found and loaded, and devices that come and go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bare_kompute import Gpu, chain_result, run_scenario, under_validation

from vkllm.errors import DeviceError
from vkllm.gpu import layer as layer_module
from vkllm.gpu.device.probe import choose_device, devices
from vkllm.gpu.layer import LIBRARY, NAME, Layer
from vkllm.gpu.layer import build as layer_build

pytestmark = pytest.mark.gpu


def test_devices_come_and_go_without_mixing(layer: Layer) -> None:
    start = np.arange(64, dtype=np.uint32)
    older = Gpu(layer)
    sequence, tensors, _kept = older.chain(start, 4)
    numbers = [older.device]
    for n in range(20):
        newer = Gpu(layer)
        numbers.append(newer.device)
        newer_sequence, newer_tensors, _newer_kept = newer.chain(start, n)
        newer.run(newer_sequence)
        np.testing.assert_array_equal(newer_tensors[n % 2].data(), chain_result(start, n))
        assert layer.statistics(newer.device).dispatches == n
        newer.close()
        with pytest.raises(DeviceError, match="no Vulkan device"):
            layer.statistics(newer.device)
    assert numbers == sorted(set(numbers))
    with pytest.raises(DeviceError, match="no device was made since"):
        layer.open_device()
    older.run(sequence)
    np.testing.assert_array_equal(tensors[0].data(), chain_result(start, 4))
    older.close()


def test_what_a_device_still_has_when_it_is_destroyed_is_counted_and_destroyed(
    has_validation: None, tmp_path: Path
) -> None:
    seen, messages = under_validation("forgetful", tmp_path)
    assert seen["abandoned"] == 2
    assert messages == ""  # the validation layer tells of objects that outlive their device


def test_users_layers_and_layer_path_are_kept(layer: Layer, tmp_path: Path) -> None:
    seen, _ = run_scenario("opened", tmp_path, VK_INSTANCE_LAYERS="VK_LAYER_USERS_own", VK_LAYER_PATH=str(tmp_path))
    assert (seen["device"], seen["layers"]) == (1, f"{NAME}:VK_LAYER_USERS_own")


def test_a_loader_that_passes_the_layer_by_is_an_error_that_says_why(layer: Layer, tmp_path: Path) -> None:
    seen, _ = run_scenario("passed_by", tmp_path)
    assert "VK_INSTANCE_LAYERS does not name it" in seen["error"]


def test_a_missing_or_broken_library_is_an_error_that_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Layer, "_active", None)
    monkeypatch.setattr(layer_module, "LIBRARY", tmp_path / "library.so")
    with pytest.raises(DeviceError, match=r"missing.*python -m vkllm.gpu.layer.build"):
        Layer.activate()
    (tmp_path / "library.so").write_bytes(b"not a library")
    with pytest.raises(DeviceError, match=r"cannot be loaded.*--force"):
        Layer.activate()


def test_a_build_without_compiler_or_headers_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = LIBRARY.read_bytes()
    for compiler in ("no-such-compiler", "sh -c 'echo vulkan/vulkan.h: No such file >&2; exit 1'"):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(DeviceError, match="apt install gcc libvulkan-dev"):
            layer_build.build(force=True)
    assert LIBRARY.read_bytes() == before
    assert list(LIBRARY.parent.glob("libvkllm_layer.*")) == [LIBRARY]


def test_the_newest_device_is_the_one_kompute_opened(gpu: Gpu) -> None:
    assert gpu.manager.get_device_properties()["device_name"] == choose_device(devices(), "0").name
