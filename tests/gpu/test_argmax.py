"""argmax against numpy: ties, negative logits, vocabularies smaller and larger than a workgroup."""

import numpy as np
import pytest
from kernel_case import filled, poisoned, step_buffer, words

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n_vocab", [1, 5, 256, 257, 49152])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_argmax(device: Device, n_vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-50, 5, n_vocab).astype(np.float32)
    if seed == 1:  # several equal maxima: the first wins
        logits[rng.integers(0, n_vocab, 3)] = 7
    next_token, chosen = poisoned(device, 4), poisoned(device, 4)
    buffers = (filled(device, logits), next_token, chosen, step_buffer(device, [0], [0], n_results=1))
    device.run([device.dispatch(KERNELS["argmax"], buffers, constants=(256, n_vocab))])
    assert words(next_token, (1,))[0] == words(chosen, (4,))[0] == np.argmax(logits)
    assert words(chosen, (4,))[1] == 0x7FC00000
