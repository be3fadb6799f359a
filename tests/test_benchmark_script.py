"""benchmarks/several_gpus.py: which runs it makes of cards and modes, and what its table says of their results."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "several_gpus.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.append(str(SCRIPT.parent))  # as for a script that is run
    spec = importlib.util.spec_from_file_location("benchmark_of_several_gpus", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(models=[Path("a.gguf")], cards="1,2,4,8", modes="layer,tensor", **given)


def test_runs_are_those_that_there_are_cards_for_and_one_card_is_first(script: ModuleType) -> None:
    runs = list(script._runs(options(), [{"index": index} for index in (3, 0)]))
    assert [(run.devices, run.mode) for run in runs] == [((3,), "none"), ((3, 0), "tensor"), ((3, 0), "layer")]
    assert [len(run.devices) for run in script._runs(options(), [{"index": i} for i in range(5)])] == [1, 2, 2, 4, 4]


def test_a_row_compares_with_one_card(script: ModuleType) -> None:
    run = script.Run(Path("70b.gguf"), (0, 1), "tensor")
    alone = {"tg": 60.0, "pp": 1000.0, "token_ids": [5, 6, 7, 8]}
    row = {"tg": 90.0, "pp": 500.0, "users": None, "gb_per_s": 3450.4, "share": 0.391, "load_s": 9.5, "llama_tg": 18.4}
    cells = script._cells(run, row | {"token_ids": [5, 6, 1, 8]}, alone)
    assert cells == [
        "70b, 2 x, tensor", "90.0", "1.50", "3450", "39%", "500", "0.50", "", "9.5", "2 of 4", "18.4", ""
    ]  # fmt: skip
    assert len(cells) == len(script._TITLES)
    assert script._cells(run, row | {"token_ids": [5, 6, 7, 8]}, alone)[9] == "4 of 4"
    assert script._cells(run, {"error": "no device 1"}, alone) == ["70b, 2 x, tensor", "no device 1"]


def test_a_program_that_fails_or_hangs_is_told_in_a_line(script: ModuleType) -> None:
    assert script.output([sys.executable, "-c", "print(1)"], 60, SCRIPT.parent) == ("1\n", None)
    fails = "import sys; print('first', file=sys.stderr); sys.exit('no GPU')"
    assert script.output([sys.executable, "-c", fails], 60, SCRIPT.parent) == ("", "no GPU")
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert script.output(hangs, 1, SCRIPT.parent) == ("", "did not end within 1 s")


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "no.gguf"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no file" in done.stderr
