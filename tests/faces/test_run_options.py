"""What `vkllm run` takes: models, prompts, files and options as in llama.cpp and ollama, and forms of answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import FAKE, Command, terminal

from vkllm.errors import InvalidParameter
from vkllm.faces.cli import app as cli
from vkllm.faces.cli.loading import IgnoredFlags, LoadingFlags
from vkllm.faces.cli.options import chosen
from vkllm.faces.cli.run import RunOptions
from vkllm.faces.prompt import MOST_BYTES, read_text, whole_prompt
from vkllm.faces.sampling import SamplingFlags, StructureFlags

SCHEMA = '{"type": "object"}'


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], None]:
    """Sets standard input: bytes of a pipe, or None for a person's terminal."""

    def set_stdin(content: bytes | None) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content or b"")))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: content is None)

    return set_stdin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunOptions, dict[str, Any]]]:
    """What `run` hands on, instead of running it."""
    calls: list[tuple[RunOptions, dict[str, Any]]] = []
    monkeypatch.setattr(
        "vkllm.faces.cli.run.run_model", lambda options, sampling: calls.append((options, sampling)) or True
    )
    return calls


def run(*arguments: str) -> None:
    assert cli.app(list(arguments), prog_name="vkllm", standalone_mode=False) is None


# --- Models and prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "model", "prompt"),
    [
        (["m", "Hi"], "m", "Hi"),
        (["m", "Why", "is", "it?"], "m", "Why is it?"),
        (["m"], "m", None),
        (["m", ""], "m", ""),
        (["-m", "m", "Hi"], "m", "Hi"),
        (["-m", "m", "Why", "so?"], "m", "Why so?"),
        (["Hi", "--model", "m"], "m", "Hi"),
        (["-m", "m", "-p", "Hi"], "m", "Hi"),
        (["m", "--prompt", "Hi"], "m", "Hi"),
        (["-hf", "o/r:Q8_0", "-p", "Hi"], "hf.co/o/r:Q8_0", "Hi"),
        (["-hf", "o/r", "Hi"], "hf.co/o/r", "Hi"),
        (["m", "--", "-5", "+ 3?"], "m", "-5 + 3?"),
    ],
)
def test_a_model_and_a_prompt_have_a_place_or_an_option(
    asked: list[Any], arguments: list[str], model: str, prompt: str | None
) -> None:
    run("run", *arguments)
    [(options, _)] = asked
    assert (options.model, options.prompt) == (model, prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model"),
        (["-p", "Hi"], "name a model"),
        (["Why is it?"], "'Why is it.' is no model but a prompt"),
        (["-m", "a", "-hf", "b"], "two models are named"),
        (["m", "Hi", "-p", "Ho"], "the prompt is given twice"),
    ],
)
def test_a_model_too_many_or_too_few_is_told(asked: list[Any], arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        run("run", *arguments)
    assert asked == []


def test_the_commands_that_take_one_model_take_it_by_place_or_option() -> None:
    assert chosen("a", None) == chosen(None, "a") == chosen(None, None, "a") == "a"
    with pytest.raises(InvalidParameter, match="a and b with -m"):
        chosen("a", "b")


def test_a_path_with_a_space_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.touch()
    assert chosen(str(path), None) == str(path)
    missing = str(tmp_path / "my missing model.gguf")
    assert chosen(missing, None) == chosen(None, missing) == missing  # which the store then calls missing


def test_files_and_a_pipe_are_appended_in_their_order(tmp_path: Path, stdin: Callable[[bytes | None], None]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("\n\n  indented\nlast  \n\n")
    two.write_bytes(b"\xef\xbb\xbftw\xc3\xb6\r\n")  # as some editors on Windows write it
    stdin(b"piped\n")
    assert whole_prompt("Sum up:", [one, two]) == "Sum up:\n\n  indented\nlast\n\ntwö\n\npiped"
    stdin(None)
    assert whole_prompt(None, [two]) == "twö"
    assert whole_prompt("Hi", []) == "Hi"
    assert whole_prompt(None, []) is None
    stdin(b"piped\n")
    assert whole_prompt("Hi", [Path("-")]) == "Hi\n\npiped"
    stdin(b"piped\n")
    assert whole_prompt(None, []) == "piped"


def test_a_dash_reads_a_terminal_to_its_end(stdin: Callable[[bytes | None], None]) -> None:
    stdin(None)
    assert sys.stdin.buffer.write(b"typed\n") == 6 and sys.stdin.buffer.seek(0) == 0
    assert whole_prompt("Hi", [Path("-")]) == "Hi\n\ntyped"


@pytest.mark.parametrize(
    ("prompt", "piped", "message"),
    [
        ("", None, "the prompt is empty"),
        ("   ", None, "the prompt is empty"),
        (None, b" \n\n", "there is no prompt"),
        (None, b"", "there is no prompt"),
        (None, b"GGUF\0\0", "standard input is not text"),
    ],
)
def test_no_words_are_no_prompt(
    stdin: Callable[[bytes | None], None], prompt: str | None, piped: bytes | None, message: str
) -> None:
    stdin(piped)
    with pytest.raises(InvalidParameter, match=message):
        whole_prompt(prompt, [])


def test_closed_standard_input_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidParameter, match="there is no prompt"):
        whole_prompt(None, [])
    assert whole_prompt("Hi", [Path("-")]) == "Hi"


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"PNG\0")
    with pytest.raises(InvalidParameter, match="picture is not text"):
        read_text(path)
    with pytest.raises(InvalidParameter, match=r"cannot read .*none: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(InvalidParameter, match=r"cannot read .*: Is a directory"):
        read_text(tmp_path)
    path.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(InvalidParameter, match="picture has more than 16 MiB"):
        read_text(path)


def test_an_endless_pipe_is_told() -> None:
    with pytest.raises(InvalidParameter, match="/dev/urandom has more than 16 MiB"):
        read_text(Path("/dev/urandom"))


def test_a_prompt_of_any_script_reaches_the_model(tmp_path: Path, tiny_gguf: Path) -> None:
    text = "日本語で「こんにちは」 😀 é"
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    done = Command(tmp_path).run([*FAKE, "run", "-m", str(tiny_gguf), "-f", str(path)])
    assert (done.returncode, done.stdout) == (0, f"user\n{text}\n")


# --- Sampling and loading --------------------------------------------------------------------------------------------


def test_llama_cpps_short_options_reach_sampling_and_loading(asked: list[Any]) -> None:
    line = (
        "run -m m -p Hi -n 128 -c 8192 -ngl 99 -s 7 -sys Short --temp 0.5 --top-k 3 --repeat-last-n 9 --stop A --stop B"
    )
    run(*line.split())
    [(options, sampling)] = asked
    assert options.system == "Short" and not options.wants_stats and not options.is_raw
    assert (options.loading["n_ctx"], options.loading["n_gpu_layers"]) == (8192, 99)
    assert sampling == {
        "max_tokens": 128,
        "temperature": 0.5,
        "top_k": 3,
        "penalty_window": 9,
        "seed": 7,
        "stop": ("A", "B"),
    }


def test_minus_one_is_no_limit_and_a_drawn_seed(asked: list[Any]) -> None:
    run("run", "m", "Hi", "-n", "-1", "-s", "-1")
    assert asked[0][1] == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_tokens": 0}, "^-n must be a whole number between 1"),
        ({"temperature": -1.0}, "^--temp must be"),
        ({"top_p": 2.0}, "^--top-p must be"),
        ({"penalty_window": -2}, "^--repeat-last-n must be"),
        ({"stop": [""]}, "^--stop must not contain an empty string"),
    ],
)
def test_a_value_out_of_range_names_the_option(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        SamplingFlags(**flags).arguments()


@pytest.mark.parametrize(
    ("value", "message"), [("abc", "'abc' should be a valid number"), ("", "'' should be a valid number")]
)
def test_a_value_that_is_no_number_is_shown(tmp_path: Path, value: str, message: str) -> None:
    done = Command(tmp_path).run([*FAKE, "run", "m", "Hi", "--temp", value])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: Invalid value for '--temp'") and message in done.stderr
    assert done.stderr.endswith("; see `vkllm run --help`\n")


def test_all_loading_options_have_their_argument() -> None:
    flags = LoadingFlags(2048, "all", "0", "q8_0", "f16", "1GiB", "1MiB")
    assert flags.arguments() == {
        "n_ctx": 2048,
        "n_gpu_layers": None,
        "device": "0",
        "type_k": "q8_0",
        "type_v": "f16",
        "vram_limit": 2**30,
        "ram_limit": 2**20,
    }


def test_options_without_effect_are_taken_and_told_of_once(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("run", "m", "Hi", "-t", "8", "-b", "2048", "-ub", "512", "-fa", "on")
    assert len(asked) == 1 and capsys.readouterr() == ("", "")  # a script need not be told
    for flags, names in ((IgnoredFlags(threads="8"), "-t"), (IgnoredFlags(batch_size="1", flash_attn="on"), "-b, -fa")):
        assert flags.note() == f"{names} has no effect here: the device computes, in steps as its speed allows"
    assert IgnoredFlags().note() is None


def test_a_person_is_told_of_options_without_effect(tmp_path: Path, tiny_gguf: Path) -> None:
    with terminal(Command(tmp_path), [*FAKE, "run", str(tiny_gguf), "Hi", "-t", "8", "-ub", "512"]) as screen:
        screen.expect("vkllm: note: -t, -ub has no effect here")
        screen.expect("user\nHi\n")
        screen.expect_exit()
        assert screen.exit_code == 0


# --- The form of an answer -------------------------------------------------------------------------------------------


def test_a_schema_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(SCHEMA)
    for flags in (
        StructureFlags(json_schema=SCHEMA),
        StructureFlags(json_schema=f"  {SCHEMA}"),
        StructureFlags(json_schema=str(path)),
        StructureFlags(json_schema_file=path),
        StructureFlags(output_format="json"),
    ):
        assert json.loads(flags.arguments()["json_schema"]) == {"type": "object"}


def test_a_grammar_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    gbnf, lark = 'root ::= "yes" | "no"', 'start: "yes" | "no"'
    path = tmp_path / "answer.gbnf"
    path.write_text(gbnf)
    assert StructureFlags(grammar=gbnf).arguments() == {"grammar": gbnf}
    assert StructureFlags(grammar=lark).arguments() == {"grammar": lark}
    assert StructureFlags(grammar=str(path)).arguments() == StructureFlags(grammar_file=path).arguments()
    assert StructureFlags(grammar_file=path).arguments() == {"grammar": gbnf}
    assert StructureFlags(regex="[ab]+").arguments() == {"regex": "[ab]+"}
    assert StructureFlags().arguments() == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"json_schema": '{"a'}, "the schema is not JSON: Unterminated string"),
        ({"json_schema": "none.json"}, "cannot read none.json: No such file"),
        ({"grammar": "none.gbnf"}, "cannot read none.gbnf: No such file"),
        ({"grammar_file": Path("none")}, "cannot read none: No such file"),
        ({"output_format": "xml"}, "the format can be json, not 'xml'"),
        ({"output_format": "json", "regex": "a"}, "an answer has one form"),
    ],
)
def test_a_form_that_is_none_is_told(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        StructureFlags(**flags).arguments()


def test_forms_have_llama_cpps_and_ollamas_options(asked: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(SCHEMA)
    for options in (["-j", SCHEMA], ["--json-schema", SCHEMA], ["-jf", str(path)], ["--format", "json"]):
        run("run", "m", "Hi", *options)
        assert asked[-1][1] == {"json_schema": SCHEMA}


@pytest.mark.gpu
@pytest.mark.weights
@pytest.mark.parametrize(
    ("options", "is_right"),
    [
        (
            ["-j", '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}'],
            lambda answer: isinstance(json.loads(answer)["n"], int),
        ),
        (["--regex", "[0-9]{3}"], lambda answer: len(answer) == 3 and answer.isdecimal()),
        (["--grammar", 'root ::= "yes" | "no"'], lambda answer: answer in ("yes", "no")),
    ],
)
def test_an_answer_of_the_default_model_has_the_form_asked_for(
    tmp_path: Path, default_model: Path, options: list[str], is_right: Callable[[str], bool]
) -> None:
    command = [*FAKE[:1], "-m", "vkllm", "run", str(default_model), "Give me a number.", *options, "--seed", "1"]
    done = Command(tmp_path).run([*command, "-n", "40"])
    assert done.returncode == 0, done.stderr
    assert is_right(done.stdout.removesuffix("\n"))
