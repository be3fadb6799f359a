"""A device that is lost or hangs, and a process that is killed, with the real engine: typed errors, and a new start."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm.engine.events import Event, Failed, Finished, StateAnswer, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import EngineConfig, Request, StateQuery
from vkllm.errors import DeviceLost, DeviceTimeout, NoDevice

pytestmark = pytest.mark.gpu

PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, TINY_SPEC.n_vocab, 20))
LOST, TIMEOUT = -4, 2


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes what is to fail."""
    return tmp_path_factory.mktemp("faults") / "fault"


@contextmanager
def faulty_process(config: EngineConfig, fault: Path) -> Iterator[EngineProcess]:
    """An engine that reads in `fault` what is to fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VKLLM_TEST_FAULT", str(fault))
        made = EngineProcess(config, factory="faulty_engine:FaultyEngine")
        try:
            made.start()
        except NoDevice as error:
            pytest.skip(str(error))
        yield made
        made.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, fault: Path) -> Iterator[EngineProcess]:
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", TINY_SPEC, {"attn_q": "Q8_0"})
    config = engine_config(path, TINY_SPEC)
    config = replace(config, options=replace(config.options, spec="off"))  # drafts would change the number of steps
    with faulty_process(config, fault) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(process: EngineProcess) -> list[int]:
    return answered(process)


def request(request_id: int, max_tokens: int = 12) -> Request:
    return Request(request_id, PROMPT, SamplingParams(temperature=0, max_tokens=max_tokens), frozenset())


def answered(process: EngineProcess) -> list[int]:
    tokens, last = ended(process.submit(request(1)))
    assert isinstance(last, Finished), last
    return tokens


def ended(events: SimpleQueue[Event]) -> tuple[list[int], Event]:
    tokens = []
    while isinstance(event := events.get(timeout=120), Token):
        tokens.append(event.token_id)
    return tokens, event


def killed_in_mid_answer(process: EngineProcess) -> tuple[Event, float]:
    """Kills the process; the last event of its request, and the seconds until that came."""
    # without an end of its own, however long this test is kept from the processor
    params = SamplingParams(temperature=0, max_tokens=None, context_shift=True)
    events = process.submit(Request(1, PROMPT, params, frozenset()))
    assert isinstance(events.get(timeout=120), Token) and process.pid is not None
    start_s = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    _, last = ended(events)
    return last, time.monotonic() - start_s


@pytest.mark.parametrize("nth", [1, 2, 9])
@pytest.mark.parametrize(("kind", "result"), [("wait", LOST), ("submit", LOST), ("hang", TIMEOUT)])
def test_a_lost_or_hung_device_ends_the_process_says_what_ran_and_the_next_request_works(
    process: EngineProcess, undisturbed: list[int], fault: Path, kind: str, result: int, nth: int
) -> None:
    pid = process.pid
    fault.write_text(f"answering {kind} {nth} {result}")
    first, waiting = process.submit(request(1)), process.submit(request(2))
    tokens, failed = ended(first)
    assert tokens == undisturbed[: len(tokens)] and len(tokens) < 12
    assert isinstance(failed, Failed) and type(failed.error) is (DeviceTimeout if kind == "hang" else DeviceLost)
    what = [r"a token of an answer at position 2\d", r"a step of 2 requests \(\d+ tokens\)"]
    if nth < 9:
        what.append(r"\d+ tokens? of a prompt from position \d+ on")
        what.append(r"the end of a prompt \(\d+ tokens?\) at position 1?\d")
    ran = rf"{re.escape(process.ready.device_name)}, running ({'|'.join(what)}): "
    assert re.match(ran, str(failed.error)), failed.error
    _, also = ended(waiting)
    # the second one failed with the first, or came so late that a new process took it
    is_with_it = isinstance(also, Failed) and str(also.error) == str(failed.error)
    assert is_with_it or isinstance(also, Finished), "nobody waits for a dead process"
    assert answered(process) == undisturbed
    assert process.pid != pid


@pytest.mark.parametrize("action", ["save", "load"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_device_lost_while_a_state_is_saved_or_loaded_is_told_and_leaves_no_file(
    process: EngineProcess,
    undisturbed: list[int],
    fault: Path,
    tmp_path: Path,
    action: Literal["save", "load"],
    nth: int,
) -> None:
    assert answered(process) == undisturbed
    _, last = ended(process.submit(StateQuery(1, "save", tmp_path / "sound")))
    assert isinstance(last, StateAnswer)
    fault.write_text(f"answering wait {nth} {LOST}")
    path = tmp_path / ("lost" if action == "save" else "sound")
    _, failed = ended(process.submit(StateQuery(2, action, path)))
    assert isinstance(failed, Failed) and type(failed.error) is DeviceLost
    doing = "saving" if action == "save" else "loading"
    assert re.match(re.escape(process.ready.device_name) + f", {doing} a state: ", str(failed.error)), failed.error
    assert [path.name for path in tmp_path.iterdir()] == ["sound"]
    assert answered(process) == undisturbed


def test_a_device_lost_in_loading_is_told_and_the_next_start_works(
    process: EngineProcess, undisturbed: list[int], fault: Path
) -> None:
    killed_in_mid_answer(process)
    fault.write_text(f"loading wait 3 {LOST}")
    with pytest.raises(DeviceLost, match=r"loading model\.gguf: .*VK_ERROR_DEVICE_LOST"):
        process.submit(request(1))
    assert answered(process) == undisturbed


def test_a_process_killed_in_mid_answer_is_noticed_within_a_second_and_the_next_request_works(
    process: EngineProcess, undisturbed: list[int]
) -> None:
    process.start()
    failed, noticed_s = killed_in_mid_answer(process)
    assert isinstance(failed, Failed) and isinstance(failed.error, DeviceLost)
    assert "SIGKILL while answering 1 request (prompt tokens: 20)" in str(failed.error)
    begun_s = time.monotonic()
    assert answered(process) == undisturbed
    restart_s = time.monotonic() - begun_s  # longer than to notice an end, however busy the machine is
    assert noticed_s < max(restart_s, 1)
