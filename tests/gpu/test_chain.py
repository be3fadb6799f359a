"""Chains (shaders/lib/chain.glsl): waits that are reached, waits that are given up, and who may chain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import cache_words, constants, filled, floats, nmse, planes, poisoned, step_buffer, words
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from random_weights import quantized
from tunings import H100, LLAMA_7B, with_decode

from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import DeviceTimeout
from vkllm.formats.quants import dequantize
from vkllm.gpu.device import kompute
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device, Dispatch, Recording
from vkllm.gpu.device.probe import NVIDIA_DRIVER
from vkllm.gpu.program import chains
from vkllm.gpu.program import decode as decode_module
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.chains import n_late
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.decode import Link
from vkllm.gpu.program.kernels import KERNELS, LINK_WORDS, NO_EXPERTS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, LOGITS, Part
from vkllm.gpu.tuning.space import is_possible
from vkllm.model.reference import rope_table
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

MATRICES = dict.fromkeys(
    ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"), "Q4_0"
)

BOUND = 4e-9  # of a product, as in test_matvec_fused.py

LONGEST = 60_000
"""Polls of a wait on lavapipe, whose invocations have 65,535 rounds for all their loops."""

ROWS, COLUMNS, FORMAT = 32, 256, "Q4_0"  # every subgroup has as many rows, and every workgroup: see `with_model`


@pytest.fixture(params=["fences", "memory model"])
def with_model(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to hand on. lavapipe runs the modules of the memory model right while all subgroups do the same."""
    monkeypatch.setattr(device, "has_memory_model", request.param == "memory model")
    if device.has_memory_model:
        monkeypatch.setattr(device, "has_integer_dot", True)  # the `_soft` modules have no such variant


class Links:
    """A chain of dispatches of matvec_fused, each with activations of its own."""

    def __init__(self, device: Device, n: int, groups: int = 1) -> None:
        rng = np.random.default_rng(n)
        self.raw = quantized(rng.normal(0, 0.05, (groups * ROWS, COLUMNS)).astype(np.float32), FORMAT)
        self.device, self.groups = device, groups
        self.chain = filled(device, np.zeros(LINK_WORDS * (n + 2), np.uint32))
        self.failure = device.buffer(1, is_host=True)
        self.sources = [poisoned(device, COLUMNS) for _ in range(n)]
        self.results = [poisoned(device, groups * ROWS) for _ in range(n)]
        self._planes = planes(device, self.raw, FORMAT)

    def dispatch(self, number: int, n_awaited: int) -> Dispatch:
        """The dispatch of a link, from 1 on."""
        source, result = self.sources[number - 1], self.results[number - 1]
        return self.device.dispatch(
            KERNELS["matvec_fused"],
            (*self._planes, source, source, source, result, self.chain, self.failure, *(5 * [source])),
            constants=(64, COLUMNS, 0, COLUMNS, 2, 1, 0, 0, 0, 0, LONGEST, 0, 0, 0, float_bits(1.0), 0, 0, *NO_EXPERTS),
            groups=(self.groups, 1),
            push=(self.groups * ROWS, 0, 0, number, n_awaited),
            weight_format=FORMAT,
            is_independent=number > 1,
            is_chained=True,
        )

    def begin(self) -> None:
        """What begin_step does, and NaN in all activations."""
        for buffer in (self.chain, self.failure):
            buffer.words[:] = 0
        for buffer in (*self.sources, *self.results):
            buffer.words[:] = 0x7FC00000

    def ended(self, number: int) -> int:
        """Workgroups of a link that have ended, as the host sees it now."""
        return int(self.chain.words[LINK_WORDS * (number + 1)])

    def fill(self, number: int, seed: int) -> np.ndarray:
        """Writes the activations of a link; the result that they give."""
        x = np.random.default_rng(seed).normal(0, 1, COLUMNS).astype(np.float32)
        self.sources[number - 1].words[:COLUMNS] = x.view(np.uint32)
        return dequantize(self.raw, FORMAT, (self.groups * ROWS, COLUMNS)).astype(np.float64) @ x

    def result(self, number: int) -> np.ndarray:
        return floats(self.results[number - 1], (self.groups * ROWS,))


def released_while_it_waits(links: Links, recording: Recording, release: Callable[[], None]) -> bool:
    """Submits a link and a second one that waits for it and for the host; whether the host released it in time.

    The host does it 0.3 ms after the first has ended, and only if the second, which takes less than a tenth of that,
    has not: so it waits. On a busy machine the host often comes too late, and the wait has been given up.
    """
    ticket = links.device.submit(recording)
    while links.ended(1) < links.groups:
        pass
    end = time.perf_counter() + 0.0003
    while time.perf_counter() < end:
        pass
    is_waiting = links.ended(2) == 0 and links.failure.words[0] == 0
    release()
    links.device.wait(ticket)
    assert links.failure.words[0] == links.chain.words[0] in (0, 2)
    return is_waiting and links.failure.words[0] == 0


ATTEMPTS = 2000


def test_a_wait_that_is_reached_ends_when_the_host_counts_and_sees_what_was_written(
    device: Device, with_model: None
) -> None:
    links, n_right = Links(device, 2, groups=2), 0
    recording = device.record([links.dispatch(1, 0), links.dispatch(2, 3)])

    def release() -> None:
        nonlocal wanted
        wanted = links.fill(2, seed)
        links.chain.words[2 * LINK_WORDS] += 1

    for seed in range(ATTEMPTS):
        links.begin()
        wanted = links.fill(1, seed)
        if released_while_it_waits(links, recording, release):
            assert nmse(links.result(2), wanted) < BOUND
            n_right += 1
        assert links.ended(2) == 2, "the chain goes on in any case"
        if n_right == 5:
            return
    raise AssertionError(f"the host was in time {n_right} times only")


def test_attention_waits_for_its_input(device: Device) -> None:
    """attention_fused at position 0, whose output is the new value."""
    links, n_heads, head_dim = Links(device, 1), 4, 32
    links.chain = chain = filled(device, np.zeros(16 * LINK_WORDS, np.uint32))
    qkv = poisoned(device, 3 * n_heads * head_dim)
    turns = filled(device, rope_table(Rope(10000.0, head_dim), 1))
    caches = [poisoned(device, cache_words("f16", 1, n_heads, head_dim)) for _ in range(2)]
    outputs = [poisoned(device, n) for n in (128, 64, 8)]
    attention = device.dispatch(
        KERNELS["attention_fused"],
        (
            *(qkv, turns, *caches, poisoned(device, 200), *outputs),
            *(step_buffer(device, [0], [0], [0]), chain, links.failure, qkv, qkv, qkv),
        ),
        constants=constants(
            "attention_fused",
            **dict(local_size=32, n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim, lanes=4, keys_at_once=4),
            **dict(heads_per_workgroup=1, rope_dims=head_dim, most_polls=LONGEST, scale=float_bits(1.0), quantizes=1),
        ),
        groups=(n_heads, 1),
        push=(1, 8 * LINK_WORDS, 2, 2),
        is_independent=True,
        is_chained=True,
    )
    recording = device.record([links.dispatch(1, 0), attention])
    x = np.random.default_rng(0).normal(0, 1, (3, n_heads, head_dim)).astype(np.float32)

    def release() -> None:
        qkv.words[: x.size] = x.reshape(-1).view(np.uint32)
        chain.words[2 * LINK_WORDS] += 1

    for _ in range(ATTEMPTS):
        links.begin()
        qkv.words[:] = 0x7FC00000
        if released_while_it_waits(links, recording, release):
            np.testing.assert_array_equal(floats(outputs[0], (n_heads, head_dim)), x[2].astype(np.float16))
            return
    raise AssertionError("the host was never in time")


def test_a_norm_waits_for_its_input(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_memory_model", True)
    monkeypatch.setattr(device, "has_integer_dot", True)
    links, n = Links(device, 2), 64
    x, y = poisoned(device, n), poisoned(device, n)
    norm = device.dispatch(
        KERNELS["norm"],
        (x, x, x, x, y, y, y, step_buffer(device, [0], [0]), x, links.chain, links.failure, y),
        constants=constants(
            "norm", local_size=64, columns=n, form=2, adds=1, factor=float_bits(1.0), most_polls=LONGEST
        ),
        push=(0, 2, 2),
        is_independent=True,
        is_chained=True,
    )
    recording = device.record([links.dispatch(1, 0), norm])

    def release() -> None:
        x.words[:n] = np.arange(n, dtype=np.float32).view(np.uint32)
        links.chain.words[2 * LINK_WORDS] += 1

    for _ in range(ATTEMPTS):
        links.begin()
        x.words[:] = 0x7FC00000
        if released_while_it_waits(links, recording, release):
            np.testing.assert_array_equal(floats(y, (n,)), 2 * np.arange(n))
            assert links.ended(2) == 1
            return
    raise AssertionError("the host was never in time")


def test_a_wait_in_vain_is_given_up_and_those_after_it_give_up_at_once(device: Device, with_model: None) -> None:
    n = 60
    links = Links(device, n)
    recordings = [device.record([links.dispatch(1, 1)]), device.record([links.dispatch(i + 1, 2) for i in range(n)])]
    took_s = []
    for recording in recordings:
        tries = []
        for _ in range(5):
            links.begin()
            for number in range(1, n + 1):
                links.fill(number, number)
            start_s = time.perf_counter()
            device.wait(device.submit(recording))
            tries.append(time.perf_counter() - start_s)
            assert links.failure.words[0] == links.chain.words[0] == 1, "the first link that waited in vain"
        took_s.append(min(tries))
    assert [links.ended(number) for number in range(1, n + 1)] == [1] * n
    # each gives up after 64 polls, a thousandth of the first one's; a wait of its own would take as long as that
    assert took_s[1] < n / 3 * took_s[0], took_s


def test_a_failure_that_the_host_has_not_dealt_with_lasts_into_the_next_step(device: Device) -> None:
    slot = step_buffer(device, [0], [0], [0])
    step, chain = device.buffer(slot.n_words), filled(device, np.full(8 * LINK_WORDS, 7, np.uint32))
    for failure in (5, 0):
        told = filled(device, np.array([failure], np.uint32))
        device.run(
            [
                device.dispatch(
                    KERNELS["begin_step"],
                    (slot, device.buffer(1), step, chain, told),
                    constants=(64, chain.n_words),
                    push=(0,),
                )
            ]
        )
        assert words(chain, (chain.n_words,)).tolist() == [failure] + [0] * (chain.n_words - 1)


def test_a_chained_dispatch_takes_the_module_of_the_memory_model_where_the_device_has_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    read = kompute.shader
    monkeypatch.setattr(kompute, "shader", lambda name: (taken.append(name), read(name))[1])
    for has_integer_dot, has_memory_model in ((True, True), (True, False), (False, False)):
        monkeypatch.setattr(device, "has_integer_dot", has_integer_dot)
        monkeypatch.setattr(device, "has_memory_model", has_memory_model)
        Links(device, 1).dispatch(1, 0)
    assert taken == ["matvec_fused_q4_0_memory_model", "matvec_fused_q4_0", "matvec_fused_q4_0_soft"]


# Programs and engines


def chained_program(device: Device, folder: Path) -> Program:
    """A small model whose decode steps are chained."""
    choices = with_decode(tuning(device.info), is_chained=True, groups=3)
    path = write_random_model(folder / "model.gguf", TINY_SPEC, MATRICES)
    return Program(device, TINY_SPEC, path, engine_config(path, TINY_SPEC).tensors, 64, choices=choices)


def awaits_one_too_many(patch: pytest.MonkeyPatch) -> None:
    """Has every link of a chain wait for one workgroup more than the link before it has."""
    chained = decode_module.chained

    def wrong(links: Sequence[Link]) -> list[Dispatch]:
        return chained([replace(link, n_groups=link.n_groups + link.has_chain) for link in links])

    patch.setattr(decode_module, "chained", wrong)


def test_a_step_that_waits_in_vain_is_a_timeout_and_other_choices_work_again(device: Device, tmp_path: Path) -> None:
    program = chained_program(device, tmp_path)
    wanted = program.logits(program.submit([Part(0, [1], 0, [0], results=LOGITS)]))
    chained = program.tuning
    assert chained.decode.is_chained
    with pytest.MonkeyPatch.context() as patch:
        awaits_one_too_many(patch)
        start_s = time.perf_counter()
        for results, read in ((LOGITS, program.logits), (LIKELIEST, program.tokens), ((), program.wait)):
            program.use(chained)
            step = program.submit([Part(0, [1], 0, [0], results=results)])
            for _ in range(2):
                with pytest.raises(
                    DeviceTimeout, match=r"\(number \d+ of the step\) waited in vain .* VKLLM_CHAINS=off"
                ):
                    read(step)
            with pytest.raises(DeviceTimeout, match="in vain"):
                program.submit([Part(0, [1], 0, [0], results=LIKELIEST)])
        assert time.perf_counter() - start_s < 30, "seconds, on a machine that is busy with other things"
    program.use(chained)
    np.testing.assert_array_equal(program.logits(program.submit([Part(0, [1], 0, [0], results=LOGITS)])), wanted)


def test_an_engine_says_on_which_device_what_waited_in_vain_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Device().info
    choices = with_decode(tuning(info), is_chained=True)
    monkeypatch.setattr(program_module, "tuning", lambda info: choices)
    config = engine_config(write_random_model(tmp_path / "model.gguf", TINY_SPEC, MATRICES), TINY_SPEC, 32)
    with pytest.MonkeyPatch.context() as patch:
        awaits_one_too_many(patch)
        with pytest.raises(DeviceTimeout) as raised:
            Engine(config)
    assert str(raised.value).startswith(f"{info.name}, loading model.gguf: ")
    assert "waited in vain for the dispatch before it" in str(raised.value)
    engine = Engine(config)
    engine.submit(Request(1, (1, 2, 3), SamplingParams(max_tokens=3, temperature=0), frozenset()))
    events = []
    while engine.has_work:
        events += engine.step()
    engine.close()
    assert isinstance(events[-1], Finished) and events[-1].stats.n_generated == 3


# Which devices chain


def test_only_nvidias_own_driver_may_chain() -> None:
    mesa_nvk, mesa_dozen = 19, 23
    assert tuning(H100).decode.is_chained
    for driver_id in (mesa_nvk, mesa_dozen, 0):
        other = replace(H100, driver_id=driver_id)
        assert tuning(other) == with_decode(tuning(H100), is_chained=False)
        assert not is_possible(tuning(H100), other, LLAMA_7B)


def test_the_driver_of_this_device_is_known(device: Device) -> None:
    known = {"llvmpipe": 13, "NVIDIA": NVIDIA_DRIVER, "radv": 3}
    assert device.info.driver_id == known.get(device.info.driver_name, device.info.driver_id) != 0


def test_dispatches_that_start_in_order_are_told_from_those_that_do_not(device: Device) -> None:
    assert KERNELS["start_order"].bindings == ("order",)
    kinds = ["wide", "narrow", "narrow", "wide", "wide", "narrow"]
    n_narrow = 256 * (device.info.n_cores or 2)
    assert n_late(device, kinds) == 0
    # 2 before 1: all of 2 are late. 1 before 0, a wide one, and 5 before 4: the same
    assert n_late(device, kinds, [0, 2, 1, 3, 4, 5]) == n_narrow
    assert n_late(device, kinds, [1, 0, 2, 3, 5, 4]) == 2 * n_narrow


@pytest.mark.parametrize(
    ("seen", "verdict"), [([0, 0], True), ([9, 0, 0], True), ([0, 9, 0], True), ([9, 0, 9], False), ([1, 1], False)]
)
def test_the_order_is_that_of_two_tries_of_three(
    device: Device, monkeypatch: pytest.MonkeyPatch, seen: list[int], verdict: bool
) -> None:
    tries = iter(seen)
    monkeypatch.setattr(chains, "n_late", lambda device, kinds: next(tries))
    assert chains.starts_in_order(device) == verdict
    assert list(tries) == []


@pytest.mark.parametrize(("in_order", "variable"), [(False, ""), (True, "off")])
def test_a_device_without_order_and_a_user_who_says_so_get_barriers(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool, variable: str
) -> None:
    monkeypatch.setattr(chains, "starts_in_order", lambda device: in_order)
    monkeypatch.setenv("VKLLM_CHAINS", variable)
    program = chained_program(device, tmp_path)
    assert not program.tuning.decode.is_chained
    fused = [d for d in program.dispatches(1, LIKELIEST) if "n_awaited" in d.kernel.push]
    assert len(fused) > 2
    assert all(d.values["most_polls"] == d.values["n_awaited"] == 0 and not d.is_independent for d in fused)
