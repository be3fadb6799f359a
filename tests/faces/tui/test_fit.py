"""Where models fit: the words for it, the worker that plans them, and how its answers reach the list."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenChat
from fake_llm import FITS
from textual.widgets import Input

from vkllm import NoDevice
from vkllm.faces.tui import fit_worker
from vkllm.faces.tui.fit import Fit, FitQuestion, ModelToFit, read_question, write_question
from vkllm.faces.tui.fits import Fits
from vkllm.faces.tui.models_screen import ModelsScreen
from vkllm.faces.tui.session import KnownModel
from vkllm.gpu.device.probe import DeviceInfo, Heap
from vkllm.model.memory.limits import Speeds

GIB = 2**30
CARD = DeviceInfo(
    index=0,
    name="a card",
    type="discrete",
    vendor_id=0,
    device_id=0,
    driver_name="driver",
    driver_version="1",
    api_version=(1, 3, 0),
    heaps=(Heap(8 * GIB, 8 * GIB, True), Heap(16 * GIB, 16 * GIB, False)),
    max_binding_bytes=4 * GIB,
    max_allocation_bytes=4 * GIB,
    max_workgroup_invocations=1024,
    max_shared_bytes=2**15,
    subgroup_size=32,
    min_subgroup_size=32,
    max_subgroup_size=32,
    features=frozenset(),
)
SLOW = ModelToFit("slow", None, 10 * GIB, 11 * GIB)
HUGE = ModelToFit("huge", None, 40 * GIB, 43 * GIB)


@pytest.mark.parametrize(
    ("fit", "short", "words"),
    [
        (Fit("discrete", GIB, GIB, 8 * GIB, 20 * GIB), "fits", "fits · 1.0 GiB of 8.0 GiB VRAM"),
        (
            Fit("discrete", GIB, GIB, 8 * GIB, 20 * GIB, 61.7),
            "fits · 62 tok/s",
            "fits · 1.0 GiB of 8.0 GiB VRAM, about 62 tok/s",
        ),
        (
            Fit("discrete", 10 * GIB, 8 * GIB, 8 * GIB, 20 * GIB, 6.04),
            "+2.0 GiB RAM · 6.0 tok/s",
            "fits · 2.0 GiB in RAM, about 6.0 tok/s",
        ),
        (Fit("unified", GIB, 0, GIB, 9 * GIB, 6.04), "fits · 6.0 tok/s", "fits · 1.0 GiB of 9.0 GiB, about 6.0 tok/s"),
        (Fit("cpu", 43 * GIB, 0, GIB, 24 * GIB), "too large: 43.0 GiB", "does not fit: needs 43.0 GiB, 24.0 GiB there"),
        (Fit("cpu", problem="x.gguf: it is damaged"), "cannot run", "x.gguf: it is damaged"),
    ],
)  # fmt: skip
def test_a_fit_in_short_and_in_words(fit: Fit, short: str, words: str) -> None:
    assert (fit.in_short, fit.in_words) == (short, words)
    assert fit.style == (
        "$text-error" if fit.problem or "too" in short else "$text-warning" if "RAM" in short else "$text-success"
    )


def test_a_question_survives_the_pipe() -> None:
    question = FitQuestion([SLOW, HUGE], {"n_ctx": None, "device": "card"}, {"local": 5})
    assert read_question(write_question(question)) == question


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, list[Fit]]]:
    """Asks the worker's function about models on a card of 8 GiB."""
    monkeypatch.setattr(fit_worker, "devices", lambda: [CARD])
    monkeypatch.setattr("vkllm.gpu.device.limits.available_host_bytes", lambda: 12 * GIB)
    monkeypatch.setattr(fit_worker, "measured_speeds", lambda info: Speeds(400e9, 20e9, is_measured=True))

    def ask(*models: ModelToFit, held: dict[str, int] | None = None, **loading: Any) -> dict[str, list[Fit]]:
        answers: dict[str, list[Fit]] = {}
        for name, fit in fit_worker.fits(FitQuestion(list(models), loading, held or {})):
            answers.setdefault(name, []).append(fit)
        return answers

    return ask


def test_models_are_placed_at_once_and_get_a_speed_when_the_device_was_timed(card: Any, tiny_gguf: Path) -> None:
    here = ModelToFit("tiny", str(tiny_gguf), 1, 0)
    answers = card(here, SLOW, HUGE)
    assert [fit.tokens_per_s for fit in (answers["tiny"][0], answers["slow"][0])] == [0, 0]
    tiny, slow, huge = (answers[name][1] for name in ("tiny", "slow", "huge"))
    assert tiny.is_fitting and tiny.needed_bytes < 2**25 and tiny.slow_bytes == 0 and tiny.tokens_per_s > 100
    assert slow.is_fitting and 3 * GIB < slow.slow_bytes < 4 * GIB and 4 < slow.tokens_per_s < 8
    assert not huge.is_fitting and huge.in_words.startswith("does not fit: needs 43.0 GiB, 19.")


def test_a_model_that_is_too_large_says_what_would_fit(card: Any, tiny_gguf: Path) -> None:
    here = ModelToFit("tiny", str(tiny_gguf), 1, 0)
    [fit, _] = card(here, vram_limit=100_000, ram_limit=0)["tiny"]
    assert not fit.is_fitting and fit.needed_bytes > fit.available_bytes == 100_000
    assert "would fit" in fit.advice


def test_limits_and_cache_types_are_those_of_the_chat(card: Any, tiny_gguf: Path) -> None:
    here = ModelToFit("tiny", str(tiny_gguf), 1, 0)
    small = card(here, type_k="q8_0", type_v="q8_0")["tiny"][0].needed_bytes
    assert small < card(here)["tiny"][0].needed_bytes
    assert card(SLOW, vram_limit=GIB)["slow"][0].fast_bytes == GIB
    assert not card(SLOW, ram_limit=GIB)["slow"][0].is_fitting


def test_what_the_open_model_holds_counts_as_free(card: Any) -> None:
    alone, other = card(SLOW)["slow"][0], card(SLOW, held={"local": 2 * GIB, "host": GIB})["slow"][0]
    assert other.fast_available_bytes - alone.fast_available_bytes > 1.8 * GIB
    assert other.available_bytes - alone.available_bytes > 2.7 * GIB


def test_a_file_that_is_damaged_cannot_run_and_the_others_can(card: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF nonsense")
    answers = card(ModelToFit("bad", str(path), 1, 0), SLOW)
    assert answers["bad"][0].in_short == "cannot run" and "bad.gguf" in answers["bad"][0].in_words
    assert answers["slow"][0].is_fitting


def test_a_machine_without_a_device_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise NoDevice("no Vulkan device was found")

    monkeypatch.setattr(fit_worker, "devices", none)
    monkeypatch.setattr("sys.stdin", type("In", (), {"read": lambda _: write_question(FitQuestion([SLOW]))})())
    fit_worker.main()
    assert "no Vulkan device was found" in capsys.readouterr().out


def worker(tmp_path: Path, body: str) -> list[str]:
    """A command in the worker's place."""
    path = tmp_path / "worker.py"
    path.write_text("import json, os, sys, time\nquestion = json.loads(sys.stdin.read())\n" + textwrap.dedent(body))
    return [sys.executable, str(path)]


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SAY = """
for model in question["models"]:
    fit = {"kind": "cpu", "needed_bytes": len(question["models"])}
    print(json.dumps({"name": model["name"], "fit": fit}), flush=True)
"""


def test_answers_are_kept_for_each_model_and_context(tmp_path: Path) -> None:
    fits = Fits({"device": None}, worker(tmp_path, SAY))
    fits.look([SLOW, HUGE], None, {})
    until(lambda: not fits.is_looking)
    assert fits.of(SLOW, None) == fits.of(HUGE, None) == Fit("cpu", 2)
    assert fits.of(SLOW, 1024) is None and fits.n_found == 2
    fits.look([SLOW, HUGE], None, {})
    assert not fits.is_looking
    fetched = replace(SLOW, path="/here.gguf")  # it has been fetched: another question
    fits.look([fetched, HUGE], None, {})
    until(lambda: not fits.is_looking)
    assert fits.of(fetched, None) == Fit("cpu", 1)


def test_answers_come_one_by_one(tmp_path: Path) -> None:
    fits = Fits({}, worker(tmp_path, SAY + "\n    time.sleep(60)\n"))
    fits.look([SLOW, HUGE], None, {})
    until(lambda: fits.of(SLOW, None))
    assert fits.is_looking and fits.of(HUGE, None) is None
    fits.close()


@pytest.mark.parametrize(
    "body", ["os.kill(os.getpid(), 11)", "sys.exit(3)", "print('nonsense', flush=True)\nsys.exit(1)"]
)
def test_a_worker_that_dies_is_told_and_asked_again_the_next_time(tmp_path: Path, body: str) -> None:
    fits = Fits({}, worker(tmp_path, body))
    fits.look([SLOW], None, {})
    until(lambda: not fits.is_looking)
    assert fits.of(SLOW, None) is None and fits.n_found == 1
    assert "looking for devices ended with" in fits.problem
    worker(tmp_path, SAY)
    fits.look([SLOW], None, {})
    until(lambda: not fits.is_looking)
    assert fits.of(SLOW, None) is not None and fits.problem == ""


def test_what_a_driver_prints_is_no_answer(tmp_path: Path) -> None:
    fits = Fits({}, worker(tmp_path, "print('warning: this driver is slow')\nprint('{}')\nprint('7')" + SAY))
    fits.look([SLOW], None, {})
    until(lambda: not fits.is_looking)
    assert fits.of(SLOW, None) == Fit("cpu", 1) and fits.problem == ""


def test_a_worker_that_cannot_be_started_is_told() -> None:
    fits = Fits({}, ["/there/is/no/such/program"])
    fits.look([SLOW], None, {})
    assert not fits.is_looking and "could not be started" in fits.problem


def test_closing_ends_a_worker_that_hangs_and_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        open("ids", "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(60)
        """
    monkeypatch.chdir(tmp_path)
    fits = Fits({}, worker(tmp_path, body))
    fits.look([SLOW], None, {})
    until(lambda: (tmp_path / "ids").exists() and (tmp_path / "ids").read_text())
    start = time.monotonic()
    fits.close()
    assert time.monotonic() - start < 1
    for process in (tmp_path / "ids").read_text().split():
        status = Path(f"/proc/{process}/status")
        until(lambda: not status.exists() or "State:\tZ" in status.read_text())  # noqa: B023
    fits.look([HUGE], None, {})
    assert not fits.is_looking


@pytest.mark.gpu
def test_the_real_worker_plans_on_the_real_device(tiny_gguf: Path) -> None:
    fits = Fits({"device": None})
    here = ModelToFit("tiny", str(tiny_gguf), 1, 0)
    fits.look([here, HUGE], None, {})
    until(lambda: fits.of(here, None) and fits.of(HUGE, None))
    fit = fits.of(here, None)
    assert fit is not None and fit.is_fitting and 0 < fit.needed_bytes < 2**25
    fits.close()


MODELS = [
    KnownModel("smollm2", "A small one", 98_362_432, "/models/smollm2.gguf"),
    KnownModel("spilling", "One that spills", 11_000_000_000, "/models/spilling.gguf"),
    KnownModel("unknown", "Not planned", 11_000_000_000),
    KnownModel("large", "A large one", 40_000_000_000),
]


@pytest.mark.asyncio
async def test_the_list_shows_for_each_model_where_it_fits(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: MODELS)
    async with open_chat(size=(120, 30)) as scene:
        await scene.press("f3")
        await scene.until(lambda: isinstance(scene.app.screen, ModelsScreen) and "1.0 GiB" not in scene.shown)
        await scene.until(lambda: "fits · 240 MiB of 8.0 GiB VRAM, about 612 tok/s" in scene.shown)
        assert "fits · 3.0 GiB in RAM, about 6.1 tok/s" in scene.shown
        assert "does not fit: needs 43.0 GiB, 20.0 GiB there" in scene.shown
        unknown = next(line for line in scene.shown.split("\n") if "unknown" in line)
        assert unknown.rstrip(" │").endswith("to fetch")
        colours = {text: scene.colours(text) for text in ("240 MiB", "in RAM", "does not fit")}
        assert len({frozenset(colour) for colour in colours.values()}) == 3
        await scene.press("down", "down", "down")
        await scene.until(lambda: "; the same model in Q4_0 would fit" in scene.shown)
        await scene.pilot.resize_terminal(80, 24)
        await scene.until(lambda: "fits · 612 tok/s" in scene.shown and "+3.0 GiB RAM · 6.1 tok/s" in scene.shown)
        assert "too large: 43.0 GiB" in scene.shown
        assert "large · to fetch, 37.3 GiB" in scene.shown
        scene.app.screen.query_one(Input).value = "spill"
        await scene.until(lambda: "612" not in scene.shown and "6.1 tok/s" in scene.shown)


@pytest.mark.asyncio
async def test_a_driver_that_crashes_is_asked_once_for_each_time_the_list_is_opened(
    open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: MODELS)
    body = f"open({str(tmp_path / 'n')!r}, 'a').write('x')\nos.kill(os.getpid(), 11)"
    async with open_chat() as scene:
        scene.app.session.fits = Fits({}, worker(tmp_path, body))
        await scene.press("f3")
        await scene.until(lambda: "ended with signal 11" in scene.shown)
        await scene.pilot.pause(0.5)
        assert (tmp_path / "n").read_text() == "x"


@pytest.mark.asyncio
async def test_a_look_that_fails_is_told_below_the_list(open_chat: OpenChat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkllm.faces.tui.session.Session.known_models", lambda self, recent: MODELS)
    async with open_chat() as scene:
        fits = scene.app.session.fits
        fits.problem = "no Vulkan device was found"
        monkeypatch.setattr("fake_llm.FITS", {})
        await scene.press("f3")
        await scene.until(lambda: "no Vulkan device was found" in scene.shown)
        assert FITS
