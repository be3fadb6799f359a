"""vkllm in scripts and pipes: exit codes, standard output with the answer alone, colours only where they are wanted."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import fake_engine as fake
import pytest
from terminal import FAKE, REAL, Command, terminal

ESCAPE = "\x1b["
SLOW = chr(fake.SLOW)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """A run of the command that must leave no process and no temporary file."""
    command = Command(tmp_path, VKLLM_DATA=str(tmp_path / "data"))
    yield command
    assert command.leftovers() == []


@pytest.fixture
def tiny(tiny_gguf: Path) -> str:
    return str(tiny_gguf)


def shell(command: Command, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which $REAL and $FAKE are the command; the last line is the codes of its pipe's parts."""
    environment = command.environment | variables | {"PY": REAL[0], "CODE": FAKE[2]}
    environment.pop("PYTHONUNBUFFERED", None)  # with it, nothing would be left to write at the end
    head = 'REAL() { "$PY" -m vkllm "$@"; }; FAKE() { "$PY" -c "$CODE" "$@"; }\n'
    return subprocess.run(
        ["bash", "-c", f'{head}{line}\necho "${{PIPESTATUS[@]}}"'],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


# --- Exit codes and streams ------------------------------------------------------------------------------------------


def test_0_is_an_answer_and_2_an_error_of_one_line(command: Command, tiny: str) -> None:
    assert command.run([*FAKE, "run", tiny, "Hi"]).returncode == 0
    for arguments in (["run", "nothing", "Hi"], ["run", tiny, "Hi", "-n", "0"], ["rnu"], ["run", tiny, "--nope"]):
        done = command.run([*FAKE, *arguments])
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("vkllm: error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'? See `vkllm --help`"),
        (["run", "--nope"], "No such option: --nope"),
        (["show"], "Missing argument 'NAME'; see `vkllm show --help`"),
        (["devices", "x"], "unexpected extra argument"),
        (["bench", "-r", "0"], "'0' should be greater than or equal to 1; see `vkllm bench --help`"),
        (["perplexity", "m", "-f", "x", "-c", "0"], "'0' should be greater than or equal to 4"),
        (["tune", "--budget", "-3"], "'-3' should be greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_look(command: Command, arguments: list[str], words: str) -> None:
    done = command.run([*REAL, *arguments])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: ") and words in done.stderr


def test_an_answer_cut_before_its_form_is_complete_is_an_error(command: Command, tiny: str) -> None:
    done = command.run([*FAKE, "run", tiny, "--raw", "Xab", "-n", "3", "--regex", "(ab)*c"])
    assert (done.returncode, done.stdout) == (2, "aba\n")
    assert done.stderr.startswith("vkllm: error: the answer was cut after 3 tokens, before the form asked for")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{tiny}", "--raw", SLOW + "abc"],
        ["perplexity", "{tiny}", "-f", __file__, "-c", "64", "-dev", "slow start"],
    ],
)
def test_130_is_ctrl_c(command: Command, tiny: str, arguments: list[str]) -> None:
    given = [argument.format(tiny=tiny) for argument in arguments]
    process = command.start([*FAKE, *given])
    while not command.engine_pids():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_ctrl_c_while_a_pipe_is_read_is_130(command: Command, tiny: str) -> None:
    process = command.start([*FAKE, "run", tiny, "Sum up:"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("a beginning")
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):  # bytes that nobody has read yet
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "") and process.returncode == 130


def test_a_mistake_of_vkllm_is_code_1_and_a_traceback(command: Command, tiny: str) -> None:
    code = FAKE[2].replace("; main()", "\nvkllm.api.llm.LLM.chat = lambda *a, **b: 1 / 0\nmain()")
    done = command.run([FAKE[0], "-c", code, "run", tiny, "Hi"])
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


# --- Pipes and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ('FAKE run "$TINY" --raw "$(printf "X\\na")" -n 200 | head -1', ""),
        ("REAL list --all | head -1", "NAME"),
        ("REAL list --all --json | head -1", "["),
    ],
)
def test_a_reader_that_leaves_early_is_no_error(command: Command, tiny: str, line: str, first: str) -> None:
    done = shell(command, line, TINY=tiny)
    head, codes = done.stdout.splitlines()
    assert head.startswith(first) and done.stderr == ""
    assert codes in ("141 0", "0 0")  # whether all was written before the reader left


def test_141_is_nobody_reads(command: Command, tiny: str) -> None:
    done = shell(command, 'FAKE run "$TINY" --raw "$SLOW" | true', TINY=tiny, SLOW=SLOW + "abc")
    assert (done.stdout, done.stderr) == ("141 0\n", "")


@pytest.mark.parametrize("arguments", ['run "$TINY" Hi', "list", "list --json", "--help", "--version"])
def test_a_full_disk_is_one_line(command: Command, tiny: str, arguments: str) -> None:
    done = shell(command, f"FAKE {arguments} > /dev/full", TINY=tiny)
    assert done.stdout == "2\n"
    assert done.stderr == "vkllm: error: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('FAKE run "$TINY" Hi <&-', 0),
        ('FAKE run "$TINY" Hi >&-', 0),
        ('FAKE run "$TINY" Hi --stats 2>&-', 0),
        ('FAKE run "$TINY" <&-', 2),
        ('FAKE chat "$TINY" <&-', 2),
        ("REAL list >&-", 0),
        ("REAL --help >&-", 0),
        ("REAL run nothing Hi 2>&-", 2),
        ("REAL rm nothing <&-", 2),
        ("REAL <&-", 2),
    ],
)
def test_closed_streams_are_no_mistake(command: Command, tiny: str, line: str, code: int) -> None:
    done = shell(command, line, TINY=tiny)
    assert done.stdout.splitlines()[-1] == str(code)
    assert "Traceback" not in done.stderr and "error" not in done.stdout


# --- Colours and progress --------------------------------------------------------------------------------------------


def seen(command: Command, arguments: list[str], **variables: str) -> str:
    """What a terminal with colours gets, unless variables say otherwise."""
    command.environment |= {"TERM": "xterm-256color", **variables}
    with terminal(command, arguments, term=command.environment["TERM"]) as screen:
        return screen.expect_exit(30)


def test_a_pipe_gets_neither_colours_nor_progress(command: Command, tiny: str) -> None:
    for arguments in (
        ["run", tiny, "Hi", "--stats"],
        ["run", "nothing", "Hi"],
        ["list"],
        ["--help"],
        ["run", "--help"],
    ):
        done = command.run([*FAKE, *arguments])
        assert ESCAPE not in done.stdout + done.stderr


def test_a_terminal_gets_colours_and_progress(command: Command, tiny: str) -> None:
    assert f"{ESCAPE}31m{ESCAPE}1mvkllm: error:{ESCAPE}0m There is no" in seen(command, [*REAL, "run", "nothing", "Hi"])
    assert re.search(r"\x1b\[[0-9;]*36m", seen(command, [*REAL, "run", "--help"]))
    answer = seen(command, [*FAKE, "run", tiny, "Hi"])
    assert "loading tiny.gguf" in answer and re.search(r"\x1b\[[0-9;]*3\dm━", answer)


COLOUR = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(3[0-7]|9[0-7]|38)[;m]")


@pytest.mark.parametrize("arguments", [["run", "nothing", "Hi"], ["run", "--help"], ["run", "{tiny}", "Hi"]])
def test_no_color_is_honoured(command: Command, tiny: str, arguments: list[str]) -> None:
    given = [argument.format(tiny=tiny) for argument in arguments]
    assert COLOUR.search(seen(command, [*FAKE, *given]))
    assert not COLOUR.search(seen(command, [*FAKE, *given], NO_COLOR="1"))


def test_a_dumb_terminal_gets_text_alone(command: Command, tiny: str) -> None:
    for arguments in (["run", "nothing", "Hi"], ["run", "--help"], ["run", tiny, "Hi"], ["list"]):
        assert "\x1b" not in seen(command, [*FAKE, *arguments], TERM="dumb")


def test_progress_of_what_has_no_length_yet_shows_no_numbers(command: Command, tiny: str) -> None:
    assert "0/? bytes" not in seen(command, [*FAKE, "run", tiny, "Hi"])


def test_an_environment_that_can_show_no_letter_ends_no_answer(command: Command, tiny: str) -> None:
    done = shell(command, 'FAKE run "$TINY" "日本é"', TINY=tiny, PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    assert done.stdout.splitlines() == ["user", "???", "0"] and done.stderr == ""


def test_the_environment_of_tests_is_not_coloured_itself() -> None:
    assert "FORCE_COLOR" not in os.environ  # or tests of pipes above would tell nothing
