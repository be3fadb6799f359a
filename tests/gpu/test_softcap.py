"""softcap against numpy: in place, with a factor, a cap or both, far beyond the cap too."""

import numpy as np
import pytest
from kernel_case import filled, floats

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS
from vkllm.model.reference import softcap

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("factor", "cap"), [(1.0, 30.0), (0.125, 0.0), (2.0, 50.0)])
def test_softcap(device: Device, factor: float, cap: float) -> None:
    n_rows, n_vocab = 3, 1001
    logits = np.random.default_rng(0).normal(0, 20, (n_rows, n_vocab)).astype(np.float32)
    logits[1, :6] = (0, -1e-6, 1e4, -1e4, 1e30, -1e30)
    buffer = filled(device, np.append(logits, np.float32(7)))
    dispatch = device.dispatch(
        KERNELS["softcap"],
        (buffer,),
        constants=(64, n_vocab, float_bits(factor), float_bits(cap)),
        groups=(3, n_rows),
    )
    device.run([dispatch])
    wanted = softcap(logits.astype(np.float64), factor, cap)
    np.testing.assert_allclose(floats(buffer, wanted.shape), wanted, rtol=1e-6, atol=cap * 3e-7)
    assert floats(buffer, (n_rows * n_vocab + 1,))[-1] == 7, "wrote beyond the logits"
