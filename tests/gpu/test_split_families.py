"""Every small model of ../shared/tiny on several devices, here one named more than once, gives what it gives on one."""

from __future__ import annotations

from functools import partial

import pytest
from kept_devices import KeptDevices
from split_models import TINY, check_layers, check_tensors, config_of, on_one

from vkllm.engine import opening
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.exchange import Exchange

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not TINY.is_dir(), reason="needs the small models beside the checkout"),
]

FORMATS = ("quant-q4_0", "quant-mxfp4", "quant-nvfp4")
"""Of the models that differ by a format only: the others' blocks are as wide as these models, so nothing is divided."""

NAMES = sorted(path.stem for path in TINY.glob("*.gguf") if "quant-" not in path.stem or path.stem in FORMATS)


@pytest.mark.parametrize(("name", "n_devices"), [(name, 2 + i % 3) for i, name in enumerate(NAMES)])
def test_several_devices_give_what_one_device_gives(
    device: Device, kept_devices: KeptDevices, name: str, n_devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By layers and by tensors; of three or four devices, with all sums in two phases."""
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    monkeypatch.setattr(opening, "Device", kept_devices)
    monkeypatch.setattr(opening, "Exchange", partial(Exchange, saved_fours=0 if n_devices > 2 else 10**9))
    config = config_of(name)
    wanted = on_one(device, config)
    n_layers = len(config.spec.layers)
    if n_layers > 1 and name != "gemma4-ple":  # whose later layers read the cache of the first
        check_layers(device, config, min(n_devices, n_layers), wanted)
    check_tensors(device, config, n_devices, wanted)
