"""`vkllm bench`: which runs it makes, what counts in them, and that its output is llama-bench's with columns more."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_engine as fake
import pytest
from terminal import FAKE, REAL, Command, in_this_process

from vkllm import LLM, InvalidParameter, RunStats
from vkllm.faces.cli.bench import BenchOptions, Case, Setup, measure
from vkllm.faces.cli.bench_options import cases, layer_counts, numbers, placements, setups

# llama-bench's fields in its order, and ours.
KEYS = [
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size",
    "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask", "cpu_strict", "poll", "type_k", "type_v",
    "n_gpu_layers", "n_cpu_moe", "split_mode", "main_gpu", "no_kv_offload", "flash_attn", "devices", "tensor_split",
    "tensor_buft_overrides", "load_mode", "lazy_mode", "embeddings", "no_op_offload", "no_host", "repack",
    "fit_target", "fit_min_ctx", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts",
    "stddev_ts", "samples_ns", "samples_ts", "gb_per_s", "bandwidth_share", "driver",
    "spec", "n_drafted", "n_accepted",
]  # fmt: skip

# tests/tiny_gguf.py: 37,056 numbers as float32, and 128 bytes of keys and values a token
WEIGHT_BYTES, CACHE_BYTES = 148_224, 128


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    assert command.leftovers() == []


def run_bench(command: Command, model: Path, *arguments: str) -> str:
    done = command.run([*FAKE, "bench", "-m", str(model), *arguments])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- What is printed -------------------------------------------------------------------------------------------------


def test_the_table_is_llama_benchs_with_two_columns_more(command: Command, tiny_gguf: Path) -> None:
    # the fake engine says 0.1 s for any prompt and 0.5 s for any answer
    out = run_bench(command, tiny_gguf, "-p", "16", "-n", "8", "-pg", "16,8", "-d", "0,32", "-r", "2")
    start = "| llama 0.0M F32                 |   0.14 MiB |     0.04 M | Vulkan     |   2 |"
    speeds = {"pp16": "160.00", "tg8": "13.33", "pp16+tg8": "40.00"}
    title = "| model                          |       size |     params | backend    | ngl |            test |"
    assert out.splitlines() == [
        title + "                  t/s |     GB/s | % of read bandwidth |",
        "| ------------------------------ | ---------: | ---------: | ---------- | --: | --------------: |"
        " -------------------: | -------: | ------------------: |",
        *(
            f"{start} {test + depth:>15} | {speed + ' ± 0.00':>20} |"
            + (f"     0.00 | {share:>19} |" if test == "tg8" else f" {'':8} | {'':19} |")
            for depth, share in (("", "49.6"), (" @ d32", "51.0"))
            for test, speed in speeds.items()
        ),
        "",
        "device: fake device | fake driver 1.2 | Vulkan 1.3.0 | subgroup 8 | fp16, int8 | reads 0.0 GB/s",
    ]


def test_json_has_llama_benchs_keys_and_the_share_of_the_read_bandwidth(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "16", "-n", "8", "-d", "32", "-r", "3")
    prompt, answer = json.loads(run_bench(command, tiny_gguf, *arguments, "-o", "json"))
    assert list(prompt) == list(answer) == KEYS
    assert (prompt["n_prompt"], prompt["n_gen"], prompt["n_depth"]) == (16, 0, 32)
    assert prompt["samples_ns"] == [100_000_000] * 3
    assert prompt["samples_ts"] == [160] * 3
    assert (prompt["avg_ts"], prompt["stddev_ts"], prompt["stddev_ns"]) == (160, 0, 0)
    assert prompt["gb_per_s"] is prompt["bandwidth_share"] is None
    assert (answer["n_prompt"], answer["n_gen"], answer["avg_ns"]) == (0, 8, 600_000_000)
    # the eight steps see 33 to 40 tokens
    bytes_per_s = 8 / 0.6 * (WEIGHT_BYTES + CACHE_BYTES * 36.5)
    assert answer["gb_per_s"] == pytest.approx(bytes_per_s / 1e9)
    assert answer["bandwidth_share"] == pytest.approx(bytes_per_s / fake.READ_BYTES_PER_S)
    assert (answer["gpu_info"], answer["driver"]) == ("fake device", "fake driver 1.2")
    assert (answer["model_size"], answer["model_n_params"]) == (WEIGHT_BYTES, WEIGHT_BYTES // 4)


def test_json_lines_and_csv_hold_the_same(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "16", "-n", "8", "-r", "1", "--no-warmup")
    lines = [json.loads(line) for line in run_bench(command, tiny_gguf, *arguments, "-o", "jsonl").splitlines()]
    rows = list(csv.DictReader(run_bench(command, tiny_gguf, *arguments, "-o", "csv").splitlines()))
    assert [list(line) for line in lines] == [KEYS] * 2
    assert [list(row) for row in rows] == [[key for key in KEYS if not key.startswith("samples_")]] * 2
    for line, row in zip(lines, rows, strict=True):
        assert float(row["avg_ts"]) == line["avg_ts"]
        assert row["gb_per_s"] == ("" if line["gb_per_s"] is None else str(line["gb_per_s"]))
        assert row["no_kv_offload"] == "0"


def test_every_model_runs_on_every_device_which_has_a_column_then(command: Command, tiny_gguf: Path) -> None:
    rows = run_bench(command, tiny_gguf, "-m", f"{tiny_gguf}", "-dev", "0,cpu", "-p", "4", "-n", "0", "-r", "1")
    cells = [[cell.strip() for cell in row.split("|")] for row in rows.splitlines() if row.startswith("| llama")]
    assert [row[6] for row in cells] == ["0", "cpu"] * 2


def test_what_lies_in_system_memory_is_said_in_every_output(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "4", "-n", "0", "-r", "1", "-ncmoe", "0,1", "-ot", "attn_k=CPU;attn_v=CPU")
    made = json.loads(run_bench(command, tiny_gguf, *arguments, "-o", "json"))
    assert [each["n_cpu_moe"] for each in made] == [0, 1]
    assert {each["tensor_buft_overrides"] for each in made} == {"attn_k=CPU;attn_v=CPU"}
    rows = [line.split("|") for line in run_bench(command, tiny_gguf, *arguments).splitlines() if line[:1] == "|"]
    assert [(row[6].strip(), row[7].strip()) for row in rows if "---" not in row[1]] == [
        ("n_cpu_moe", "ot"), ("0", "attn_k=CPU;attn_v=CPU"), ("1", "attn_k=CPU;attn_v=CPU"),
    ]  # fmt: skip


def test_cache_types_have_a_column_where_one_is_not_the_default(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "0", "-n", "8", "-d", "100", "-r", "1")
    out = run_bench(command, tiny_gguf, *arguments, "-ctk", "f16,q8_0", "-ctv", "q8_0")
    title, _, *rows = [[cell.strip() for cell in row.split("|")] for row in out.splitlines() if row.startswith("|")]
    assert title[5:9] == ["ngl", "type_k", "type_v", "test"]
    assert [row[5:9] for row in rows] == [["2", type_k, "q8_0", "tg8 @ d100"] for type_k in ("f16", "q8_0")]
    out = run_bench(command, tiny_gguf, *arguments, "-ctk", "f16,q8_0", "-ctv", "q8_0", "-o", "json")
    # 32 values of each token and layer: 64 bytes as f16, 36 as q8_0; of 100.5 + 4 tokens on average
    for result, type_k, n_bytes in zip(json.loads(out), ("f16", "q8_0"), (64 + 36, 36 + 36), strict=True):
        assert (result["type_k"], result["type_v"]) == (type_k, "q8_0")
        assert result["gb_per_s"] == pytest.approx(result["avg_ts"] * (WEIGHT_BYTES + n_bytes * 104.5) / 1e9)


def test_layers_on_the_gpu_are_a_list_too(command: Command, tiny_gguf: Path) -> None:
    out = run_bench(command, tiny_gguf, "-p", "4", "-n", "0", "-r", "1", "-ngl", "0-1,99", "-o", "json")
    assert [result["n_gpu_layers"] for result in json.loads(out)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-ctk q5_0", "-ctk takes f16 or q8_0, not 'q5_0'"),
        ("-ctv f16,q4_0", "-ctv takes f16 or q8_0, not 'q4_0'"),
        ("-ngl some", "-ngl takes numbers such as 512, 128,256 or 64-512*2, not 'some'"),
        ("-o xml", "-o takes md, csv, json, jsonl, not 'xml'"),
        ("-p many", "-p takes numbers such as 512, 128,256 or 64-512*2, not 'many'"),
        ("-pg 512", "-pg takes two numbers such as 512,128, not '512'"),
        ("-p 0 -n 0", "there is nothing to measure"),
        (
            "",
            "these tests need a context of 513 tokens, but tiny.gguf was trained for 256; choose shorter ones with -p",
        ),
        ("-p 8 -m {cut}", "{cut}: not a sound GGUF"),
        ("-p 8 -n 8 -dev missing", "no Vulkan device was found"),
        ("-p 8 -n 8 -dev missing -o json", "no Vulkan device was found"),
    ],
)
def test_what_is_wrong_with_options_or_models_is_one_line_and_nothing_is_printed_before_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_gguf: Path,
    tmp_path: Path,
    arguments: str,
    words: str,
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF")
    given = arguments.format(cut=cut).split()
    done = in_this_process(["bench", "-m", str(tiny_gguf), *given], monkeypatch, capsys)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"vkllm: error: {words.format(cut=cut)}")


def test_ctrl_c_ends_it_with_130(command: Command, tiny_gguf: Path) -> None:
    process = command.start([*FAKE, "bench", "-m", str(tiny_gguf), "-p", "4", "-r", "100000"])
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "")


# --- What is run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["512"], [512]),
        (["1,2", "3"], [1, 2, 3]),
        (["0-8+4"], [0, 4, 8]),
        (["2-4"], [2, 3, 4]),
        (["16-100*2, 7"], [16, 32, 64, 7]),
    ],
)
def test_lists_and_ranges(texts: list[str], expected: list[int]) -> None:
    assert numbers(texts, "-p") == expected


def test_a_range_that_does_not_end_is_refused() -> None:
    for text in ("1-5*1", "0-5*2", "1-5+0"):
        with pytest.raises(InvalidParameter, match="does not end"):
            numbers([text], "-p")


def test_setups_come_in_llama_benchs_order() -> None:
    assert layer_counts(["0-8+8", "all,3"]) == [0, 8, None, 3]
    made = setups(["a", "b"], [None], ["0", "1"], ["f16", "q8_0"], ["f16"])
    assert made == [
        Setup(model, device, type_k) for model in ("a", "b") for device in ("0", "1") for type_k in ("f16", "q8_0")
    ]
    wheres = placements(["0,4"], ["exps=CPU;attn=CPU,"])
    assert [(made.n_cpu_moe, made.overrides) for made in wheres] == [
        (0, ("exps=CPU", "attn=CPU")), (0, ()), (4, ("exps=CPU", "attn=CPU")), (4, ()),
    ]  # fmt: skip
    assert wheres[1].override_tensor is None and wheres[0].override_tensor == "exps=CPU,attn=CPU"
    assert [made.placement for made in setups(["a"], [None], [None], ["f16"], ["f16"], wheres)] == wheres
    assert [setup.n_gpu_layers for setup in setups(["a"], [4, None], [None], ["f16"], ["f16"])] == [4, None]


def test_tests_come_in_llama_benchs_order_without_empty_ones() -> None:
    assert cases([512, 0], [128], ["64,16"], [0, 4096]) == [
        Case(512, 0, 0),
        Case(0, 128, 0),
        Case(64, 16, 0),
        Case(512, 0, 4096),
        Case(0, 128, 4096),
        Case(64, 16, 4096),
    ]


@pytest.mark.parametrize(("warms_up", "n_runs"), [(True, 4), (False, 3)])
def test_runs_share_the_cached_depth_and_nothing_behind_it(
    fake_llm: Callable[..., LLM], tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, warms_up: bool, n_runs: int
) -> None:
    runs: list[tuple[list[int], int, RunStats]] = []
    generate = LLM.benchmark_generate

    def recorded(llm: LLM, prompt: list[int], generate_length: int) -> RunStats:
        stats = generate(llm, prompt, generate_length)
        runs.append((prompt, generate_length, stats))
        return stats

    monkeypatch.setattr(LLM, "benchmark_generate", recorded)
    tests = [Case(16, 0, 0), Case(0, 8, 24), Case(16, 8, 24)]
    results = list(measure(BenchOptions([Setup(str(tiny_gguf))], tests, 3, warms_up)))
    assert [len(result.fields["samples_ns"]) for result in results] == [3] * 3
    # one run more fills the cache to the first depth
    assert len(runs) == 3 * n_runs + 1
    prompts, answers, both = runs[:n_runs], runs[n_runs : 2 * n_runs + 1], runs[2 * n_runs + 1 :]
    # after a prompt, n tokens take n steps besides the prompt's own; after one token, n in all
    assert {(len(p), n) for p, n, _ in prompts} == {(16, 1)}
    assert {(len(p), n) for p, n, _ in answers} == {(25, 8)}
    assert {(len(p), n) for p, n, _ in both} == {(40, 9)}
    assert [stats.n_cached for _, _, stats in prompts] == [0] * n_runs
    assert [stats.n_cached for _, _, stats in (answers + both)[1:]] == [24] * (2 * n_runs)


@pytest.mark.gpu
def test_many_requests_at_once_are_measured_on_this_machine(command: Command, tiny_gguf: Path) -> None:
    options = ["-np", "1,3", "-p", "5", "-n", "8", "-r", "1", "--no-warmup"]
    done = command.run([*REAL, "bench", "-m", str(tiny_gguf), *options, "-o", "json"])
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [(r["n_parallel"], r["n_kv"]) for r in results] == [(1, 13), (3, 39)]
    for result in results:
        assert result["total_ts"] == pytest.approx(result["n_kv"] / result["total_s"])
        assert 0 < result["first_token_s"] <= result["prompt_s"] < result["total_s"]
        assert result["each_ts"] == pytest.approx(result["generate_ts"] / result["n_parallel"])
    done = command.run([*REAL, "bench", "-m", str(tiny_gguf), *options])
    assert "  B |   N_KV |" in done.stdout and done.stdout.count("llama 0.0M F32") == 2
    wrong = command.run([*REAL, "bench", "-m", str(tiny_gguf), "-np", "0"])
    assert wrong.returncode == 2 and "numbers above 0" in wrong.stderr


@pytest.mark.gpu
def test_a_tiny_model_is_measured_on_this_machine(command: Command, tiny_gguf: Path) -> None:
    options = ["-p", "32", "-n", "16", "-pg", "32,16", "-d", "0,64", "-r", "2", "-o", "json"]
    done = command.run([*REAL, "bench", "-m", str(tiny_gguf), *options])
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in results] == [
        (n_prompt, n_gen, depth) for depth in (0, 64) for n_prompt, n_gen in ((32, 0), (0, 16), (32, 16))
    ]
    for result in results:
        n_tokens = result["n_prompt"] + result["n_gen"]
        assert result["samples_ts"] == pytest.approx([1e9 * n_tokens / ns for ns in result["samples_ns"]])
        assert all(0 < ns < 30e9 for ns in result["samples_ns"])
    decoding = [result for result in results if not result["n_prompt"]]
    assert all(result["gb_per_s"] > 0 and result["bandwidth_share"] > 0 for result in decoding)
    reading = [result["gb_per_s"] / result["bandwidth_share"] for result in decoding]
    assert reading == pytest.approx(len(reading) * reading[:1]), "shares are of what this device reads"


def test_drafts_have_a_column_where_they_are_asked_for(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "0", "-n", "8", "-r", "1", "--no-warmup")
    out = run_bench(command, tiny_gguf, *arguments, "--spec", "ngram")
    title, _, row = [[cell.strip() for cell in row.split("|")] for row in out.splitlines() if row.startswith("|")]
    assert (title[-2], row[-2]) == ("accepted", "0/0")
    (answer,) = json.loads(run_bench(command, tiny_gguf, *arguments, "--spec", "auto", "-o", "json"))
    assert (answer["spec"], answer["n_drafted"], answer["n_accepted"]) == ("auto", 0, 0)
    done = command.run([*FAKE, "bench", "-m", str(tiny_gguf), "-p", "4", "-n", "4", "--spec", "draft"])
    assert done.returncode and "spec (--spec) must be one of auto, off, ngram, mtp, not 'draft'" in done.stderr
