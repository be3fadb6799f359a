"""`vkllm tune`: has a model try what its device runs fastest, and shows or removes what was kept of that.

It prints; `LLM.tune` tries and keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vkllm import LLM, NoDevice, TuningReport, VkllmError
from vkllm.faces.cli.one_device import check_one_device
from vkllm.faces.terminal import complain, file_title, loading_bar, print_json, say
from vkllm.gpu.device.probe import DeviceInfo, devices
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.tuning.cache import (
    KeptTuning,
    TokenSpeeds,
    forget,
    is_off,
    kept_tunings,
    tuning_key,
    tuning_path,
    why_ignored,
)
from vkllm.gpu.tuning.search import Trial
from vkllm.gpu.tuning.space import DECODE_FIELDS, PREFILL_FIELDS, value_of
from vkllm.store import FoundModel


def tune_model(model: FoundModel, loading: Mapping[str, Any], *, budget_s: float, as_json: bool) -> None:
    """Tunes, and prints each trial, speeds before and after, and the choice. loading: arguments of LLM.

    Raises any VkllmError.
    """
    check_one_device(loading, "tuned")
    with loading_bar() as on_progress:
        llm = LLM(model, **loading, on_progress=on_progress)
    with llm:
        if not as_json:
            say(f"{file_title(llm)} on {llm.device_name}, for about {budget_s:g} s")
            print(f"{'choice':<26}{'value':>8}{'ms':>12}{'best ms':>12}", flush=True)
        report = llm.tune(budget_s, None if as_json else _print_trial)
    if as_json:
        print_json(_report_fields(report))
    else:
        print("\n".join(_report_lines(report)))
    if not report.is_kept:
        complain("warning", f"{tuning_path()} cannot be written, so the choice is not kept")
    elif is_off():
        complain("warning", "VKLLM_TUNING=off ignores the choice")


def show_kept(*, as_json: bool) -> None:
    """Prints all that is kept, with whether it is used here, and if not, why."""
    try:
        found = devices()
    except NoDevice:
        found = []
    kept = kept_tunings()
    if as_json:
        entries = [asdict(entry) | {"state": _state(entry, found)} for entry in kept or ()]
        print_json({"file": str(tuning_path()), "is_damaged": kept is None, "is_off": is_off(), "tunings": entries})
        return
    if kept is None:
        print(f"{tuning_path()} is damaged or of another version of vkllm, and ignored.")
    elif not kept:
        print("Nothing is kept; `vkllm tune MODEL` finds what this device runs fastest.")
    for entry in kept or ():
        say("\n".join(_kept_lines(entry, _state(entry, found), found)))


def remove_kept() -> None:
    """Removes all that is kept. Raises VkllmError if the file cannot be removed."""
    try:
        was_there = forget()
    except OSError as error:
        raise VkllmError(f"{tuning_path()} cannot be removed ({error.strerror}); remove it yourself") from error
    print(f"Removed {tuning_path()}." if was_there else "Nothing is kept.")


def _print_trial(trial: Trial) -> None:
    said = "taken" if trial.is_better else trial.failure
    seconds = "failed" if trial.seconds is None else f"{1000 * trial.seconds:.3f}"
    value = f"{trial.value!s:>8}"
    print(f"{trial.field:<26}{value}{seconds:>12}{1000 * trial.best_seconds:>12.3f}  {said}".rstrip(), flush=True)


def _report_lines(report: TuningReport) -> Iterator[str]:
    yield ""
    yield from _speed_lines(report.before, report.after)
    yield ""
    changes = _changes(report.table, report.choice)
    n_failed = sum(trial.seconds is None for trial in report.trials)
    failed = f" ({n_failed} failed)" if n_failed else ""
    yield f"{len(report.trials)} trials{failed} in {report.seconds:.1f} s"
    yield f"chosen   {changes or 'what the table says'}"
    if report.is_kept:
        yield f"kept in  {tuning_path()}, for {report.key.model}"


def _speed_lines(before: TokenSpeeds, after: TokenSpeeds) -> Iterator[str]:
    yield f"{'tok/s':<26}{'table':>8}{'chosen':>12}"
    rows = [(f"decode at depth {n}", speed, after.decode[n]) for n, speed in before.decode.items()]
    rows += [(f"prompt of {n}", speed, after.prefill[n]) for n, speed in before.prefill.items()]
    for name, old, new in rows:
        yield f"{name:<26}{old:>8.1f}{new:>12.1f}{100 * (new / old - 1):>+8.1f} %"


def _changes(table: Tuning, choice: Tuning) -> str:
    """The fields that differ, as "field value (table: value)"."""
    return ", ".join(
        f"{field} {value_of(choice, field)} (table: {value_of(table, field)})"
        for field in (*DECODE_FIELDS, *PREFILL_FIELDS)
        if value_of(choice, field) != value_of(table, field)
    )


def _state(kept: KeptTuning, found: list[DeviceInfo]) -> str:
    """Whether an entry is used on this machine."""
    if is_off():
        return "ignored: VKLLM_TUNING=off"
    reasons = [why_ignored(kept, info, tuning_key(info, kept.key.model)) for info in found]
    if None in reasons:
        return "used"
    # of the reasons, that of the device that it was found for
    return f"ignored: {next((reason for reason in reasons if reason != 'another device'), 'another device')}"


def _kept_lines(kept: KeptTuning, state: str, found: list[DeviceInfo]) -> Iterator[str]:
    tables = [tuning(info) for info in found if tuning_key(info, kept.key.model).device == kept.key.device]
    yield f"{kept.key.device}, {kept.key.driver}"
    yield f"{kept.key.model}: {state}"
    for line in _speed_lines(kept.before, kept.after):
        yield f"  {line}"
    if tables:
        yield f"  chosen  {_changes(tables[0], kept.choice) or 'what the table says'}"
    yield ""


def _report_fields(report: TuningReport) -> dict[str, Any]:
    return asdict(report) | {"changes": _changes(report.table, report.choice), "file": str(tuning_path())}
