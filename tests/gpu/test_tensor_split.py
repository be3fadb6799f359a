"""Models of which every device has a part of each matrix, here devices that are one named more than once, compute what
they do on one device."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import LAYER, STATE, TINY_SPEC, of_layers
from random_model import engine_config, write_random_model
from split_models import N_CTX, check_tensors, program
from tunings import with_decode

from vkllm.engine import opening
from vkllm.engine.requests import EngineConfig
from vkllm.errors import DeviceError, DeviceLost, DeviceTimeout
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.cached_blocks import CachedBlocks, CachePlace
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.exchange import Exchange
from vkllm.gpu.program.step import LIKELIEST, Part, Result
from vkllm.model.mixers import DeltaNet, Mamba2, ShortConvolution
from vkllm.model.spec import ModelSpec

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_shared_memory(device: Device) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")


def test_sums_are_links_of_a_chain(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = with_decode(tuning(device.info), is_chained=True)
    monkeypatch.setattr(program_module, "tuning", lambda info: choices)
    spec = of_layers(LAYER, replace(STATE, mixer=Mamba2(4, 16, 16, 1, 4)))  # whose squares are a sum outside the chain
    quantized = {"attn_output": "Q8_0", "ssm_out": "Q8_0", "ffn_down": "Q4_0"}
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, quantized), spec, N_CTX)
    check_tensors(device, config, 2)
    with program(device, config, 2, "tensor") as several:
        rank = several.ranks[0]
        sums = [d for d in rank.dispatches(1) if d.kernel.name == "all_reduce"]
        assert rank.tuning.decode.is_chained and len(sums) == 2 * spec.n_layers + 1
        assert [d.is_independent and d.values["n_awaited"] > 0 for d in sums] == [True, True, False, True, True]
        for width in (1, 64):  # only rows of prompts are packed, and added to the residual stream in its place
            sums = [d for d in rank.dispatches(width) if d.kernel.name == "all_reduce"]
            sums = [d for d in sums if d.values["columns"] == spec.d_model]
            assert {(d.values["packs"], d.values["adds"]) for d in sums} == {(int(width > 32), int(width > 32))}


def test_a_vocabulary_too_small_to_divide_is_whole_on_every_device(device: Device, tmp_path: Path) -> None:
    """With a cache of eight bits."""
    spec = of_layers(LAYER, n_vocab=30)
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {}), spec, N_CTX)
    check_tensors(device, config, 2, cached="q8_0")


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return engine_config(write_random_model(tmp_path / "model.gguf", TINY_SPEC, {}), TINY_SPEC, N_CTX)


def test_a_mask_is_for_the_whole_vocabulary(device: Device, config: EngineConfig) -> None:
    with program(device, config, 2, "tensor") as several:
        assert [rank.spec.n_vocab for rank in several.ranks] == [160, 141]
        for allowed in (7, 299):
            mask = np.zeros(-(-TINY_SPEC.n_vocab // 32), np.uint32)
            mask[allowed // 32] = 1 << allowed % 32
            part = Part(0, [3, 1, 4], 0, [0], results=[Result(mask=mask)])
            assert several.tokens(several.submit([part], is_prompt=True)) == [allowed]


def test_a_device_that_is_lost_ends_all_at_once_and_others_can_begin_anew(
    device: Device, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> int:
        raise DeviceLost("it fell off the bus")

    part = Part(0, [5], 0, [0], results=LIKELIEST)
    with program(device, config, 2, "tensor") as several:
        wanted = several.tokens(several.submit([part]))
        steps = [several.submit([part])]
        monkeypatch.setattr(several.ranks[1], "send_piece", lost)
        begin = time.process_time()  # all of which a device that waits takes: 8 s if it is not told
        for _ in range(2):
            with pytest.raises(DeviceLost, match=r"\(device 2 of 2\): it fell off the bus"):
                steps.append(several.submit([part]))
        with pytest.raises(DeviceLost, match=r"\(device 2 of 2\): it fell off the bus"):
            several.tokens(steps[0])
        for rank in several.ranks:
            rank.settle()  # the first device, which was waiting, has been told
        assert time.process_time() - begin < 2
    with program(device, config, 2, "tensor") as several:
        assert several.tokens(several.submit([part])) == wanted


def test_a_device_that_never_comes_is_named_in_time(
    device: Device, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "Exchange", partial(Exchange, polls_in_place=500))
    with program(device, config, 2, "tensor") as several:
        monkeypatch.setattr(several.ranks[1], "send_piece", lambda *_: 0)
        step = several.submit([Part(0, [5], 0, [0], results=LIKELIEST)])
        for _ in range(2):
            with pytest.raises(DeviceTimeout, match=r"rank 0\) waited in vain for .* \(rank 1\) in exchange 1: "):
                several.tokens(step)
        with pytest.raises(DeviceTimeout):
            several.settle()


def test_devices_that_choose_other_tokens_are_told(
    device: Device, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with program(device, config, 2, "tensor") as several:
        step = several.submit([Part(0, [5], 0, [0], results=LIKELIEST)])
        monkeypatch.setattr(several.ranks[1], "tokens", lambda _: [-5])
        with pytest.raises(DeviceError, match=r"device 2 of 2\): it chose other tokens than "):
            several.tokens(step)


STATES = of_layers(
    LAYER,
    *(replace(STATE, mixer=mixer) for mixer in (
        DeltaNet(2, 4, 16, 4), DeltaNet(4, 8, 16, 4, True, True), Mamba2(4, 16, 16, 2, 4), Mamba2(4, 16, 16, 1, 4),
        ShortConvolution(3, 96))),
)  # fmt: skip
"""A layer of each kind whose state is divided; of the last one in unequal parts."""


@pytest.mark.parametrize(("spec", "most_devices"), [(of_layers(LAYER, LAYER), 3), (STATES, 2)])
def test_what_is_cached_is_that_of_one_device(
    device: Device, tmp_path: Path, spec: ModelSpec, most_devices: int
) -> None:
    config = engine_config(write_random_model(tmp_path / "model.gguf", spec, {}), spec, N_CTX)
    prompt = np.random.default_rng(2).integers(0, spec.n_vocab, 40).tolist()
    place, stored = CachePlace([0, 1], state_slot=1), {39: 1} if spec is STATES else {}
    kept = []
    for n_devices in (1, most_devices):  # of three, two have the same key/value head
        with program(device, config, n_devices, "tensor" if n_devices > 1 else "layer") as made:
            made.submit([Part(0, prompt, 0, [0, 1], stored=stored)], is_prompt=True)
            blocks = CachedBlocks(made, 40, place)
            kept.append({name: blocks.read(name).copy() for name in blocks.names})
            if n_devices > 1:
                assert all(rank.share and len(rank.share.cached.states) == len(rank.states) for rank in made.ranks)
                made.submit([Part(0, prompt[::-1], 0, [0, 1], stored=stored)], is_prompt=True)
                blocks = CachedBlocks(made, 40, place)
                for name, words in kept[0].items():
                    blocks.write(name, partial(_copy, words))
                again = CachedBlocks(made, 40, place)
                assert all(np.array_equal(again.read(name), words) for name, words in kept[0].items())
    for name, words in kept[0].items():
        dtype = np.float32 if name.startswith("state") else np.float16
        assert nmse(kept[1][name].view(dtype), words.view(dtype)) < 1e-5, name


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, source)
