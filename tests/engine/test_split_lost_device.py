"""One of several devices that is lost or hangs, with the real engine in its process: the error names it, whatever waits
for it ends, and the next request starts all devices again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from test_lost_device import LOST, TIMEOUT, answered, ended, faulty_process, request

from vkllm.engine.events import Failed
from vkllm.engine.process.handle import EngineProcess
from vkllm.errors import DeviceLost, DeviceTimeout, NoDevice
from vkllm.gpu.device.kompute import Device
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes what is to fail."""
    return tmp_path_factory.mktemp("faults") / "fault"


@pytest.fixture(scope="module", params=["tensor", "layer"])
def process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fault: Path
) -> Iterator[EngineProcess]:
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, {})
    try:
        options = PlanOptions(devices=(Device().info.name,) * 2, split_mode=request.param, spec="off")
    except NoDevice as error:
        pytest.skip(str(error))
    with faulty_process(replace(engine_config(path, TINY_SPEC), options=options), fault) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(process: EngineProcess) -> list[int]:
    return answered(process)


FAULTS = [
    ("submit", LOST, 1),
    ("wait", LOST, 0),
    ("hang", TIMEOUT, 1),
    pytest.param("submit", LOST, 0, marks=pytest.mark.with_all),
    pytest.param("wait", LOST, 1, marks=pytest.mark.with_all),
    pytest.param("hang", TIMEOUT, 0, marks=pytest.mark.with_all),
]


@pytest.mark.parametrize(("kind", "result", "rank"), FAULTS)
def test_the_device_that_failed_is_named_and_the_next_request_works(
    process: EngineProcess, undisturbed: list[int], fault: Path, kind: str, result: int, rank: int
) -> None:
    pid = process.pid
    fault.write_text(f"answering {kind} 3 {result} {rank}")
    tokens, failed = ended(process.submit(request(1)))
    assert tokens == undisturbed[: len(tokens)] and len(tokens) < 12
    assert isinstance(failed, Failed) and type(failed.error) is (DeviceTimeout if kind == "hang" else DeviceLost)
    name = re.escape(process.ready.device_name)
    assert re.match(rf"{name}, running .*\(device {rank + 1} of 2\): ", str(failed.error)), failed.error
    assert answered(process) == undisturbed
    assert process.pid != pid
