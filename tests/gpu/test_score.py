"""score against numpy: log-probabilities of given tokens, vocabularies smaller and larger than a workgroup."""

import numpy as np
import pytest
from kernel_case import filled, floats, poisoned

from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS

pytestmark = pytest.mark.gpu

BOUND = 2e-5  # logits up to 60 in float32 are 4e-6 apart; Vulkan's exp adds 3 + 2 * 60 units of 6e-8, mostly averaged


@pytest.mark.parametrize("n_vocab", [1, 5, 256, 257, 49152])
@pytest.mark.parametrize("first_row", [0, 16])
def test_score(device: Device, n_vocab: int, first_row: int) -> None:
    rng = np.random.default_rng(n_vocab)
    logits = rng.normal(-20, 8, (3, n_vocab)).astype(np.float32)
    targets = rng.integers(0, n_vocab, 24).astype(np.uint32)
    targets[first_row + 1] = np.argmin(logits[1])
    logprobs, log_sums = poisoned(device, 24), poisoned(device, 24)
    buffers = (filled(device, logits), filled(device, targets), logprobs, log_sums)
    device.run([device.dispatch(KERNELS["score"], buffers, constants=(256, n_vocab), groups=(3, 1), push=(first_row,))])
    scores = logits.astype(np.float64)
    chosen = scores[np.arange(3), targets[first_row : first_row + 3]]
    wanted = chosen - scores.max(axis=1) - np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))
    for buffer, expected in ((logprobs, wanted), (log_sums, chosen - wanted)):
        got = floats(buffer, (24,))
        assert np.allclose(got[first_row : first_row + 3], expected, rtol=0, atol=BOUND)
        assert np.isnan(got).sum() == 21, "it writes nothing else"
