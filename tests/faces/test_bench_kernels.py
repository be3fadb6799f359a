"""`vkllm bench --kernels`: which steps it times, its tables, and the same as CSV, JSON and JSON lines."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fake_engine as fake
import pytest
from terminal import FAKE, REAL, Command, in_this_process

KEYS = [
    "build_commit", "gpu_info", "driver", "devices", "model_filename", "model_type", "model_size", "model_n_params",
    "type_k", "type_v", "n_gpu_layers", "read_gb_per_s", "product_tflop_per_s", "test_time", "n_rows", "n_depth",
    "kernel", "weight_format", "shape", "n_tokens", "n_dispatches", "dispatch_us", "step_us", "read_bytes", "n_flops",
    "gb_per_s", "bandwidth_share", "tflop_per_s", "product_share",
]  # fmt: skip


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    assert command.leftovers() == []


def run_bench(command: Command, model: Path, *arguments: str) -> str:
    done = command.run([*FAKE, "bench", "--kernels", "-m", str(model), *arguments])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def steps(out: str) -> list[tuple[int, int]]:
    """(rows, depth) of each step of JSON lines."""
    rows = [json.loads(line) for line in out.splitlines()]
    return list(dict.fromkeys((row["n_rows"], row["n_depth"]) for row in rows))


def test_a_table_for_each_step(command: Command, tiny_gguf: Path) -> None:
    # the fake engine says 10 ms a row, of which two products take 4 ms each; it reads 4 MB/s and computes 100 MFLOP/s
    out = run_bench(command, tiny_gguf, "-p", "4", "-d", "30")
    title = "| kernel          | format | shape                       | tokens | a step |        us |  us a step |"
    title += "    GB/s | % of reading |  TFLOP/s | % of product |"
    line = "| --------------- | ------ | --------------------------- | -----: | -----: | --------: | ---------: |"
    line += " ------: | -----------: | -------: | -----------: |"
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in out.splitlines() if row.startswith("| ")]
    assert out.splitlines() == [
        "llama 0.0M F32, decode @ d30, cache f16/f16, fake device",
        "",
        title,
        line,
        *out.splitlines()[4:8],
        "",
        "llama 0.0M F32, prompt of 4 @ d30, cache f16/f16, fake device",
        "",
        title,
        line,
        *out.splitlines()[13:17],
        "",
        "device: fake device | fake driver 1.2 | Vulkan 1.3.0 | subgroup 8 | fp16, int8 | reads 0.0 GB/s"
        " | products 0.0001 TFLOP/s",
    ]
    assert rows[2:6] == [
        ["product", "Q4_0", "200 x 100", "1", "2", "4000", "8000", "0.00500", "125", "", ""],
        ["choice", "", "", "1", "0", "1000", "", "", "", "", ""],
        ["sum of kernels", "", "", "1", "2", "", "8000", "0.00500", "125", "", ""],
        ["whole step", "", "", "1", "2", "", "10000", "0.00400", "100", "", ""],
    ]
    assert rows[8:12] == [
        ["product", "Q4_0", "200 x 100", "4", "2", "16000", "32000", "0.00125", "31.2", "0.000010", "10.0"],
        ["choice", "", "", "1", "0", "1000", "", "", "", "", ""],
        ["sum of kernels", "", "", "4", "2", "", "32000", "0.00125", "31.2", "0.000010", "10.0"],
        ["whole step", "", "", "4", "2", "", "40000", "0.00100", "25.0", "0.000008", "8.00"],
    ]


def test_json_json_lines_and_csv_hold_the_same(command: Command, tiny_gguf: Path) -> None:
    arguments = ("-p", "8", "-n", "0", "-ctk", "q8_0")
    whole = json.loads(run_bench(command, tiny_gguf, *arguments, "-o", "json"))
    lines = [json.loads(line) for line in run_bench(command, tiny_gguf, *arguments, "-o", "jsonl").splitlines()]
    rows = list(csv.DictReader(run_bench(command, tiny_gguf, *arguments, "-o", "csv").splitlines()))
    assert [list(row) for row in whole] == [list(row) for row in lines] == [list(row) for row in rows] == [KEYS] * 4
    for entry, line, row in zip(whole, lines, rows, strict=True):
        times = {"test_time"}
        assert {k: v for k, v in entry.items() if k not in times} == {k: v for k, v in line.items() if k not in times}
        assert row["step_us"] == ("" if line["step_us"] is None else str(line["step_us"]))
    product, choice, parts, step = whole
    assert [row["kernel"] for row in whole] == ["product", "choice", "sum of kernels", "whole step"]
    assert (product["type_k"], product["type_v"], product["n_rows"], product["n_depth"]) == ("q8_0", "f16", 8, 0)
    assert (product["dispatch_us"], product["n_dispatches"], product["step_us"]) == (32_000, 2, 64_000)
    assert product["gb_per_s"] == pytest.approx(20_000 / 0.032 / 1e9)
    assert product["bandwidth_share"] == pytest.approx(20_000 / 0.032 / fake.READ_BYTES_PER_S)
    assert product["tflop_per_s"] == pytest.approx(8 * 40_000 / 0.032 / 1e12)
    assert product["product_share"] == pytest.approx(8 * 40_000 / 0.032 / 1e8)
    assert choice["gb_per_s"] is choice["tflop_per_s"] is choice["step_us"] is None
    assert (parts["read_bytes"], parts["n_flops"]) == (step["read_bytes"], step["n_flops"]) == (40_000, 640_000)
    assert (parts["step_us"], step["step_us"]) == pytest.approx((64_000, 80_000))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", [(n, 0) for n in (1, 2, 4, 8, 16)]),  # a step of 16 takes over 0.1 s already
        ("-d 0,245", [*((n, 0) for n in (1, 2, 4, 8, 16)), *((n, 245) for n in (1, 2, 4, 8))]),  # of 256 tokens
        ("-n 0 -p 256,8", [(256, 0), (8, 0)]),
        ("-p 0", [(1, 0)]),
    ],
)
def test_steps_are_those_asked_for_or_those_that_suit_the_device(
    command: Command, tiny_gguf: Path, arguments: str, expected: list[tuple[int, int]]
) -> None:
    assert steps(run_bench(command, tiny_gguf, *arguments.split(), "-o", "jsonl")) == expected


def test_every_model_is_measured_in_every_setup(command: Command, tiny_gguf: Path) -> None:
    out = run_bench(
        command, tiny_gguf, "-m", str(tiny_gguf), "-p", "0", "-ctv", "f16,q8_0", "-ngl", "1,all", "-o", "jsonl"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    whole = [(row["n_gpu_layers"], row["type_v"]) for row in rows if row["kernel"] == "whole step"]
    assert whole == [(1, "f16"), (1, "q8_0"), (2, "f16"), (2, "q8_0")] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-p 513", "-p takes 2 to 512 with --kernels, not 513; a longer prompt runs in several steps"),
        ("-p 1", "-p takes 2 to 512 with --kernels, not 1"),
        ("-p 0 -n 0", "there is nothing to measure; give -p or -n a number above 0"),
        ("-pg 8,8", "--kernels times single steps"),
        ("-d 5000", "these tests need a context of 5512 tokens, but tiny.gguf was trained for 256"),
        ("-dev full", "no room to measure"),
    ],
)
def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_gguf: Path, arguments: str, words: str
) -> None:
    done = in_this_process(["bench", "--kernels", "-m", str(tiny_gguf), *arguments.split()], monkeypatch, capsys)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith(f"vkllm: error: {words}")


def test_ctrl_c_ends_it_while_the_engine_measures(command: Command, tiny_gguf: Path) -> None:
    process = command.start([*FAKE, "bench", "--kernels", "-m", str(tiny_gguf), "-dev", "slow steps"])
    deadline = time.monotonic() + 120
    while not command.engine_pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "")


@pytest.mark.gpu
def test_a_tiny_model_is_measured_on_this_machine(command: Command, tiny_gguf: Path) -> None:
    done = command.run([*REAL, "bench", "--kernels", "-m", str(tiny_gguf), "-p", "20", "-d", "16", "-o", "json"])
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(list(row) == KEYS for row in rows)
    for n_rows in (1, 20):
        *kernels, parts, step = [row for row in rows if row["n_rows"] == n_rows]
        assert kernels[0]["kernel"] == "begin_step"
        assert all(0 < row["dispatch_us"] < 1e6 for row in kernels)
        assert parts["step_us"] == pytest.approx(sum(row["step_us"] or 0 for row in kernels))
        assert 0 < step["step_us"] < 1e6
        assert step["gb_per_s"] > 0
        assert step["bandwidth_share"] == pytest.approx(step["gb_per_s"] / step["read_gb_per_s"])
