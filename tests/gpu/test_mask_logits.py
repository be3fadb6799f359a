"""mask_logits against numpy: the very same logits, vocabularies that fill no whole word, with and without a mask."""

import numpy as np
import pytest
from kernel_case import filled, floats

from vkllm.engine.sampler import masked
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.step import Part, Result, StepSlots

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n_vocab", [1, 31, 32, 33, 257, 49152, 128256])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_only_allowed_tokens_keep_their_logits(device: Device, n_vocab: int, share: float) -> None:
    rng = np.random.default_rng(n_vocab)
    slots, n_words = StepSlots(device, 1, 1), -(-n_vocab // 32)
    logits = rng.normal(0, 5, 2 * n_vocab + 3).astype(np.float32)
    masks = np.packbits(rng.random((2, 32 * n_words)) < share, axis=1, bitorder="little").view(np.uint32)
    slots.write(0, [Part(0, [1, 2], 0, [], results=[Result(), Result(mask=masks[1])])])
    buffer = filled(device, logits)
    dispatch = device.dispatch(
        KERNELS["mask_logits"],
        (buffer, filled(device, masks), slots.buffer),
        constants=(64, n_vocab),
        groups=(min(7, -(-n_vocab // 64)), 2),
    )
    device.run([dispatch])
    got = floats(buffer, logits.shape)
    second = slice(n_vocab, 2 * n_vocab)
    assert np.array_equal(got[second], masked(logits[second], masks[1]))
    assert np.array_equal(np.delete(got, second), np.delete(logits, second)), "no mask, and what follows"


def test_the_numpy_truth_reads_bit_t_of_word_t_over_32() -> None:
    scores = np.arange(70, dtype=np.float32)
    mask = np.array([1 << 31, 1, 1 << 5], np.uint32)
    assert list(np.flatnonzero(np.isfinite(masked(scores, mask)))) == [31, 32, 69]
    assert masked(scores, mask).dtype == np.float32
