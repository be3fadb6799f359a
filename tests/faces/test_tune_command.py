"""`vkllm tune`: what it prints while and after trying, and what it says of choices that were kept."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from terminal import FAKE, REAL, Command, in_this_process
from tunings import H100, LLAMA_7B, kept

from vkllm.gpu.device.probe import devices
from vkllm.gpu.tuning.cache import keep, kept_tunings
from vkllm.gpu.tuning.space import ModelKind


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VKLLM_TUNING", "")
    command = Command(tmp_path)
    yield command
    assert command.leftovers() == []


def test_trials_speeds_and_the_choice_are_printed(command: Command, tiny_gguf: Path, tmp_path: Path) -> None:
    done = command.run([*FAKE, "tune", str(tiny_gguf), "--budget", "8"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "tiny.gguf on fake device, for about 8 s",
        "choice                       value          ms     best ms",
        "decode.size                    512       8.000      10.000  taken",
        "decode.groups                 1024      12.300       8.000",
        "decode.rows                      4      failed       8.000  fake device: its logits are wrong (error 1.0e+00)",
        "",
        "tok/s                        table      chosen",
        "decode at depth 0            100.0       125.0   +25.0 %",
        "decode at depth 192           50.0        55.0   +10.0 %",
        "prompt of 64                 800.0       800.0    +0.0 %",
        "",
        "3 trials (1 failed) in 4.0 s",
        "chosen   decode.size 512 (table: 256)",
        f"kept in  {tmp_path / 'cache' / 'tuning.json'}, for F32, 2 query heads a key head, 16 dimensions",
    ]


def test_json_has_the_same(command: Command, tiny_gguf: Path, tmp_path: Path) -> None:
    done = command.run([*FAKE, "tune", str(tiny_gguf), "--json"])
    fields = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert fields["choice"]["decode"]["size"] == 512 and fields["table"]["decode"]["size"] == 256
    assert fields["before"] == {"decode": {"0": 100, "192": 50}, "prefill": {"64": 800}}
    assert fields["key"]["model"] == {"weight_format": "F32", "n_sharing": 2, "head_dim": 16}
    assert [trial["is_better"] for trial in fields["trials"]] == [True, False, False]
    assert (fields["is_kept"], fields["seconds"]) == (True, 15)
    assert fields["changes"] == "decode.size 512 (table: 256)"
    assert fields["file"] == str(tmp_path / "cache" / "tuning.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "0"], "Invalid value for '--budget': '0' should be greater than or equal to 1"),
        (["--budget", "nan"], "Invalid value for '--budget': 'nan' should be less than or equal to 3600"),
        (["--show", "--reset"], "--show and --reset are two things to do"),
        (["--device", "missing"], "no Vulkan device was found"),
        (["-ctk", "q4_0"], "type_k (-ctk) must be f16 or q8_0, not 'q4_0'"),
        (["-ngl", "few"], "-ngl takes a number of layers or all, not 'few'"),
        (["--device", "none"], "-dev none is not in vkllm: it runs on Vulkan"),
    ],
)
@pytest.mark.usefixtures("command")
def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_gguf: Path,
    arguments: list[str],
    words: str,
) -> None:
    done = in_this_process(["tune", str(tiny_gguf), *arguments], monkeypatch, capsys)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"vkllm: error: {words}") and done.stderr.count("\n") == 1


def test_a_choice_that_cannot_be_kept_or_is_turned_off_is_said(
    command: Command, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command.run([*FAKE, "tune", str(tiny_gguf), "--device", "full"])
    assert done.returncode == 0 and "kept in" not in done.stdout
    assert done.stderr.startswith("vkllm: warning: ") and "cannot be written" in done.stderr
    command.environment["VKLLM_TUNING"] = "off"
    done = command.run([*FAKE, "tune", str(tiny_gguf)])
    assert done.returncode == 0 and done.stderr == "vkllm: warning: VKLLM_TUNING=off ignores the choice\n"


def test_ctrl_c_ends_it_at_once(command: Command, tiny_gguf: Path) -> None:
    code = FAKE[2].replace("; main()", "; import vkllm.engine.process.handle as handle; handle._STOP_S = 600; main()")
    process = command.start([*FAKE[:2], code, "tune", str(tiny_gguf), "--device", "slow steps"])
    assert process.stdout is not None
    while "decode.rows" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)  # an engine that does not listen would live for ten minutes
    assert (process.returncode, stderr) == (130, "")


@pytest.mark.gpu
def test_on_this_machine_it_keeps_a_choice_which_is_shown_used_and_removed(command: Command, tiny_gguf: Path) -> None:
    done = command.run([*REAL, "tune", str(tiny_gguf), "--budget", "2"])
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = kept_tunings() or ()
    lines = done.stdout.splitlines()
    assert lines[0] == f"tiny.gguf on {entry.key.device.split(' ', 1)[1]}, for about 2 s"
    assert lines[-1].endswith(f"for {entry.key.model}") and entry.key.model.weight_format == "F32"
    shown = command.run([*REAL, "tune", "--show"])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[:2] == [f"{entry.key.device}, {entry.key.driver}", f"{entry.key.model}: used"]
    assert "decode at depth 0" in shown.stdout and "  chosen  " in shown.stdout
    removed = command.run([*REAL, "tune", "--reset"])
    assert removed.stdout.startswith("Removed ") and kept_tunings() == []
    assert command.run([*REAL, "tune", "--reset"]).stdout == "Nothing is kept.\n"
    assert command.run([*REAL, "tune", "--show"]).stdout.startswith("Nothing is kept; `vkllm tune MODEL`")


@pytest.mark.gpu
def test_what_is_ignored_is_shown_with_its_reason(command: Command, tmp_path: Path) -> None:
    here = devices()[0]
    kind = ModelKind("Q4_0", 1, 64)
    keep(kept(here, kind))
    keep(kept(here, replace(kind, head_dim=128), rows=3))
    keep(kept(replace(here, driver_version="Mesa 1.0"), replace(kind, weight_format="Q8_0")))
    keep(kept(H100, LLAMA_7B, rows=4))

    def states() -> list[str]:
        shown = json.loads(command.run([*REAL, "tune", "--show", "--json"]).stdout)
        assert shown["is_damaged"] is False
        return [entry["state"] for entry in shown["tunings"]]

    assert states() == [
        "used",
        "ignored: a value that this device cannot run",
        f"ignored: another driver ({here.driver_name} Mesa 1.0)",
        "ignored: another device",
    ]
    text = command.run([*REAL, "tune", "--show"]).stdout
    assert "Q4_0, 1 query heads a key head, 128 dimensions: ignored: another device" in text
    command.environment["VKLLM_TUNING"] = "off"
    assert set(states()) == {"ignored: VKLLM_TUNING=off"}
    (tmp_path / "cache" / "tuning.json").write_text("{")
    done = command.run([*REAL, "tune", "--show"])
    assert (done.returncode, done.stderr) == (0, "") and "tuning.json is damaged or of another version" in done.stdout
    assert json.loads(command.run([*REAL, "tune", "--show", "--json"]).stdout)["is_damaged"] is True
