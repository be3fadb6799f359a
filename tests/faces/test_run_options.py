"""What `vkllm run` takes: models, prompts, files and options as in llama.cpp and ollama, and forms of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import FAKE, REAL, Command, in_this_process

from vkllm.errors import InvalidParameter
from vkllm.faces.cli import app as cli
from vkllm.faces.cli.loading import LoadingFlags
from vkllm.faces.cli.options import chosen
from vkllm.faces.cli.run import RunOptions
from vkllm.faces.sampling import SamplingFlags, StructureFlags

SCHEMA = '{"type": "object"}'


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


def test_what_is_shown_of_thoughts_can_be_chosen(asked: list[Any]) -> None:
    for options, thoughts in (
        ([], "on a terminal"),
        (["--reasoning-format", "auto"], "on a terminal"),
        (["--hidethinking"], "hidden"),
        (["--skip-chat-parsing"], "printed"),
    ):
        run("run", "m", "Hi", *options)
        assert asked[-1][0].thoughts == thoughts
    with pytest.raises(InvalidParameter, match="contradict"):
        run("run", "m", "Hi", "--hidethinking", "--skip-chat-parsing")
    with pytest.raises(InvalidParameter, match="--skip-chat-parsing"):
        run("run", "m", "Hi", "--reasoning-format", "none")


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
        (["Why is it?"], "'Why is it.' seems to be a prompt; name a model"),
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


@pytest.mark.parametrize("name", ["my model.gguf", "missing model.gguf", "/no such/folder", "./no such", "~/no such"])
def test_a_path_with_a_space_is_a_model_even_if_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my model.gguf").touch()
    Path("a folder").mkdir()
    assert chosen(name, None) == chosen(None, name) == name
    assert chosen("a folder", None) == "a folder"
    assert chosen(None, "a name of two words") == "a name of two words"  # -m is never a prompt


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{path}", "hello there"],
        ["run", "-m", "{path}", "-p", "hello"],
        ["chat", "--plain", "{path}"],
        ["show", "{path}"],
        ["plan", "{path}"],
        ["bench", "-m", "{path}"],
        ["tune", "{path}"],
        ["perplexity", "{path}", "-f", __file__],
    ],
)
def test_every_command_calls_a_missing_path_with_a_space_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    path = tmp_path / "my models" / "missing.gguf"
    done = in_this_process([argument.format(path=path) for argument in arguments], monkeypatch, capsys)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{path}: no such file" in done.stderr


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


def test_negative_numbers_mean_what_they_mean_in_llama_cpp(asked: list[Any]) -> None:
    for n in ("-1", "-2"):
        run("run", "m", "Hi", "-n", n, "-s", "-1", "-ngl", n)
        assert asked[-1][1] == {} and asked[-1][0].loading["n_gpu_layers"] is None
    run("run", "m", "Hi", "--top-k", "-1", "--repeat-last-n", "-1", "--presence-penalty", "-0.5")
    assert asked[-1][1] == {"top_k": 0, "penalty_window": -1, "presence_penalty": -0.5}
    run("run", "m", "Hi", "--top_k=0", "--repeat_last_n=0", "--seed=0")
    assert asked[-1][1] == {"top_k": 0, "penalty_window": 0, "seed": 0}


def test_an_answer_may_go_on_where_the_model_would_end_it(asked: list[Any]) -> None:
    run("run", "m", "Hi", "--ignore-eos")
    assert asked[0][1] == {"ignore_eos": True}


# --- Escapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "prompt", "stop"),
    [
        (["-p", r"a\nb", "--stop", r"\n\n"], "a\nb", "\n\n"),
        (["-p", r"a\nb", "--stop", r"\n", "-e"], "a\nb", "\n"),
        (["-p", r"a\nb", "--stop", r"\n", "--no-escape"], r"a\nb", r"\n"),
        (["-p", r"a\nb", "-r", r"\t"], "a\nb", "\t"),
        ([r"a\nb", "--stop", "x"], r"a\nb", "x"),  # as ollama has it
        ([r"a\nb", "--stop", "x", "--escape"], "a\nb", "x"),
    ],
)
def test_escapes_are_read_in_p_and_stop_unless_told_not_to(
    asked: list[Any], arguments: list[str], prompt: str, stop: str
) -> None:
    run("run", "m", *arguments, "-sys", r"raw\n")
    [(options, sampling)] = asked
    assert (options.prompt, sampling["stop"], options.system) == (prompt, (stop,), r"raw\n")


def test_a_system_message_may_come_from_a_file(asked: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "system.txt"
    path.write_bytes(b"\xef\xbb\xbfBe short.\n")
    for option in ("-sysf", "--system-prompt-file", "-spf"):
        run("run", "m", "Hi", option, str(path))
        assert asked[-1][0].system == "Be short."
    with pytest.raises(InvalidParameter, match="the system message is given twice"):
        run("run", "m", "Hi", "-sysf", str(path), "-sys", "x")


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
    flags = LoadingFlags("all", "0", "q8_0", "f16", "1GiB", "1MiB", ctx_size=2048)
    assert flags.arguments() == {
        "n_ctx": 2048,
        "n_gpu_layers": None,
        "device": "0",
        "split_mode": None,
        "tensor_split": None,
        "main_gpu": 0,
        "num_shards": None,
        "type_k": "q8_0",
        "type_v": "f16",
        "vram_limit": 2**30,
        "ram_limit": 2**20,
        "override_tensor": None,
        "n_parallel": None,
        "spec": "auto",
    }


def test_experts_in_system_memory_are_an_override_behind_the_users_own() -> None:
    flags = LoadingFlags(override_tensor=["attn_k=CPU"], n_cpu_moe=2)
    assert flags.arguments()["override_tensor"] == (r"attn_k=CPU,blk\.(0|1)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU")
    assert len(LoadingFlags(n_cpu_moe=10**12).arguments()["override_tensor"]) < 10_000
    assert LoadingFlags(n_cpu_moe=0).arguments()["override_tensor"] is None
    assert LoadingFlags(cpu_moe=True).arguments()["override_tensor"].startswith(r"\.ffn_(up|down|gate|gate_up)")


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json-schema", '{"type": "nonsense"}'], "json_schema cannot be used: Invalid type: nonsense"),
        (["-j", '{"type": '], "the schema is not JSON"),
        (["-j", "none.json"], "cannot read none.json: No such file"),
        (["--regex", "a("], "regex cannot be used: regex parse error: unclosed group"),
        (["--grammar", "root ::= x"], "grammar cannot be used: line 1, column 10: there is no rule x"),
        (["--grammar", "start: x"], 'grammar cannot be used: at 1(8): unknown name: "x"'),
        (["--format", "json", "--regex", "a"], "an answer has one form"),
    ],
)
@pytest.mark.parametrize("words", [[], ["Hi"]], ids=["chat", "prompt"])
def test_a_wrong_form_ends_the_command_before_a_model_is_looked_for(
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["vkllm", "run", "m", *words, *options])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n"), asked) == (2, "", 1, [])
    assert err.startswith(f"vkllm: error: {message}")


def answer_of(folder: Path, model: Path, options: list[str]) -> str:
    """What the real engine answers."""
    done = Command(folder).run([*REAL, "run", str(model), "Give me a number.", *options, "--seed", "1", "-n", "40"])
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


@pytest.mark.gpu
@pytest.mark.weights
def test_an_answer_of_the_default_model_has_the_form_asked_for(tmp_path: Path, default_model: Path) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}'
    assert isinstance(json.loads(answer_of(tmp_path, default_model, ["-j", schema]))["n"], int)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "is_right"),
    [
        (["--regex", "[0-9]{3}"], lambda answer: len(answer) == 3 and answer.isdecimal()),
        (["--grammar", 'root ::= "yes" | "no"'], lambda answer: answer in ("yes", "no")),
    ],
)
def test_an_answer_of_a_model_that_knows_nothing_has_the_form_asked_for(
    tmp_path: Path, tiny_gguf: Path, options: list[str], is_right: Callable[[str], bool]
) -> None:
    assert is_right(answer_of(tmp_path, tiny_gguf, options))
