"""Suballocation: buffers share blocks, keep to themselves, and give everything back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from bare_kompute import Gpu, chain_result

from vkllm.errors import OutOfDeviceMemory
from vkllm.gpu.layer.memory import TIERS

pytestmark = pytest.mark.gpu
MIB = 2**20


def words(n_bytes: int, value: int = 0) -> np.ndarray:
    return np.full(n_bytes // 4, value, np.uint32)


def allocations(gpu: Gpu) -> int:
    return gpu.layer.statistics(gpu.device).allocations


def used(gpu: Gpu) -> tuple[int, int]:
    """Bytes of buffers and of blocks."""
    heaps = gpu.layer.heaps(gpu.device)
    return sum(heap.used_bytes for heap in heaps), sum(heap.allocated_bytes for heap in heaps)


def test_small_buffers_share_a_block_and_large_ones_have_their_own(gpu: Gpu) -> None:
    small = [gpu.tensor(words(100_000)) for _ in range(100)]
    assert allocations(gpu) == 1
    large = [gpu.tensor(words(20 * MIB), "storage") for _ in range(3)]
    assert allocations(gpu) == 4
    n_bytes, block_bytes = used(gpu)
    assert 100 * 100_000 + 60 * MIB <= n_bytes <= block_bytes == 16 * MIB + 60 * MIB
    del large
    assert allocations(gpu) == 1
    del small
    assert (allocations(gpu), used(gpu)) == (0, (0, 0))


def test_blocks_double_so_that_many_buffers_need_few(gpu: Gpu) -> None:
    kept = [gpu.tensor(words(4 * MIB), "storage") for _ in range(60)]
    assert len(kept) == 60
    assert allocations(gpu) == 4  # 16, 32, 64 and 128 MiB


def test_no_two_buffers_overlap_whatever_comes_and_goes(gpu: Gpu) -> None:
    drawn = random.Random(7)
    kept: dict[int, Any] = {}
    for number in range(400):
        if kept and drawn.random() < 0.45:
            gone = drawn.choice(list(kept))
            kept.pop(gone)
        else:
            kept[number] = gpu.tensor(words(4 * drawn.choice([1, 3, 64, 1000, 4097, 100_000]), number))
        if number % 50 == 0:
            for value, tensor in kept.items():
                assert (tensor.data() == value).all()
    for value, tensor in kept.items():
        assert (tensor.data() == value).all()
    n_bytes = sum(tensor.data().nbytes for tensor in kept.values())
    assert n_bytes <= used(gpu)[0] <= n_bytes + 512 * len(kept)
    del tensor
    kept.clear()
    assert (allocations(gpu), used(gpu)) == (0, (0, 0))


def test_freed_neighbours_become_one_stretch_again(gpu: Gpu) -> None:
    first = gpu.tensor(words(MIB))
    many = [gpu.tensor(words(MIB)) for _ in range(14)]
    for order in (many[1::2], many[0::2]):
        for tensor in order:
            tensor.destroy()
    kept = gpu.tensor(words(14 * MIB, 5))
    assert allocations(gpu) == 1
    first.data()[:] = 9
    assert (kept.data() == 5).all()


def test_buffers_in_the_middle_of_a_block_compute_right(gpu: Gpu) -> None:
    padding = [gpu.tensor(words(4 * n)) for n in (1, 77, 1001)]
    start = np.arange(640, dtype=np.uint32)
    sequence, tensors, _kept = gpu.chain(start, 5)
    gpu.run(sequence)
    np.testing.assert_array_equal(tensors[1].data(), chain_result(start, 5))
    assert allocations(gpu) == 1
    assert all((tensor.data() == 0).all() for tensor in padding)


def test_a_tier_is_for_the_next_buffer_only_and_local_is_not_mapped(gpu: Gpu) -> None:
    for tier in TIERS:
        gpu.layer.place_next(tier)
        kept = gpu.tensor(words(4096), "storage")
        placed = gpu.layer.placement()
        assert (placed.address != 0) == (tier != "local")
        assert placed.n_bytes >= 4096
    gpu.layer.place_next("local")
    kept = gpu.tensor(words(4096), "storage")
    assert gpu.layer.placement().address == 0
    mapped = gpu.tensor(words(4096), "host")
    assert gpu.layer.placement().address == mapped.data().ctypes.data
    gpu.layer.place_next("local")  # of a buffer that is not made
    gpu.layer.inject("create_buffer", 1, -2)
    with pytest.raises(RuntimeError):
        gpu.tensor(words(4096), "storage")
    with pytest.raises(OutOfDeviceMemory):
        gpu.layer.check(gpu.device)
    mapped = gpu.tensor(words(4096), "host")
    assert gpu.layer.placement().address == mapped.data().ctypes.data
    assert kept.size() == 1024


def test_a_driver_that_refuses_a_block_gets_a_smaller_one(gpu: Gpu) -> None:
    gpu.layer.inject("allocate_block", 1, -2)
    kept = gpu.tensor(words(MIB))
    gpu.layer.check(gpu.device)
    assert used(gpu)[1] == 8 * MIB
    assert kept.size() == MIB // 4


def test_a_heap_that_is_nearly_full_is_filled_to_its_end(gpu: Gpu) -> None:
    gpu.layer.limit_memory(gpu.device, 128 * MIB, 128 * MIB)
    room = gpu.layer.heaps(gpu.device)[0].room_bytes
    assert 64 * MIB < room < 128 * MIB  # less a margin, and what the driver itself takes
    kept = []
    with pytest.raises(RuntimeError):
        while True:
            kept.append(gpu.tensor(words(3 * MIB), "storage"))
    with pytest.raises(OutOfDeviceMemory, match="allocate"):
        gpu.layer.check(gpu.device)
    heap = gpu.layer.heaps(gpu.device)[0]
    assert heap.size_bytes == 128 * MIB
    # 16, 32 and 64 MiB, and the rest as one block; each may end with a piece of less than 3 MiB
    assert room - 8 * MIB < heap.used_bytes <= heap.allocated_bytes <= room
    gpu.layer.limit_memory(gpu.device, None, None)
    kept.append(gpu.tensor(words(3 * MIB), "storage"))


def test_devices_on_one_gpu_share_its_heap_and_count_their_own_buffers(gpu: Gpu) -> None:
    other = Gpu(gpu.layer)
    kept = other.tensor(words(20 * MIB), "storage")
    mine, theirs = gpu.layer.heaps(gpu.device)[0], gpu.layer.heaps(other.device)[0]
    assert (mine.used_bytes, theirs.used_bytes) == (0, 20 * MIB)
    assert mine.allocated_bytes == theirs.allocated_bytes == 20 * MIB
    assert kept.size() == 5 * MIB
    other.close()
    assert gpu.layer.heaps(gpu.device)[0].allocated_bytes == 0
