"""The command line: what it prints where, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_engine as fake
import pytest
from gguf import GGMLQuantizationType
from terminal import FAKE, REAL, Command, in_this_process, terminal
from tiny_gguf import N_CTX, write_tiny_gguf

from vkllm import LLM, RunStats, __version__
from vkllm.faces.terminal import print_stats

SLOW = chr(fake.SLOW)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """A run of the command that must leave no process and no temporary file."""
    command = Command(tmp_path)
    yield command
    assert command.leftovers() == []


@pytest.fixture
def tiny(tiny_gguf: Path) -> str:
    return str(tiny_gguf)


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("vkllm: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


# --- Answers ---------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_nothing_else(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "Hi"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "user\nHi\n", "")


def test_the_answer_streams(command: Command, tiny: str) -> None:
    process = command.start([*FAKE, "run", tiny, "--raw", SLOW + "abc", "-n", "60"])
    assert process.stdout is not None
    assert process.stdout.read(1) == "a"
    assert process.poll() is None  # three seconds of it are still to come
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)


def test_the_system_message_goes_through_the_template(command: Command, tiny: str) -> None:
    for option in ("--system", "-sys"):
        assert command.run([*FAKE, "run", tiny, "Hi", option, "Be short"]).stdout == "system\nBe short\n"


def test_raw_and_a_model_without_a_template_continue_the_prompt(command: Command, tiny: str, tmp_path: Path) -> None:
    base = str(write_tiny_gguf(tmp_path / "base.gguf", template=None))
    assert command.run([*FAKE, "run", tiny, "Xab", "--raw", "-n", "3"]).stdout == "aba\n"
    assert command.run([*FAKE, "run", base, "Xab", "-n", "3"]).stdout == "aba\n"


def test_a_system_prompt_that_has_no_effect_is_told(command: Command, tiny: str, tmp_path: Path) -> None:
    done = command.run([*FAKE, "run", tiny, "Xab", "--raw", "-sys", "Be short"])
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "needs the chat template" in done.stderr and "--raw" in done.stderr
    base = str(write_tiny_gguf(tmp_path / "base.gguf", template=None))
    done = command.run([*FAKE, "run", base, "Xab", "-n", "3", "-sys", "Be short"])
    assert (done.returncode, done.stdout) == (0, "aba\n")
    assert "warning: base has no chat template" in done.stderr


def test_piped_input_is_the_prompt_or_comes_after_it(command: Command, tiny: str) -> None:
    assert command.run([*FAKE, "run", tiny], "piped\n").stdout == "user\npiped\n"
    assert command.run([*FAKE, "run", tiny, "Sum up:"], "text\n").stdout == "user\nSum up:\n\ntext\n"


def test_options_reach_the_engine(command: Command, tiny: str) -> None:
    prompt = chr(fake.SEED) + "x"
    for option in ("-s", "--seed"):
        assert command.run([*FAKE, "run", tiny, prompt, "--raw", option, "65", "-n", "2"]).stdout == "AA\n"
    every = "--temp 0.5 --top-k 5 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.1 --presence-penalty 0.2 -c 64 --device 0"
    done = command.run([*FAKE, "run", tiny, "Xab", "--raw", "--n-predict", "2", *every.split()])
    assert (done.returncode, done.stdout) == (0, "ab\n")


def test_n_minus_one_means_no_limit(command: Command, tiny: str) -> None:
    assert len(command.run([*FAKE, "run", tiny, "Xa", "--raw", "-n", "-1", "-c", "40"]).stdout) == 38 + 1


def test_an_answer_goes_on_beyond_the_context_on_request(command: Command, tiny: str) -> None:
    arguments = [*FAKE, "run", tiny, "Xab", "--raw", "-n", str(2 * N_CTX)]
    assert len(command.run(arguments).stdout.strip()) == N_CTX - 3
    assert len(command.run([*arguments, "--context-shift"]).stdout.strip()) == 2 * N_CTX


def test_stats_go_to_standard_error(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "Xab", "--raw", "-n", "5", "--stats"])
    assert done.stdout == "ababa\n"
    *lines, loading = done.stderr.splitlines()
    parts = re.fullmatch(r"loading (\S+) s \(file (\S+), process (\S+), device (\S+); text meanwhile (\S+)\)", loading)
    assert parts is not None
    total, *in_turn, _ = map(float, parts.groups())
    assert total == pytest.approx(sum(in_turn), abs=0.03)
    assert lines == [
        "device  fake device",
        f"model   tiny.gguf (llama, F32, context {N_CTX})",
        "prompt  3 tokens (0 cached), 30.00 tok/s",
        "answer  5 tokens, 8.00 tok/s, the first after 0.10 s",
    ]


@pytest.mark.parametrize(("n_shifts", "words"), [(0, None), (1, "full 1 time,"), (3, "full 3 times,")])
def test_stats_tell_of_a_full_context(
    fake_llm: Callable[..., LLM], capsys: pytest.CaptureFixture[str], n_shifts: int, words: str | None
) -> None:
    print_stats(fake_llm(), RunStats(3, 0, 5, 0.1, 0.1, 0.5, n_shifts))
    shown = capsys.readouterr().err
    assert (f"context {words} its middle dropped" in shown) if words else ("dropped" not in shown)


def test_what_the_driver_computes_wrongly_is_told(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "Hi", "--device", "wrong"])
    assert done.returncode == 0
    assert "the driver of fake device computes wrongly with dot products and matrices; slower kernels" in done.stderr


def test_a_cpu_driver_gets_a_warning_of_one_line(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "Hi", "--device", "cpu"])
    assert done.stdout == "user\nHi\n"
    assert done.stderr == "vkllm: warning: fake device is a Vulkan driver on the CPU, which is slow\n"


@pytest.mark.gpu
@pytest.mark.weights
def test_the_default_model_answers_on_this_machine(command: Command, default_model: Path) -> None:
    question = "What is the capital of France?"
    done = command.run([*REAL, "run", str(default_model), question, "-n", "10", "--temp", "0", "--stats"])
    assert done.returncode == 0
    assert "Paris" in done.stdout
    names = [line.split()[0] for line in done.stderr.splitlines() if not line.startswith("vkllm: warning: ")]
    assert names == ["device", "model", "prompt", "answer", "loading"]


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_keeps_what_there_is_and_exits_130(command: Command, tiny: str) -> None:
    process = command.start([*FAKE, "run", tiny, "--raw", chr(fake.ENDLESS) + "abc", "--stats"])
    assert process.stdout is not None
    assert process.stdout.read(2) == "ab"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert set(stdout) <= set("abc\n")
    assert stdout.endswith("\n")
    assert stderr.splitlines()[0] == "device  fake device"


def test_ctrl_c_while_loading_exits_130_without_a_word(command: Command, tiny: str) -> None:
    process = command.start([*FAKE, "run", tiny, "Hi", "--device", "slow start"])
    while not command.engine_pids():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_nothing(command: Command, tiny: str, number: signal.Signals) -> None:
    process = command.start([*FAKE, "run", tiny, "--raw", SLOW + "abc"])
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == -number


def test_a_closed_pipe_ends_it_quietly(command: Command, tiny: str) -> None:
    process = command.start([*FAKE, "run", tiny, "--raw", SLOW + "abc"])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_lost_engine_in_mid_answer_is_one_line(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "--raw", chr(fake.DIE) + "abc"])
    assert (done.returncode, done.stdout) == (2, "abc\n")
    assert done.stderr.startswith("vkllm: error: the engine's process was killed by SIGKILL while answering")
    assert done.stderr.count("\n") == 1


# --- Wrong input -----------------------------------------------------------------------------------------------------


def test_a_missing_file_is_one_line(command: Command, tmp_path: Path) -> None:
    assert_one_line_error(command.run([*REAL, "run", str(tmp_path / "none.gguf"), "Hi"]), "none.gguf", "no such file")


def test_an_unknown_name_is_one_line(command: Command) -> None:
    assert_one_line_error(command.run([*REAL, "run", "no-such-model", "Hi"]), "no-such-model", "smollm2")


def test_a_file_that_is_no_gguf_is_one_line(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("This is a letter, not a model. " * 100)
    assert_one_line_error(command.run([*REAL, "run", str(path), "Hi"]), "text.gguf")


@pytest.mark.parametrize("percent", [0, 10, 50, 90])
def test_a_cut_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_gguf: Path, tmp_path: Path, percent: int
) -> None:
    whole = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: len(whole) * percent // 100])
    assert_one_line_error(in_this_process(["run", str(path), "Hi"], monkeypatch, capsys), "cut.gguf")


def test_an_unknown_architecture_is_one_line(command: Command, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba")
    assert_one_line_error(command.run([*REAL, "run", str(path), "Hi"]), "other.gguf", "mamba")


def test_an_unknown_quantization_is_one_line(command: Command, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "iq.gguf", down_format=GGMLQuantizationType.Q8_K)
    assert_one_line_error(command.run([*REAL, "run", str(path), "Hi"]), "iq.gguf", "Q8_K")


def test_a_prompt_longer_than_the_context_is_one_line_with_both_numbers(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "a" * 50, "--raw", "-c", "20"])
    assert_one_line_error(done, "50 tokens", " 20")


def test_no_device_is_one_line(command: Command, tiny: str) -> None:
    assert_one_line_error(command.run([*FAKE, "run", tiny, "Hi", "--device", "missing"]), "no Vulkan device")


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", [["run", "{tiny}", "Hi"], ["devices"]])
def test_no_vulkan_driver_is_one_line(tmp_path: Path, tiny: str, arguments: list[str]) -> None:
    nothing = str(tmp_path / "none.json")
    command = Command(tmp_path, VK_ICD_FILENAMES=nothing, VK_DRIVER_FILES=nothing)
    done = command.run([*REAL, *(argument.format(tiny=tiny) for argument in arguments)])
    assert_one_line_error(done, "Vulkan")
    assert command.leftovers() == []


def test_no_prompt_at_all_is_one_line(command: Command, tiny: str) -> None:
    assert_one_line_error(command.run([*FAKE, "run", tiny]), "no prompt")
    assert_one_line_error(command.run([*FAKE, "run", tiny], " \n"), "no prompt")


def test_a_parameter_out_of_range_is_one_line(command: Command, tiny: str) -> None:
    assert_one_line_error(command.run([*FAKE, "run", tiny, "Hi", "--temp", "-1"]), "--temp must be")


@pytest.mark.parametrize("arguments", [["run"], ["run", "m", "--no-such-option"], ["sing"], ["run", "m", "-n", "many"]])
def test_wrong_usage_exits_2(command: Command, arguments: list[str]) -> None:
    done = command.run([*REAL, *arguments])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = Command(tmp_path, VKLLM_DEBUG="1").run([*REAL, "run", "no-such-model", "Hi"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ModelNotFound" in done.stderr


# --- In a terminal ---------------------------------------------------------------------------------------------------


def test_a_chat_keeps_its_history(command: Command, tiny: str) -> None:
    with terminal(command, [*FAKE, "run", tiny, "--stats"]) as screen:
        screen.expect("tiny on fake device.*\n>>> ")
        screen.type("Hi\n")
        screen.expect("user\nHi\n")
        assert "prompt  21 tokens" in screen.expect(">>> ")
        screen.type("More\n")
        # The first turn (21 tokens, the answer of 7 and its end of 2) and the second of 23.
        assert "prompt  53 tokens" in screen.expect(">>> ")
        screen.type("/clear\n")
        screen.expect(">>> ")
        screen.type("Hi\n")
        assert "prompt  21 tokens" in screen.expect("answer .*\n>>> ")
        screen.type("/bye\n")
        screen.expect_exit()
        assert screen.exit_code == 0


def test_ctrl_c_in_a_chat_stops_the_answer_and_not_the_program(command: Command, tiny: str) -> None:
    with terminal(command, [*FAKE, "run", tiny, "--device", "slow steps"]) as screen:
        screen.expect(">>> ")
        screen.type("a long message that goes on and on about nothing\n")
        screen.expect("us")
        screen.type("\x03")
        assert "nothing" not in screen.expect("\n>>> ")
        screen.type("Hi\n")
        screen.expect("user\n")
        screen.expect(">>> ")
        time.sleep(0.2)  # Python misses a Ctrl-C in the first microseconds after input() has shown its prompt
        screen.type("\x03")
        screen.expect("/bye to leave.\n>>> ")
        screen.type("\x04")
        screen.expect_exit()
        assert screen.exit_code == 0


def test_a_chat_goes_on_after_a_refused_message_and_a_lost_engine(command: Command, tiny: str) -> None:
    with terminal(command, [*FAKE, "run", tiny, "-c", "60", "--device", "slow steps"]) as screen:
        screen.expect(">>> ")
        screen.type("a message that is longer than the context\n")
        screen.expect(r"vkllm: error: the prompt has \d+ tokens, but the context holds 60")
        screen.expect(">>> ")
        screen.type("Hi\n")
        screen.expect("us")
        for pid in command.engine_pids():
            os.kill(pid, signal.SIGKILL)
        screen.expect("vkllm: error: the engine's process was killed by SIGKILL while answering")
        screen.expect(">>> ")
        screen.type("Hi\n")
        screen.expect("user\nHi\n")
        screen.expect(">>> ")
        screen.type("/bye\n")
        screen.expect_exit()


def test_several_lines_are_one_message(command: Command, tiny: str) -> None:
    with terminal(command, [*FAKE, "run", tiny]) as screen:
        screen.expect(">>> ")
        screen.type('"""one\n')
        screen.expect(r"\.\.\. ")
        screen.type('two"""\n')
        screen.expect("user\none\ntwo\n")
        screen.type("/bye\n")
        screen.expect_exit()


def test_ctrl_c_in_a_terminal_ends_a_single_answer_with_130(command: Command, tiny: str) -> None:
    with terminal(command, [*FAKE, "run", tiny, "--raw", "Xabc", "--device", "slow steps"]) as screen:
        screen.expect("abc")
        screen.type("\x03")
        screen.expect_exit(3)
        assert screen.exit_code == 130


# --- The other commands ----------------------------------------------------------------------------------------------


def test_version(command: Command) -> None:
    assert command.run([*REAL, "--version"]).stdout == f"{__version__}\n"


@pytest.mark.gpu
def test_devices_shows_heaps_limits_and_features(command: Command) -> None:
    text = command.run([*REAL, "devices"]).stdout
    devices = json.loads(command.run([*REAL, "devices", "--json"]).stdout)
    assert [device["index"] for device in devices] == list(range(len(devices)))
    assert text.count("* ") == 1
    for device in devices:
        assert device["name"] in text
        assert device["heaps"][0]["size_bytes"] > 0
        assert set(device["features"]) <= set(text.replace(",", "").split())


@pytest.mark.parametrize("options", [("--temp", "9999"), ("-c", "2")])
def test_on_a_cpu_driver_an_error_is_one_line_alone(command: Command, tiny: str, options: tuple[str, str]) -> None:
    done = command.run([*FAKE, "run", tiny, "hello", "--device", "cpu", *options])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vkllm: error: ") and done.stderr.count("\n") == 1
