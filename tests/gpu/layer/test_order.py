"""Order: which dispatches and copies get a barrier.

lavapipe runs dispatches one after another whatever the barriers, so order is proven by what is recorded and by the
synchronization validation of VK_LAYER_KHRONOS_validation below the layer; results say it too on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_kompute import Gpu, chain_result, under_validation

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["host", "storage"])
def test_300_dependent_dispatches_give_the_right_words_with_a_barrier_each(gpu: Gpu, kind: str) -> None:
    start = np.arange(16_384, dtype=np.uint32)
    sequence, tensors, _ = gpu.chain(start if kind == "host" else np.zeros_like(start), 300, kind)
    if kind == "storage":  # only kernels can fill and read it
        source, result = gpu.tensor(start), gpu.tensor(np.zeros_like(start))
        first = gpu.algorithm("chain", [source, tensors[0]], 256, [0], n_push=1)
        last = gpu.algorithm("chain", [tensors[0], result], 256, [0], n_push=1)
        gpu.run(gpu.manager.sequence().record(gpu.dispatch(first, 0)))
        gpu.run(sequence)
        gpu.run(gpu.manager.sequence().record(gpu.dispatch(last, 0)))
        expected = 3 * chain_result(np.uint32(3) * start, 300)
    else:
        gpu.run(sequence)
        result, expected = tensors[0], chain_result(start, 300)
    np.testing.assert_array_equal(result.data(), expected)
    statistics = gpu.layer.statistics(gpu.device)
    assert statistics.barriers == statistics.dispatches == 300 + 2 * (kind == "storage")


def test_independent_dispatches_get_no_barrier_and_the_next_dependent_one_does(gpu: Gpu) -> None:
    source = gpu.tensor(np.arange(256, dtype=np.uint32))
    parts = [gpu.tensor(np.zeros(256, np.uint32)) for _ in range(20)]
    sequence = gpu.manager.sequence()
    for i, part in enumerate(parts):
        gpu.layer.independent()  # asked for the first too, which gets its barrier all the same
        sequence.record(gpu.dispatch(gpu.algorithm("chain", [source, part], 4, n_push=1), i))
        assert gpu.layer.statistics(gpu.device).barriers == 1
    result = gpu.tensor(np.zeros(256, np.uint32))
    sequence.record(gpu.dispatch(gpu.algorithm("chain", [parts[-1], result], 4, n_push=1), 5))
    assert gpu.layer.statistics(gpu.device).barriers == 2
    gpu.run(sequence)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part.data(), 3 * np.roll(np.arange(256, dtype=np.uint32), -33) + i)
    np.testing.assert_array_equal(result.data(), 3 * np.roll(parts[-1].data(), -33) + 5)


def test_a_dispatch_after_a_copy_and_the_first_of_each_sequence_are_ordered_even_if_called_independent(
    gpu: Gpu,
) -> None:
    tensors = [gpu.tensor(np.arange(64, dtype=np.uint32), "device") for _ in range(2)]
    algorithm = gpu.algorithm("chain", tensors, 1, n_push=1)

    def barriers_of(record: Callable[[], object]) -> int:
        before = gpu.layer.statistics(gpu.device).barriers
        record()
        return gpu.layer.statistics(gpu.device).barriers - before

    def independent(sequence: Any) -> None:
        gpu.layer.independent()
        sequence.record(gpu.dispatch(algorithm, 0))

    one, other = gpu.manager.sequence(), gpu.manager.sequence()
    assert barriers_of(lambda: independent(one)) == 1
    assert barriers_of(lambda: independent(one)) == 0
    assert barriers_of(lambda: independent(other)) == 1  # each sequence has a state of its own
    assert barriers_of(lambda: one.record(gpu.kp.OpTensorSyncDevice(tensors[:1]))) == 1
    assert barriers_of(lambda: independent(one)) == 1
    assert barriers_of(lambda: independent(one)) == 0
    gpu.run(one)
    one.clear()
    assert barriers_of(lambda: independent(one)) == 1  # recorded anew


def test_the_validation_layer_has_nothing_to_say_of_all_that_the_layer_does(
    has_validation: None, tmp_path: Path
) -> None:
    seen, messages = under_validation("everything", tmp_path)
    assert messages == ""
    assert seen["right"]


def test_the_validation_layer_sees_a_hazard_when_a_dependent_dispatch_is_called_independent(
    has_validation: None, tmp_path: Path
) -> None:
    _, messages = under_validation("unordered", tmp_path)
    assert "SYNC-HAZARD-READ-AFTER-WRITE" in messages
