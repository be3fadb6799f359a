"""Which devices a model runs on, by what a user asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vkllm.errors import InvalidParameter, NoDevice
from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.device.several import chosen_devices, joined_names, members
from vkllm.model.memory.plan import PlanOptions

CPU = DeviceInfo(0, "llvmpipe", "cpu", 0, 0, "", "", (1, 3, 0), (), 2**30, 2**30, 1024, 2**15, 8, 8, 8, frozenset())
BIG = replace(CPU, index=1, name="RX 7900 XTX", type="discrete", features=frozenset({"external_memory_host"}))
KNOWN = [CPU, BIG, replace(BIG, index=2), replace(BIG, index=3, name="Arc A770")]


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ({}, [1]),
        ({"devices": ("xtx", "3")}, [1, 3]),
        ({"devices": ("0", "0", "0")}, [0, 0, 0]),
        ({"devices": ("3", "1"), "split_mode": "none"}, [3]),
        ({"devices": ("3", "1"), "split_mode": "none", "main_gpu": 1}, [1]),
        ({"devices": ("3", "1"), "num_shards": 1}, [3]),
        ({"num_shards": 2}, [1, 2]),
        ({"num_shards": 4}, [1, 2, 3, 0]),
        ({"split_mode": "layer"}, [1, 2, 3]),
        ({"split_mode": "row"}, [1, 2, 3]),
        ({"split_mode": "none", "main_gpu": 2}, [3]),
        ({"main_gpu": 1}, [2]),
        ({"tensor_split": (2, 1)}, [1, 2]),
        ({"tensor_split": (2, 0, 1)}, [1, 3]),
    ],
)
def test_devices_are_those_that_are_asked_for(asked: dict[str, Any], indices: list[int]) -> None:
    chosen = chosen_devices(KNOWN, PlanOptions(**asked))
    assert [info.index for info in chosen.infos] == indices
    shares = chosen.options.tensor_split
    assert not shares or (len(shares) == len(indices) and all(shares))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"num_shards": 5},
            r"5 shards need as many devices, and 4 devices are there \(RX 7900 XTX, index 1, ",
        ),
        (
            {"devices": ("1",), "num_shards": 2},
            r"2 shards need as many devices, and 1 device is named \(RX .*, index",
        ),
        ({"tensor_split": (1,) * 5}, r"5 shares of tensor_split \(-ts\) need as many devices, and 4 devices are there"),
        ({"devices": ("1", "2"), "tensor_split": (1, 1, 1)}, r"\(-ts\) has 3 shares for 2 devices; give one for each"),
        (
            {"devices": ("1", "2", "3"), "tensor_split": (1, 1)},
            r"\(-ts\) has 2 shares for 3 devices; give one for each",
        ),
        ({"devices": ("1", "2", "3"), "tensor_split": (1, 1), "num_shards": 3}, r"\(-ts\) has 2 shares for 3 devices"),
        ({"split_mode": "none", "num_shards": 2}, r"-sm none\) is one device, not 2 shards"),
        ({"split_mode": "none", "main_gpu": 9}, r"main_gpu \(-mg\) is 9, and the model has 3 devices, counted from 0"),
        ({"devices": ("1", "2"), "main_gpu": 2}, r"main_gpu \(-mg\) is 2, and the model has 2 devices"),
    ],
)
def test_what_does_not_go_together_is_told(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        chosen_devices(KNOWN, PlanOptions(**asked))


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(NoDevice, match=r"No Vulkan device is called 'Voodoo'; choose among llvmpipe \(index 0\), .*"):
        chosen_devices(KNOWN, PlanOptions(devices=("1", "Voodoo")))
    with pytest.raises(NoDevice):
        chosen_devices([], PlanOptions(split_mode="layer"))


def test_devices_become_members_of_a_plan() -> None:
    made = members([BIG, CPU, BIG], {0: None, 1: None})
    assert [member.card for member in made] == ["1", "0", "1"]
    assert [member.can_exchange for member in made] == [True, False, True]
    assert joined_names(["a", "b", "a"]) == "2 x a + b"
