"""Commands that need a model on one device say so before they load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vkllm.api.loading import plan_options
from vkllm.errors import InvalidParameter
from vkllm.gpu.device.probe import devices
from vkllm.gpu.device.several import chosen_devices


def check_one_device(loading: Mapping[str, Any], done: str) -> None:
    """Raises InvalidParameter where several devices are asked for. loading: options of LLM. done: what is to be done
    with the model."""
    options = plan_options(loading)
    asks = len(options.devices) > 1 or options.num_shards or options.split_mode or options.tensor_split
    if asks and len(chosen_devices(devices(), options).infos) > 1:
        raise InvalidParameter(
            f"a model on several devices cannot be {done}; load it on one device (-dev), or with -sm none"
        )
