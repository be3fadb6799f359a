"""Rows and columns of tensors, as they are read from files, against numpy."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vkllm.errors import ModelFileError
from vkllm.formats import quants, tensor_bytes
from vkllm.formats.gguf import TensorInfo, read_tensor
from vkllm.formats.gguf_header import Excerpt
from vkllm.formats.quants import weight_format

FORMATS = ("F32", "F16", "Q4_0", "MXFP4", "Q6_K")


def excerpt_of(path: Path, fmt: str) -> tuple[TensorInfo, np.ndarray]:
    """A file with a tensor of 9 rows of 5 blocks behind 7 other bytes, and what 5 rows and 3 blocks of it are."""
    block = weight_format(fmt).block
    raw = np.random.default_rng(0).integers(0, 256, (9, 5, weight_format(fmt).block_bytes), np.uint8)
    path.write_bytes(b"before " + raw.tobytes())
    rows, columns = (range(1, 4), range(6, 8)), (range(block), range(2 * block, 4 * block))
    wanted = raw[[1, 2, 3, 6, 7]][:, [0, 2, 3]]
    return TensorInfo("one", (5, 3 * block), fmt, 7, wanted.size, excerpt=Excerpt(5 * block, rows, columns)), wanted


@pytest.mark.parametrize("read_bytes", [1, 500, 2**20])
@pytest.mark.parametrize("fmt", FORMATS)
def test_columns_of_rows(tmp_path: Path, fmt: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_bytes, "READ_BYTES", read_bytes)
    info, wanted = excerpt_of(tmp_path / "tensors", fmt)
    assert np.array_equal(read_tensor(tmp_path / "tensors", info), wanted.reshape(-1))


def test_parts_begin_and_end_anywhere(tmp_path: Path) -> None:
    info, wanted = excerpt_of(tmp_path / "tensors", "Q4_0")
    file = os.open(tmp_path / "tensors", os.O_RDONLY)
    for first, end in [(0, 1), (17, 55), (53, 163), (100, 270), (269, 270)]:
        target = np.zeros(end - first, np.uint8)
        tensor_bytes.read_part(tmp_path / "tensors", info, file, first, target)
        assert np.array_equal(target, wanted.reshape(-1)[first:end])
    os.close(file)


def test_what_one_reader_has_read_others_take_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three readers of different columns of the same rows, in parts that end at different places, and of a whole
    tensor: the file is read once."""
    monkeypatch.setattr(tensor_bytes, "READ_BYTES", 1000)
    raw = np.random.default_rng(1).integers(0, 256, (500, 6, 18), np.uint8)
    path = tmp_path / "tensors"
    path.write_bytes(b"before " + raw.tobytes())
    whole = TensorInfo("one", (500, 192), "Q4_0", 7, raw.size)
    infos = [
        replace(whole, shape=(500, 64), n_bytes=raw.size // 3, excerpt=Excerpt(192, (range(500),), (columns,)))
        for columns in (range(64), range(64, 128), range(128, 192))
    ]
    shared, targets = tensor_bytes.SharedReads(), [np.zeros(info.n_bytes, np.uint8) for info in (*infos, whole, whole)]
    file = os.open(path, os.O_RDONLY)
    with ThreadPoolExecutor(5) as pool:

        def read(number: int, info: TensorInfo, target: np.ndarray) -> None:
            n = 777 * (number + 1)
            for first in range(0, len(target), n):
                tensor_bytes.read_part(path, info, file, first, target[first : first + n], shared)

        first = [pool.submit(read, i, *each) for i, each in enumerate(zip(infos, targets[:3], strict=True))]
        assert not [each.result() for each in first if each.result()]
        assert shared.n_bytes == raw.size
        for target in targets[3:]:
            pool.submit(read, 0, whole, target).result()
    os.close(file)
    assert shared.n_bytes == 2 * raw.size, "these have other pieces, which both take"
    for i, target in enumerate(targets[:3]):
        assert np.array_equal(target, raw[:, 2 * i : 2 * i + 2].reshape(-1))
    assert all(np.array_equal(target, raw.reshape(-1)) for target in targets[3:])


def test_only_the_last_pieces_are_kept_and_errors_reach_all_readers(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    path.write_bytes(bytes(range(100)))
    file, shared = os.open(path, os.O_RDONLY), tensor_bytes.SharedReads(most_bytes=20)
    for offset in (0, 10, 20, 10, 0):  # 0 is read twice
        assert shared.piece(path, "one", file, offset, 10).tolist() == [*range(offset, offset + 10)]
    assert shared.n_bytes == 40
    for _ in range(2):
        with pytest.raises(ModelFileError, match=r"tensor 'one' can no longer be read \(the file ends before it\)"):
            shared.piece(path, "one", file, 95, 10)
    shared.forget()
    assert shared.piece(path, "one", file, 0, 10).tolist() == [*range(10)] and shared.n_bytes == 60
    os.close(file)


def test_whole_rows_and_parts_of_a_vector(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32)
    (tmp_path / "tensors").write_bytes(values.tobytes())
    rows = TensorInfo("rows", (3, 5), "F32", 0, 60, excerpt=Excerpt(5, (range(2, 4), range(9, 10)), (range(5),)))
    assert read_tensor(tmp_path / "tensors", rows).view(np.float32).tolist() == [*range(10, 20), *range(45, 50)]
    part = TensorInfo("part", (4,), "F32", 40, 16, excerpt=Excerpt(20, (range(1),), (range(3, 5), range(17, 19))))
    assert read_tensor(tmp_path / "tensors", part).view(np.float32).tolist() == [13, 14, 27, 28]


@pytest.mark.parametrize("fmt", FORMATS)
def test_ranges_below_0_are_zeros(tmp_path: Path, fmt: str) -> None:
    info, wanted = excerpt_of(tmp_path / "tensors", fmt)
    assert info.excerpt is not None
    rows = (range(-3, -1), *info.excerpt.rows, range(-2, -1))
    with_rows = replace(info, shape=(8, info.n_columns), n_bytes=wanted.size // 5 * 8)
    read = read_tensor(tmp_path / "tensors", replace(with_rows, excerpt=replace(info.excerpt, rows=rows)))
    assert np.array_equal(read.reshape(8, -1), np.pad(wanted.reshape(5, -1), ((2, 1), (0, 0))))
    block = weight_format(fmt).block
    columns = (range(-1 - block, -1), *info.excerpt.columns)
    with_columns = replace(info, shape=(5, 4 * block), n_bytes=wanted.size // 3 * 4)
    read = read_tensor(tmp_path / "tensors", replace(with_columns, excerpt=replace(info.excerpt, columns=columns)))
    assert np.array_equal(read.reshape(wanted.shape[0], 4, -1), np.pad(wanted, ((0, 0), (1, 0), (0, 0))))


@pytest.mark.parametrize("fmt", quants.FORMATS)
def test_bytes_of_zero_are_numbers_of_zero(fmt: str) -> None:
    block = weight_format(fmt).block
    assert not quants.dequantize(np.zeros(weight_format(fmt).block_bytes, np.uint8), fmt, (block,)).any()


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    info, _ = excerpt_of(tmp_path / "tensors", "Q4_0")
    os.truncate(tmp_path / "tensors", 7 + 7 * 5 * 18 + 40)
    with pytest.raises(ModelFileError, match=r"tensor 'one' can no longer be read \(the file ends before it\)"):
        read_tensor(tmp_path / "tensors", info)
