"""The time of a step on one and on several devices, against what was measured and against the arithmetic itself."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm.model.memory.exchange_memory import GROUP_FOURS, N_LINES
from vkllm.model.memory.limits import CHAINED_LAYER_S
from vkllm.model.memory.step_time import (
    EXCHANGE_S,
    HANDOVER_S,
    ROW_WRITES,
    ExchangeSpeed,
    between_ranks_s,
    handovers_s,
    layer_step_s,
    tensor_step_s,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import several_gpus


@pytest.mark.parametrize(
    ("gb_per_s", "spec", "matrix_format", "tok_per_s"), [(row[1], *row[3:]) for row in several_gpus.MEASURED]
)
def test_speeds_on_one_card_are_near_those_measured(
    gb_per_s: float, spec: several_gpus.ModelSpec, matrix_format: str, tok_per_s: float
) -> None:
    expected = several_gpus.expected_on_one(gb_per_s, spec, matrix_format)
    assert expected == pytest.approx(tok_per_s, rel=0.08), "four runs of one model differ by some percent too"


def test_speeds_on_two_cards_are_somewhat_above_those_that_mlc_published() -> None:
    # An exchange through peer-to-peer memory and kernels of 2023; reading takes most of the time with both.
    for rig, model, mode, published, whose in several_gpus.PUBLISHED:
        if "MLC" in whose:
            assert 1.0 < several_gpus.expected(rig, model, mode) / published < 1.2, rig


def test_a_flag_takes_what_it_took_between_two_h200s() -> None:
    # prototype: 2.1 us an exchange of flags; here with the 16 KB of a row of 4096 numbers and 43.8 GB/s
    speed = ExchangeSpeed(bytes_per_s=43.8e9, host_bytes_per_s=1e15)
    assert speed.sum_s(0, 2) == EXCHANGE_S == 2.1e-6
    assert speed.sum_s(4 * 4096, 2) == pytest.approx(2.1e-6 + (ROW_WRITES + 1) * 16384 / 43.8e9)


def test_a_row_is_written_as_often_as_the_kernel_does() -> None:
    flags = N_LINES * 48 / (16 * GROUP_FOURS)
    assert pytest.approx(2 + flags, abs=0.05) == ROW_WRITES


def test_many_cards_wait_for_system_memory() -> None:
    speed = ExchangeSpeed(bytes_per_s=10e9, host_bytes_per_s=40e9)
    assert speed.transfer_s(1000, 2) == pytest.approx(2 * 1000 / 10e9)
    assert speed.transfer_s(1000, 4) == pytest.approx(2.75 * 1000 / 10e9), "four links together are as fast as it"
    assert speed.transfer_s(1000, 8) == pytest.approx(8 * 2.875 * 1000 / 40e9)


def test_an_exchange_costs_a_dispatch_too() -> None:
    speed = ExchangeSpeed(latency_s=2e-6, bytes_per_s=1e15, host_bytes_per_s=1e15)
    assert between_ranks_s([4] * 160, 2, 25e-6, speed) == pytest.approx(160 * (2e-6 + 5e-6))
    measured = replace(speed, is_measured=True)
    assert between_ranks_s([4] * 160, 2, 25e-6, measured) == pytest.approx(160 * 2e-6), "which was timed with it"


def test_ranks_run_at_once_or_one_after_the_other() -> None:
    assert tensor_step_s([0.010, 0.012], 0.001) == pytest.approx(0.013)
    assert layer_step_s([0.010, 0.012], 0.001) == pytest.approx(0.023)
    assert handovers_s(0, 1, ExchangeSpeed()) == 0
    assert handovers_s(0, 3, ExchangeSpeed()) == pytest.approx(2 * HANDOVER_S)


def test_two_h200s_gain_only_where_reading_takes_longer_than_exchanging() -> None:
    one, two = (several_gpus.expected("2 x H200", "Llama-2 70B", mode) for mode in ("none", "tensor"))
    fixed_s = 80 * CHAINED_LAYER_S
    assert two < one * 2, "the fixed time of 80 layers does not shrink"
    assert 1 / two > (1 / one - fixed_s) / 2 + fixed_s
    assert two > 1.3 * one
    assert several_gpus.expected("2 x H200", "Llama-2 7B", "tensor") < several_gpus.expected(
        "2 x H200", "Llama-2 7B", "none"
    )
