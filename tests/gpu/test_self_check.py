"""The check of a device before it is used: what is wrong is left to slower kernels or refused, and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model

from vkllm.engine import engine as engine_module
from vkllm.engine.engine import Engine
from vkllm.errors import UnsupportedDevice
from vkllm.gpu.device import kompute
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program import self_check
from vkllm.gpu.program.self_check import check_kernels
from vkllm.gpu.program.self_check_cases import DOT_PRODUCTS, MATRICES, SUBGROUPS, cases

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the device of the session is given back as it was."""
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path))
    return tmp_path / "self_check.json"


@pytest.fixture
def checked(device: Device) -> Iterator[Device]:
    """The device of the session, given back as it was."""
    info, has_integer_dot = device.info, device.has_integer_dot
    yield device
    device.info, device.has_integer_dot = info, has_integer_dot


@pytest.fixture
def break_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes a driver that compiles some modules to other code: a shader that writes nothing of what is asked."""
    asked: list[str] = []
    real = kompute.shader

    def install(*broken: str) -> list[str]:
        def shader(name: str) -> bytes:
            asked.append(name)
            is_broken = any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in broken)
            return real("copy_words") if is_broken else real(name)

        monkeypatch.setattr(kompute, "shader", shader)
        return asked

    return install


def test_the_case_that_cpus_leave_out_is_right_too(checked: Device) -> None:
    checked.info = replace(checked.info, type="discrete")
    (case,) = (one for group in cases(checked).values() for one in group if one.module.startswith("attention"))
    checked.run([case.dispatch])
    assert case.is_right


def test_a_sound_device_is_left_as_it_is(checked: Device, cache: Path) -> None:
    before = checked.info
    assert check_kernels(checked) == () and checked.info == before
    (verdict,) = json.loads(cache.read_text()).items()
    assert verdict[1] == [] and before.name in verdict[0] and before.driver_version in verdict[0]


def test_every_case_can_fail(checked: Device) -> None:
    """Before it has run, no case is right; with other results than numpy's none is either."""
    made = [case for kind in cases(checked).values() for case in kind]
    assert len(made) >= 6
    assert not any(case.is_right for case in made), "what a kernel leaves out must count"
    checked.run([case.dispatch for case in made])
    assert all(case.is_right for case in made)


@pytest.mark.parametrize("module", ["argmax", "embed_q4_0"])
def test_what_no_slow_path_mends_is_refused_with_the_drivers_name(
    checked: Device, cache: Path, break_modules: Callable[..., list[str]], module: str
) -> None:
    break_modules(module)
    with pytest.raises(UnsupportedDevice) as caught:
        check_kernels(checked)
    message = str(caught.value)
    assert f"({module})" in message and "computes wrongly" in message and "choose another device" in message
    assert checked.info.name in message and checked.info.driver_version in message
    assert not cache.exists(), "a driver that was mended is found out at once"


def test_subgroups_that_are_wrong_are_done_without(checked: Device, break_modules: Callable[..., list[str]]) -> None:
    if checked.is_plain:
        pytest.skip("the device has none")
    break_modules("norm")
    assert check_kernels(checked) == (SUBGROUPS,)
    assert checked.is_plain and checked.info.matrix_shape is None


def test_a_device_that_is_wrong_without_subgroups_too_is_refused(
    checked: Device, break_modules: Callable[..., list[str]]
) -> None:
    break_modules("norm", "norm_plain")
    with pytest.raises(UnsupportedDevice, match=r"computes wrongly \(norm_plain\)"):
        check_kernels(checked)


def test_dot_products_that_are_wrong_are_made_in_float32(
    checked: Device, cache: Path, break_modules: Callable[..., list[str]]
) -> None:
    if "integer_dot_product" not in checked.info.features:
        pytest.skip("the device has no integer dot products")
    checked.has_integer_dot = True
    asked = break_modules("matvec_q8_0", "matvec_fused_q4_0", "matvec_q8_0_plain")
    assert check_kernels(checked) == (DOT_PRODUCTS,)
    assert not checked.has_integer_dot and "matvec_q8_0_soft" in "".join(asked)
    assert list(json.loads(cache.read_text()).values()) == [[DOT_PRODUCTS]]


def test_matrices_that_are_wrong_are_not_used(checked: Device, break_modules: Callable[..., list[str]]) -> None:
    if checked.info.matrix_shape is None:
        pytest.skip("the device has no matrices")
    break_modules("matmul_q4_0")
    assert check_kernels(checked) == (MATRICES,)
    assert checked.info.matrix_shape is None and not checked.is_plain


def test_the_second_start_takes_the_verdict_of_the_first(
    checked: Device, cache: Path, monkeypatch: pytest.MonkeyPatch, break_modules: Callable[..., list[str]]
) -> None:
    if checked.is_plain:
        pytest.skip("the device has no subgroups")
    info = checked.info
    break_modules("norm")
    assert check_kernels(checked) == (SUBGROUPS,)
    checked.info = info
    monkeypatch.setattr(self_check, "cases", None)  # which would fail if it were called
    assert check_kernels(checked) == (SUBGROUPS,) and checked.is_plain


@pytest.mark.parametrize("changed", ["driver", "device", "shaders", "damaged", "unknown"])
def test_a_verdict_of_something_else_is_ignored(
    checked: Device, cache: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    cache.write_text(json.dumps({self_check._key(checked): [SUBGROUPS]}))
    match changed:
        case "driver":
            checked.info = replace(checked.info, driver_version="Mesa 99.9")
        case "device":
            checked.info = replace(checked.info, device_id=7)
        case "shaders":
            monkeypatch.setattr(self_check, "shader_manifest", lambda: b"others")
        case "damaged":
            cache.write_text(cache.read_text()[:-3])
        case "unknown":
            cache.write_text(json.dumps({self_check._key(checked): ["a path of later versions"]}))
    before = checked.info
    assert check_kernels(checked) == () and checked.info == before


def test_the_check_is_quick(
    checked: Device, break_modules: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few and short kernels to compile, little data, one submit: 0.15 s on an idle core."""
    asked, words, runs = break_modules(), [], []
    buffer, run = checked.buffer, checked.run

    def counted(n_words: int, *args: Any, **options: Any) -> Buffer:
        words.append(n_words)
        return buffer(n_words, *args, **options)

    monkeypatch.setattr(checked, "buffer", counted)
    monkeypatch.setattr(checked, "run", lambda dispatches: runs.append(len(dispatches)) or run(dispatches))
    check_kernels(checked)
    modules = list(asked)
    n_bytes = sum(len(kompute.shader(name)) for name in modules)
    assert 5 < len(modules) < 12 and runs == [len(modules)]
    if checked.info.type == "cpu":  # which takes longer to compile a longer one
        assert n_bytes < 150_000
    assert sum(words) < 100_000


def test_no_number_is_wrong_enough(checked: Device) -> None:
    case = cases(checked)["base"][1]
    checked.run([case.dispatch])
    assert case.is_right
    with np.errstate(invalid="ignore"):
        assert not replace(case, error=lambda: float("nan")).is_right


def test_the_engine_checks_its_device_before_it_loads_a_model(
    break_modules: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_random_model(tmp_path / "model.gguf", TINY_SPEC, {})
    break_modules("argmax")
    monkeypatch.setattr(engine_module, "Program", None)  # which would fail if it were made
    with pytest.raises(UnsupportedDevice, match=r"computes wrongly \(argmax\)"):
        Engine(engine_config(path, TINY_SPEC))
