"""Pipelines: shared when equal, of the subgroup size asked for, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_kompute import Gpu, chain_result, run_scenario

from vkllm.errors import DeviceError
from vkllm.gpu.device.probe import devices
from vkllm.gpu.layer import Layer

pytestmark = pytest.mark.gpu


def test_equal_algorithms_share_a_pipeline_and_others_do_not(gpu: Gpu) -> None:
    tensors = [[gpu.tensor(np.arange(64, dtype=np.uint32)) for _ in range(2)] for _ in range(50)]

    def made_and_shared(make: Callable[[], list[Any]]) -> tuple[list[Any], int, int]:
        before = gpu.layer.statistics(gpu.device)
        algorithms = make()
        after = gpu.layer.statistics(gpu.device)
        made, shared = after.pipelines_created, after.pipelines_shared
        return algorithms, made - before.pipelines_created, shared - before.pipelines_shared

    equal, made, shared = made_and_shared(lambda: [gpu.algorithm("chain", pair, 1, n_push=1) for pair in tensors])
    assert (made, shared) == (1, 49)
    different: list[list[Any]] = []
    for change in (
        lambda: [gpu.algorithm("chain", tensors[0], 1, [5], n_push=1)],  # specialised or not
        lambda: [gpu.algorithm("chain", tensors[0], 1, [6], n_push=1)],  # value of a constant
        lambda: [gpu.algorithm("chain", tensors[0], 1, n_push=2)],  # push constants
        lambda: [gpu.algorithm("chain", [*tensors[0], tensors[1][0]], 1, n_push=1)],  # bindings
        lambda: [gpu.algorithm("spin", tensors[0], 1, n_push=1)],  # SPIR-V
    ):
        _kept, made, shared = made_and_shared(change)
        assert (made, shared) == (1, 0)
        different.append(_kept)  # so that the next one finds it
    # The first owner goes; the others' pipeline stays until the last one goes.
    for algorithm in equal[:-1]:
        algorithm.destroy()
    gpu.run(gpu.manager.sequence().record(gpu.dispatch(equal[-1], 4)))
    np.testing.assert_array_equal(tensors[-1][1].data(), chain_result(np.arange(64, dtype=np.uint32), 1) + 4)
    _kept, made, shared = made_and_shared(lambda: [gpu.algorithm("chain", tensors[0], 1, n_push=1)])
    assert (made, shared) == (0, 1)
    _kept[0].destroy()
    equal[-1].destroy()
    _kept, made, shared = made_and_shared(lambda: [gpu.algorithm("chain", tensors[0], 1, n_push=1)])
    assert (made, shared) == (1, 0)


def test_unused_pipelines_are_kept_as_many_as_asked_for_the_latest_ones(gpu: Gpu) -> None:
    tensors = [gpu.tensor(np.arange(64, dtype=np.uint32)) for _ in range(2)]
    objects = gpu.layer.statistics(gpu.device).objects

    def is_made(constant: int) -> bool:
        before = gpu.layer.statistics(gpu.device).pipelines_created
        algorithm = gpu.algorithm("chain", tensors, 1, [constant], n_push=1)
        gpu.run(gpu.manager.sequence().record(gpu.dispatch(algorithm, 0)))
        algorithm.destroy()
        return gpu.layer.statistics(gpu.device).pipelines_created > before

    gpu.layer.keep_pipelines(gpu.device, 2)
    assert [is_made(constant) for constant in (1, 2, 1, 2)] == [True, True, False, False]
    assert [is_made(constant) for constant in (3, 2, 3, 1)] == [True, False, False, True]
    gpu.layer.keep_pipelines(gpu.device, 0)
    assert [is_made(constant) for constant in (1, 3, 1)] == [True, True, True]
    assert gpu.layer.statistics(gpu.device).objects == objects


def test_a_required_subgroup_size_is_given_where_the_device_can(gpu: Gpu) -> None:
    info = devices()[0]
    for n in (1, 8, 16, 32, 64, 128):
        sizes = gpu.tensor(np.zeros(128, np.uint32))
        before = gpu.layer.statistics(gpu.device)
        gpu.layer.require_subgroup_size(n)
        try:
            algorithm = gpu.algorithm("subgroup", [sizes], 1)
        finally:
            gpu.layer.require_subgroup_size(0)
        after = gpu.layer.statistics(gpu.device)
        ignored, full = (
            getattr(after, name) - getattr(before, name) for name in ("subgroup_sizes_ignored", "full_subgroups")
        )
        gpu.run(gpu.manager.sequence().record(gpu.dispatch(algorithm)))
        if info.min_subgroup_size <= n <= info.max_subgroup_size:
            assert ignored == 0
            assert full == ("compute_full_subgroups" in gpu.layer.features(gpu.device))
            assert set(sizes.data()) == {n}
        else:
            assert (ignored, full) == (1, 0)
            assert set(sizes.data()) != {n}


def test_the_required_subgroup_size_is_what_the_driver_compiles_for(layer: Layer, tmp_path: Path) -> None:
    drivers = sorted(Path("/usr/share/vulkan/icd.d").glob("radeon_icd*.json"))
    if not drivers:
        pytest.skip("Mesa's RADV is not installed; it can compile without AMD hardware")
    driver = {"VK_ICD_FILENAMES": str(drivers[0]), "VK_DRIVER_FILES": str(drivers[0])}
    seen, _ = run_scenario("amd_subgroup_sizes", tmp_path, RADV_FORCE_FAMILY="gfx1100", **driver)
    assert {int(n): sizes for n, sizes in seen["compiled"].items()} == {
        0: [64],
        16: [64],
        32: [32],
        64: [64],
        128: [64],
    }
    assert (seen["made"], seen["ignored"]) == (3, 2)  # as the driver likes it (16 and 128 too), 32, 64


def use_one_pipeline(layer: Layer) -> tuple[int, int]:
    """Opens a device, makes a pipeline and destroys the device; returns bytes of cache loaded and saved."""
    gpu = Gpu(layer)
    try:
        sequence, tensors, _kept = gpu.chain(np.zeros(64, np.uint32), 3)
        gpu.run(sequence)
        np.testing.assert_array_equal(tensors[1].data(), chain_result(np.zeros(64, np.uint32), 3))
        assert layer.save_pipeline_cache(gpu.device)
        statistics = layer.statistics(gpu.device)
        return statistics.cache_loaded_bytes, statistics.cache_saved_bytes
    finally:
        gpu.close()


def test_the_pipeline_cache_is_written_read_again_and_made_anew_when_damaged(layer: Layer, tmp_path: Path) -> None:
    folder = tmp_path / "not there yet" / "pipelines"
    layer.set_pipeline_cache(folder)
    try:
        loaded, saved = use_one_pipeline(layer)
        assert loaded == 0
        assert saved > 0
        [file] = folder.iterdir()
        assert file.name.startswith(f"pipelines-{devices()[0].vendor_id:04x}-")
        sound = file.read_bytes()
        assert len(sound) == saved + 32
        loaded, _ = use_one_pipeline(layer)
        assert loaded >= saved
        head, body = 32, len(sound) // 2
        for damaged in (
            b"",
            sound[:-1],
            sound + b"\0",
            bytes(len(sound)),
            sound[:head] + bytes([sound[head] ^ 1]) + sound[head + 1 :],
            sound[:body] + bytes([sound[body] ^ 0x80]) + sound[body + 1 :],
        ):
            file.write_bytes(damaged)
            loaded, saved = use_one_pipeline(layer)
            assert loaded == 0
            assert saved > 0
            assert list(folder.iterdir()) == [file]
            loaded, _ = use_one_pipeline(layer)
            assert loaded == saved
    finally:
        layer.set_pipeline_cache(None)
    assert use_one_pipeline(layer) == (0, 0)


def test_a_pipeline_cache_that_cannot_be_kept_is_said(layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="compiled pipelines"):
        layer.set_pipeline_cache(tmp_path / "file" / "pipelines")
    folder = tmp_path / "pipelines"
    layer.set_pipeline_cache(folder)
    gpu = Gpu(layer)
    try:
        gpu.chain(np.zeros(64, np.uint32), 1)
        folder.rmdir()
        assert not layer.save_pipeline_cache(gpu.device)
    finally:
        layer.set_pipeline_cache(None)
        gpu.close()
