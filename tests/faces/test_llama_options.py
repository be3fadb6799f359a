"""Options of llama.cpp: taken, ignored or refused in a sentence, but never read as something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from terminal import FAKE, Command, in_this_process, terminal

from vkllm import __version__
from vkllm.errors import InvalidParameter
from vkllm.faces.cli import app as cli
from vkllm.faces.cli.arguments import Arguments, OwnOption, in_order, own_options
from vkllm.faces.cli.llama_options import HUB_FILE, HUB_REPO, LLAMA_OPTIONS, OTHER_NAMES

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = GROUP.commands


def own(command: str) -> dict[str, OwnOption]:
    return own_options(COMMANDS[command], typer.Context(COMMANDS[command]))


def read(*arguments: str, command: str = "run") -> Arguments:
    return in_order(arguments, own(command), f"vkllm {command}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `run` hands on, instead of running it."""
    calls: list[Any] = []
    monkeypatch.setattr(
        "vkllm.faces.cli.run.run_model", lambda options, sampling: calls.append((options, sampling)) or True
    )
    yield calls


def run(*arguments: str) -> None:
    assert cli.app(["run", *arguments], prog_name="vkllm", standalone_mode=False) is None


# --- Several times ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["-ot exps=CPU -ot attn=GPU", "-ot exps=CPU,attn=GPU", "-ot exps=CPU --override-tensor=attn=GPU"]
)
def test_overrides_of_tensors_add_up(asked: list[Any], line: str) -> None:
    run("m", "Hi", *line.split())
    assert asked[0][0].loading["override_tensor"] == "exps=CPU,attn=GPU"


# --- Ignored ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "-tb 8",
        "-t 8 -tb 8 -b 2048 -ub 512",
        "--threads-batch 8 --batch_size=512",
        "-fa",
        "-fa on",
        "-fa auto",
        "--flash-attn=off",
        "-fa 1 -cb",
        "--no-mmap --mlock",
        "-lm mlock",
        "-sm none --split-mode layer",
        "-np 1",
        "-bs",
        "-cnv",
        "-st --color --jinja",
        "--color on --simple-io",
        "--mirostat 0 --typical 1.0 --dry-multiplier 0.00 --top-nsigma -1",
        "--log-disable -lv 3 -v",
        "--warmup --no-perf --prio 2 --poll 50 --numa distribute -C ff",
        "--keep -1 -nkvo --no-context-shift",
        "-C 0xFF -Cr 0-3 --cpu-strict 1 --fit off -lzm auto -lm mmap+mlock -dt 0.1 -eps 1e-5 --flash-attn=ON",
    ],
)
def test_what_changes_no_answer_is_ignored_with_its_value(asked: list[Any], line: str) -> None:
    run("m", *line.split(), "Hi", "-n", "5")
    run("m", "Hi", "-n", "5", *line.split())
    for options, sampling in asked:
        assert (options.model, options.prompt, sampling) == ("m", "Hi", {"max_tokens": 5})
    assert len(asked) == 2


def test_a_person_is_told_of_options_without_effect_and_a_script_is_not(
    tmp_path: Path, tiny_gguf: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("m", "Hi", "-t", "8", "-fa")
    assert capsys.readouterr() == ("", "")
    with terminal(Command(tmp_path), [*FAKE, "run", str(tiny_gguf), "Hi", "-t", "8", "-ub", "512"]) as screen:
        screen.expect("vkllm: note: -t and -ub have no effect in vkllm\n")
        screen.expect("user\nHi\n")
        screen.expect_exit()
        assert screen.exit_code == 0


def test_bench_takes_the_lists_of_llama_bench() -> None:
    found = read("-fa", "0,1", "-t", "4,8", "-nkvo", "0", "m", "-p", "64", command="bench")
    assert found == Arguments(["-p", "64", "--", "m"], ["-fa", "-t", "-nkvo"])


# --- Taken -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("m --predict 5", "--n-predict 5 -- m"),
        ("m -n=5", "-n 5 -- m"),
        ("m -n5 Hi", "-n 5 -- m Hi"),
        ("m -ngl=99 --gpu_layers 9", "-ngl 99 --n-gpu-layers 9 -- m"),
        ("m -r User: --system-prompt Short", "--stop User: --system Short -- m"),
        ("-mu https://h/m.gguf Hi", "--model https://h/m.gguf -- Hi"),
        ("m -no-cnv -p Hi", "--raw -p Hi -- m"),
        ("m -p --help", "-p --help -- m"),
        ("m --stop=-n --stop -- Hi", "--stop -n --stop -- -- m Hi"),
        ("m -- -n 5 -- x", "-- m -n 5 -- x"),
        ("-hf o/r Hi", "--model hf.co/o/r -- Hi"),
        ("-hfr o/r:Q8_0 -hff f.gguf", "--model hf:o/r/f.gguf"),
        ("-hff f.gguf -hf o/r -p Hi", "-p Hi --model hf:o/r/f.gguf"),
    ],
)
def test_what_vkllm_has_is_taken_under_its_name(given: str, line: str) -> None:
    assert read(*given.split()) == Arguments(line.split(), [])


def test_a_text_that_begins_with_a_dash_is_no_option() -> None:
    assert read("m", "- one\n- two", "-5 + 3 = ?").line == ["--", "m", "- one\n- two", "-5 + 3 = ?"]
    assert read("m", "-p", "-1", "-sys", "- be short").line == ["-p", "-1", "-sys", "- be short", "--", "m"]


@pytest.mark.parametrize(("text", "device"), [("Vulkan1", "1"), ("0", "0"), ("llvmpipe (LLVM 15, 256 bits)", None)])
def test_a_device_may_have_llama_cpps_name(asked: list[Any], text: str, device: str | None) -> None:
    run("m", "Hi", "-dev", text)
    assert asked[0][0].loading["device"] == (device or text)


def test_several_devices_are_handed_on(asked: list[Any]) -> None:
    run(
        "m", "Hi", "-dev", "Vulkan0,RTX 4090 (24 GB, PCIe)", "-sm", "row", "-ts", "3,1", "-mg", "1", "--num-shards", "2"
    )
    loading = asked[0][0].loading
    assert loading["device"] == ("0", "RTX 4090 (24 GB, PCIe)")
    assert (loading["split_mode"], loading["tensor_split"], loading["main_gpu"]) == ("row", (3.0, 1.0), 1)
    assert loading["num_shards"] == 2


# --- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("m Hi -md draft.gguf", "-md is not in vkllm: vkllm drafts from earlier text"),
        ("m Hi --draft 16", "--draft is not in vkllm"),
        ("m Hi --rpc host:1", "--rpc is not in vkllm: vkllm runs a model on the GPUs of one machine; choose them with"),
        ("m Hi -ts 3;1", "-ts takes shares such as 3,1, one for each GPU, not '3;1'"),
        ("m Hi -dev 0,", "-dev takes devices as their indices or parts of their names, with commas between them"),
        ("m Hi -dev 0/1", "(`vkllm devices` lists them), not '0/1'"),
        ("m Hi -dev=", "-dev takes devices"),
        ("m Hi --device none", "-dev none is not in vkllm"),
        ("m Hi --lora a.gguf", "--lora is not in vkllm: vkllm cannot apply adapters yet"),
        ("m Hi --image a.png", "--image is not in vkllm: vkllm reads and writes text only"),
        ("m Hi -mm p.gguf", "-mm is not in vkllm: vkllm reads and writes text only"),
        ("m Hi --mirostat 2", "--mirostat is not in vkllm: the samplers of vkllm are"),
        ("m Hi -fitt 512", "-fitt is not in vkllm: vkllm places the parts of a model itself"),
        ("m Hi --port 8080", "--port is an option of `vkllm serve`, not of `vkllm run`"),
        ("m Hi --rope-freq-base 1e6", "--rope-freq-base is not in vkllm: vkllm takes this from the model's file"),
        ("m Hi --control-vector-layer-range 1 2", "vkllm has no control vectors"),
        ("m Hi --gpt-oss-20b-default", "vkllm has no such presets"),
        ("m Hi -hft secret", "-hft is not in vkllm: set the environment variable HF_TOKEN"),
        ("m -hff f.gguf", "-hff names a file of a repository; name the repository with -hf"),
        ("-m a -hf o/r", "two models are named, with -m and with -hf"),
        ("m Hi -xyz", "No such option: -xyz; a prompt that begins with a dash comes after --; see `vkllm run --help`"),
        ("m Hi -nx", "No such option: -nx"),
        ("m -c", "Option '-c' requires a value; see `vkllm run --help`"),
        ("m -c --temp 0", "Option '-c' requires a value before --temp; see `vkllm run --help`"),
        ("m -f -n 5", "Option '-f' requires a value before -n"),
        ("m -p", "Option '-p' requires a value; see `vkllm run --help`"),
        ("m -t", "Option '-t' requires a value"),
        ("m Hi -tb abc", "-tb takes a whole number, not 'abc'; see `vkllm run --help`"),
        ("m Hi -t 8.5", "-t takes a whole number, not '8.5'"),
        ("m --threads=", "--threads takes a whole number, not ''"),
        ("m Hi --cpu-mask xyz", "--cpu-mask takes a hexadecimal mask such as 0xff, not 'xyz'"),
        ("m Hi -Cr 3", "-Cr takes a range such as 0-7, not '3'"),
        ("m Hi --numa Hi", "--numa takes distribute, isolate or numactl, not 'Hi'"),
        ("m Hi --flash-attn=fast", "--flash-attn takes on, off or auto, not 'fast'"),
        ("m Hi -dt low", "-dt takes a number, not 'low'"),
        ("m -c --version", "Option '-c' requires a value before --version"),
        ("m -hf", "Option '-hf' requires a value"),
        ("m Hi -ot exps", "override_tensor (-ot) takes EXPRESSION=CPU or EXPRESSION=GPU, not 'exps'"),
        ("m Hi -ncmoe many", "'many' should be a valid integer"),
    ],
)
def test_the_rest_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    done = in_this_process(["run", *line.split()], monkeypatch, capsys)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: ") and words in done.stderr


@pytest.mark.parametrize("line", ["run --version", "run m Hi --version", "chat --version -n", "list --version"])
def test_every_command_tells_the_version_as_llama_cli_does(capsys: pytest.CaptureFixture[str], line: str) -> None:
    cli.app(line.split(), prog_name="vkllm", standalone_mode=False)
    assert capsys.readouterr() == (f"{__version__}\n", "")


def test_a_version_that_is_a_prompt_or_comes_after_two_dashes_is_text() -> None:
    assert read("m", "-p", "--version").line == ["-p", "--version", "--", "m"]
    assert read("m", "--", "--version").line == ["--", "m", "--version"]


def test_an_option_of_another_command_is_called_that() -> None:
    with pytest.raises(InvalidParameter, match=r"^--temp is an option of `vkllm run`, not of `vkllm plan`; see `vkllm"):
        cli.app(["plan", "m", "--temp", "0"], prog_name="vkllm", standalone_mode=False)


# --- The table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "chat", "plan", "bench", "perplexity"])
def test_no_option_of_llama_cpp_is_read_as_another_or_reaches_the_prompt(command: str) -> None:
    options = own(command)
    for name, option in LLAMA_OPTIONS.items():
        if name in options:
            continue
        value = next(text for text in ("7", "0-7", "on", "mmap", "numactl", "csv") if option.does_take(text))
        values = [value] * option.n_values if not option.is_switch else []
        try:
            found = read("m", name, *values, "Hi", command=command)
        except InvalidParameter as error:
            assert str(error) == f"{name} is not in vkllm: {option.refusal}"
        else:
            assert found == Arguments(["--", "m", "Hi"], [name])


def test_every_name_stands_in_one_table_only_and_leads_to_an_option() -> None:
    tables = [set(LLAMA_OPTIONS), set(OTHER_NAMES), HUB_REPO, HUB_FILE]
    assert sum(map(len, tables)) == len(set().union(*tables)) > 450
    assert set(OTHER_NAMES.values()) - {"--help"} <= set(own("run")) | set(own("serve"))
    assert {"-tb", "-md", "-rpc", "-bs", "-cnv", "-fa", "--mlock"} <= set(LLAMA_OPTIONS)
