"""split_planes and copy_words against numpy, and the uploader over several chunks."""

from pathlib import Path

import numpy as np
import pytest
from kernel_case import filled, poisoned, words
from random_weights import quantized

from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import split_planes, weight_format
from vkllm.gpu.device.kernel import QUANTIZED_FORMATS
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program import weights
from vkllm.gpu.program.kernels import KERNELS, WEIGHT_FORMATS

pytestmark = pytest.mark.gpu


def read_back(device: Device, buffer: Buffer, n_words: int) -> np.ndarray:
    target = poisoned(device, n_words)
    copy = device.dispatch(
        KERNELS["copy_words"], (buffer, target), constants=(64,), groups=(3, 1), push=(n_words, 0, 0)
    )
    device.run([copy])
    return words(target, (n_words,))


@pytest.mark.parametrize("n_blocks", [1, 7, 130])
@pytest.mark.parametrize("fmt", QUANTIZED_FORMATS)
def test_split_planes(device: Device, fmt: str, n_blocks: int) -> None:
    block, unit_bytes = weight_format(fmt).block, weight_format(fmt).unit_bytes
    raw = quantized(np.random.default_rng(n_blocks).normal(0, 1, (1, block * n_blocks)).astype(np.float32), fmt)
    quant_words, scale_words = weight_format(fmt).plane_words(block * n_blocks)
    quants, scales = poisoned(device, quant_words), poisoned(device, scale_words)
    n_units = -(-len(raw) // unit_bytes)
    padded = np.zeros(n_units * unit_bytes, np.uint8)
    padded[: len(raw)] = raw
    split = device.dispatch(
        KERNELS["split_planes"],
        (filled(device, padded), quants, scales),
        constants=(64,),
        push=(n_units, 0),
        weight_format=fmt,
    )
    device.run([split])
    wanted_quants, wanted_scales = split_planes(raw, fmt)
    assert np.array_equal(words(quants, (len(wanted_quants),)), wanted_quants)
    n_codebook = len(weight_format(fmt).codebook)  # which the uploader writes
    assert np.array_equal(words(scales, (len(wanted_scales),))[n_codebook:], wanted_scales[n_codebook:])


@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_stacked_tensors_in_several_chunks(
    device: Device, fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "STAGING_WORDS", 300)
    rng = np.random.default_rng(0)
    columns = 3 * weight_format(fmt).block
    parts = [rng.normal(0, 1, (rows, columns)).astype(np.float32) for rows in (32, 14)]  # the first ends with a unit
    raws = [quantized(part, fmt) for part in parts]
    path = tmp_path / "tensors"
    path.write_bytes(b"before " + b"".join(raw.tobytes() for raw in raws))
    offsets = (7, 7 + raws[0].nbytes)
    n_copied = []
    uploader = weights.Uploader(device, n_copied.append)
    infos = [
        TensorInfo("one", part.shape, fmt, at, raw.nbytes) for part, at, raw in zip(parts, offsets, raws, strict=True)
    ]
    tensors = [weights.Tensor.whole(path, info) for info in infos]
    planes = uploader.matrix(tensors, device.buffer)
    uploader.finish()
    quants, scales = split_planes(np.concatenate(raws), fmt)
    assert (planes.n_rows, planes.n_columns, planes.format) == (46, columns, fmt)
    assert np.array_equal(read_back(device, planes.quants, len(quants)), quants)
    if weight_format(fmt).is_quantized:
        assert np.array_equal(read_back(device, planes.scales, len(scales)), scales)
    n_wanted = sum(raw.nbytes for raw in raws) + weight_format(fmt).codebook.nbytes
    assert sum(n_copied) == n_wanted and len(n_copied) > 2


def test_a_step_reaches_the_device_with_the_token_of_the_last_one(device: Device) -> None:
    from vkllm.gpu.program.step import HEADER_WORDS, PARTS_WORD, RESULTS_WORD, TABLE_WORD, Draw, Part, Result, StepSlots

    slots = StepSlots(device, 2, 9, has_windows=True)
    masked_draw = Result(Draw(5, 6, 7, 1.0, 9), np.zeros(1, np.uint32))
    ahead = Part(1, [11, 12], 40, [3, 1], [8, 9], 4, {1: 6}, [Result(wants_logits=True), Result(wants_logits=True)])
    slots.write(1, [ahead, Part(3, [None], 70, [2, 5, 7], [0, 4, 6], results=[masked_draw])])
    next_token = filled(device, np.array([70, 71, 72, 73], np.uint32))
    chain = filled(device, np.full(300, 7, np.uint32))
    begin = device.dispatch(
        KERNELS["begin_step"],
        (slots.buffer, next_token, slots.on_device, chain, filled(device, np.zeros(1, np.uint32))),
        constants=(64, 296),
        push=(slots.slot_words,),
    )
    device.run([begin])
    assert list(words(chain, (300,))) == [0] * 296 + [7] * 4
    got = read_back(device, slots.on_device, slots.slot_words)
    assert list(got[:8]) == [3, 10, 2, 3, 1, 0, 0, 0]
    assert got[HEADER_WORDS:][:12].tolist() == [11, 40, 0, 0, 12, 41, 0, 7, 73, 70, 2, 1 << 16]
    assert got[PARTS_WORD:][:8].tolist() == [0, 2, 5, 1 << 16, 2, 1, 0, 3 << 16]
    results = [0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 9, 0, 0, 0, 0, 1, 2, 3, 10, 5, 6, 7, 0x3F800000, 9]
    assert got[RESULTS_WORD:][:24].tolist() == results
    assert got[TABLE_WORD:][:10].tolist() == [3, 8, 1, 9, 2, 0, 5, 4, 7, 6]
