"""`vkllm tune` and `vkllm bench --kernels` refuse several devices before they load anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tunings import H100

from vkllm import InvalidParameter
from vkllm.errors import NoDevice
from vkllm.faces.cli import bench, one_device, tune
from vkllm.faces.cli.bench import Setup, Split
from vkllm.faces.cli.bench_kernels import KernelOptions, measure_kernels
from vkllm.faces.cli.one_device import check_one_device
from vkllm.store import look_up


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards; whatever would be loaded on them fails the test."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(one_device, "devices", lambda: [H100, replace(H100, index=H100.index + 1)])
    for module in (bench, tune):
        monkeypatch.setattr(module, "LLM", load)


ASKED: list[dict[str, Any]] = [
    {"device": "0,1"},
    {"device": ("1", "1")},
    {"split_mode": "layer"},
    {"num_shards": 2},
    {"tensor_split": (2, 1)},
]


@pytest.mark.parametrize("asked", ASKED)
def test_several_devices_are_refused(asked: dict[str, Any], tiny_gguf: Path) -> None:
    message = r"several devices cannot be tuned; load it on one device \(-dev\), or with -sm none"
    with pytest.raises(InvalidParameter, match=message):
        tune.tune_model(look_up(str(tiny_gguf)), asked, budget_s=1, as_json=False)


def test_kernels_of_several_devices_are_not_timed(tiny_gguf: Path) -> None:
    for setup in (Setup(str(tiny_gguf), ("0", "1")), Setup(str(tiny_gguf), split=Split("tensor"))):
        with pytest.raises(InvalidParameter, match="cannot be timed kernel by kernel"):
            measure_kernels(KernelOptions([setup], None, True, [0]))


def test_one_device_is_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ({"device": "0,1", "split_mode": "none"}, {"device": "0,1", "tensor_split": (0, 1)}):
        check_one_device(asked, "tuned")

    def none_there() -> None:
        raise NoDevice("no Vulkan device was found")

    monkeypatch.setattr(one_device, "devices", none_there)
    for asked in ({}, {"device": "0"}, {"device": None, "split_mode": None}):
        check_one_device(asked, "tuned")
