"""Tuning a real program: it ends in seconds, keeps what it finds for the next load, and rules wrong results out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import TINY_SPEC, wide_spec
from random_model import engine_config, write_random_model

from vkllm.engine.requests import EngineConfig
from vkllm.errors import InvalidParameter
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LIKELIEST, Part
from vkllm.gpu.tuning import tuner
from vkllm.gpu.tuning.cache import kept_choice, kept_tunings
from vkllm.gpu.tuning.search import Trial
from vkllm.gpu.tuning.space import model_kind
from vkllm.gpu.tuning.tuner import tune

pytestmark = pytest.mark.gpu

SPEC = wide_spec(n_layers=1)  # what is timed takes as long as the layers
MATRICES = ("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")
PROMPT = [int(t) for t in np.random.default_rng(5).integers(0, SPEC.n_vocab, 40)]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKLLM_TUNING")


@pytest.fixture(autouse=True)
def without_matrices(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fields make a difference on every device."""
    monkeypatch.setattr(device, "info", replace(device.info, matrix_shape=None))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = tmp_path_factory.mktemp("random") / "model.gguf"
    return engine_config(write_random_model(path, SPEC, dict.fromkeys(MATRICES, "Q8_0")), SPEC)


@pytest.fixture
def load(device: Device, config: EngineConfig) -> Iterator[Callable[[], Program]]:
    def load() -> Program:
        kept = kept_choice(device.info, model_kind(config.spec, config.tensors))
        return Program(device, config.spec, config.path, config.tensors, config.n_ctx, choices=kept)

    yield load


def speed_by(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Tuning], float]) -> None:
    """Has timed steps run, but take so many seconds."""
    steps_s, run_rows = tuner._Timer._steps_s, tuner._Timer._run_rows

    def step(self: tuner._Timer, depth: int) -> float:
        steps_s(self, depth)
        return seconds(self._program.tuning)

    def rows(self: tuner._Timer, first: int, n_rows: int) -> float:
        run_rows(self, first, n_rows)
        return seconds(self._program.tuning) * n_rows / 8

    monkeypatch.setattr(tuner._Timer, "_steps_s", step)
    monkeypatch.setattr(tuner._Timer, "_run_rows", rows)


def greedy(program: Program) -> list[int]:
    """Tokens that follow PROMPT."""
    table = list(range(program.n_blocks))
    tokens = program.tokens(program.submit([Part(0, PROMPT, 0, table, results=LIKELIEST)], is_prompt=True))
    for position in range(len(PROMPT), len(PROMPT) + 10):
        tokens += program.tokens(program.submit([Part(0, tokens[-1:], position, table, results=LIKELIEST)]))
    return tokens


def test_it_ends_in_about_its_budget_and_the_next_load_uses_what_it_found(
    load: Callable[[], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = load()
    trials: list[Trial] = []
    ended_s: list[float] = []
    final: list[Tuning] = []
    expected = greedy(program)
    speeds = tuner._Timer.speeds
    monkeypatch.setattr(tuner._Timer, "speeds", lambda self, choices: final.append(choices) or speeds(self, choices))
    start_s = time.perf_counter()
    report = tune(
        program, 3.0, on_trial=lambda trial: (trials.append(trial), ended_s.append(time.perf_counter() - start_s))
    )
    # However slow the machine is: what is under way at the end is ended, and two choices are compared.
    assert sum(seconds > tuner.END_SHARE * 3.0 for seconds in ended_s) <= 2
    assert len(final) == 4
    assert report.trials == tuple(trials)
    assert report.is_kept and [kept.choice for kept in kept_tunings() or ()] == [report.choice]
    assert list(report.before.decode) == list(report.after.decode)
    assert list(report.before.prefill) == list(report.after.prefill)
    assert all(speed > 0 for speed in (*report.after.decode.values(), *report.after.prefill.values()))
    assert program.tuning == load().tuning == report.choice
    assert greedy(program) == greedy(load()) == expected


def test_the_fastest_choice_is_found_used_kept_and_loaded(
    load: Callable[[], Program], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuning(device.info)
    best = replace(
        table, keys_at_once=table.keys_at_once // 2, decode=replace(table.decode, rows=table.decode.rows // 2)
    )

    def seconds(choices: Tuning) -> float:
        is_near = choices.decode.rows == best.decode.rows, choices.keys_at_once == best.keys_at_once
        return 0.01 - 0.002 * sum(is_near)

    speed_by(monkeypatch, seconds)
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ("decode.rows",))
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ("keys_at_once",))
    program = load()
    expected = greedy(program)
    report = tune(program, 600.0)
    assert (report.table, report.choice) == (table, best)
    assert list(report.after.decode) == [0, 192] and list(report.after.prefill) == [64]
    assert report.before.decode[0] == pytest.approx(100) and report.after.decode[0] == pytest.approx(1 / 0.006)
    assert program.tuning == best and kept_choice(device.info, model_kind(program.spec, program.tensors)) == best
    assert load().tuning == best
    assert greedy(load()) == expected
    monkeypatch.setenv("VKLLM_TUNING", "off")
    assert load().tuning == table


def test_a_choice_with_other_logits_is_ruled_out_however_fast(
    load: Callable[[], Program], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuning(device.info)
    speed_by(monkeypatch, lambda choices: 0.01 if choices == table else 0.001)
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ("decode.groups",))
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ("tile_tokens",))
    logits = Program.logits
    right = {table.decode.groups: 1.0, 2 * table.decode.groups: 1.05}  # the others: no numbers
    monkeypatch.setattr(
        Program, "logits", lambda self, step: logits(self, step) * right.get(self.tuning.decode.groups, float("nan"))
    )
    report = tune(load(), 600.0)
    failed = [trial for trial in report.trials if trial.field == "decode.groups"]
    assert len(failed) == 2 and all(trial.seconds is None and "logits are wrong" in trial.failure for trial in failed)
    assert report.choice.decode == table.decode
    assert report.choice.tile_tokens != table.tile_tokens


def test_what_is_much_slower_in_a_narrow_step_does_not_run_in_a_wide_one(
    load: Callable[[], Program], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuning(device.info)
    monkeypatch.setattr(tuner, "TRIED_WIDTHS", (8, 16, 64))
    speed_by(monkeypatch, lambda choices: 0.001 if choices == table else 0.0041)
    run_rows, ran = tuner._Timer._run_rows, []

    def noted(self: tuner._Timer, first: int, n_rows: int) -> float:
        ran.append((self._program.tuning.tile_tokens, n_rows))
        return run_rows(self, first, n_rows)

    monkeypatch.setattr(tuner._Timer, "_run_rows", noted)
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ())
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ("tile_tokens",))
    report = tune(load(), 600.0)
    assert {(table.tile_tokens, 16), (table.tile_tokens, 64)} <= set(ran)
    assert {n_rows for tile_tokens, n_rows in ran if tile_tokens != table.tile_tokens} == {16}
    assert {trial.failure for trial in report.trials} == {"8 ms for 16 rows, too slow to be tried with more"}


def test_what_does_not_prove_faster_in_the_end_is_taken_back(
    load: Callable[[], Program], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuning(device.info)
    is_searching = True
    speed_by(monkeypatch, lambda choices: 0.005 if is_searching and choices != table else 0.01)
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ("decode.rows",))
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ())
    speeds = tuner._Timer.speeds

    def last(self: tuner._Timer, choices: Tuning) -> object:
        nonlocal is_searching
        is_searching = False
        return speeds(self, choices)

    monkeypatch.setattr(tuner._Timer, "speeds", last)
    report = tune(load(), 600.0)
    assert any(trial.is_better for trial in report.trials)
    assert report.choice == table and report.after == report.before


def test_an_interruption_ends_it_soon_and_keeps_nothing(load: Callable[[], Program], device: Device) -> None:
    trials: list[Trial] = []
    program = load()
    with pytest.raises(InvalidParameter, match="interrupted"):
        tune(program, 600.0, on_trial=trials.append, is_interrupted=lambda: len(trials) >= 1)
    assert len(trials) == 1
    assert program.tuning == tuning(device.info) and kept_tunings() == []


def test_a_folder_that_cannot_be_written_costs_only_the_file(
    load: Callable[[], Program], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ())
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ())
    assert not tune(load(), 1.0).is_kept


@pytest.mark.parametrize("n_ctx", [2, 33, 65, 100])
def test_a_short_context_is_enough(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_ctx: int) -> None:
    path = write_random_model(tmp_path / "tiny.gguf", TINY_SPEC, dict.fromkeys(MATRICES, "Q8_0"))
    config = engine_config(path, TINY_SPEC)  # many steps, of few numbers
    monkeypatch.setattr(tuner, "DECODE_FIELDS", ())
    monkeypatch.setattr(tuner, "PREFILL_FIELDS", ())
    monkeypatch.setattr(tuner, "STEPS_S", 1.0)  # as many steps as there is room for
    report = tune(Program(device, config.spec, config.path, config.tensors, n_ctx), 600.0)
    # 64 tokens are left for the steps that are timed
    assert list(report.after.decode) == {2: [0], 33: [0], 65: [0, 32], 100: [0, 64]}[n_ctx]
    assert list(report.after.prefill) == {2: [8], 33: [64], 65: [64], 100: [64]}[n_ctx]


def test_a_program_takes_other_choices_with_steps_in_flight(load: Callable[[], Program], device: Device) -> None:
    program, table = load(), tuning(device.info)
    expected = greedy(program)
    step = program.submit([Part(0, [1], 0, [0], results=LIKELIEST)])
    other = replace(table, tile_tokens=table.tile_tokens * 2, decode=replace(table.decode, rows=1, groups=2))
    program.use(other)
    assert program.tuning == other
    program.tokens(step)
    assert greedy(program) == expected
    program.use(table)
    assert greedy(program) == expected
