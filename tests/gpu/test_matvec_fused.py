"""matvec_fused against numpy: norms, gates, activations, sums, biases, some columns only."""

import numpy as np
import pytest
from kernel_case import filled, floats, nmse, planes, poisoned, words
from random_weights import quantized

from vkllm.formats.quants import dequantize, weight_format
from vkllm.gpu.device.kernel import QUANTIZED_FORMATS, float_bits
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import ACTIVATIONS, KERNELS, LINK_WORDS, NO_EXPERTS
from vkllm.model.reference import activate, layer_norm, rms_norm

pytestmark = pytest.mark.gpu

BOUND = 4e-9  # activations are rounded to 1/32512 of a block's largest value, up to six sigma: (6 / 32512)^2 / 12


# rows, columns, rows together, blocks together, workgroups, kind
CASES = [
    (5, 256, 2, 1, 1, "norm"),
    (37, 768, 2, 2, 3, "norm"),
    (37, 768, 1, 2, 2, "gate"),
    (130, 1536, 2, 4, 5, "gate"),
    (130, 1536, 2, 1, 4, "sum"),
    (40, 1536, 4, 2, 2, "columns"),
    (37, 768, 2, 1, 2, "layer norm, gate, bias, gelu"),
    (37, 3072, 2, 1, 2, "layer norm, bias, relu2"),
    (37, 768, 4, 2, 2, "sum, bias, factor"),
]
ODD = (37, 800, 2, 1, 2, "sum")
"""A row whose blocks share words of scales with those of other rows; formats with super-blocks get one more block."""
# what differs between formats in the same way is tried with a few of them
OF_SOME = ("Q4_0", "Q4_1", "Q6_K", "IQ4_XS")


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("has_integer_dot", "is_chained"), [(True, False), (False, True)], ids=["dot4", "soft, chained"]
)
@pytest.mark.parametrize(
    ("fmt", "case"),
    [(fmt, case) for fmt in QUANTIZED_FORMATS for case in [*(CASES if fmt in OF_SOME else CASES[2:6:3]), ODD]],
)
def test_matvec_fused(
    device: Device,
    fmt: str,
    case: tuple[int, int, int, int, int, str],
    has_integer_dot: bool,
    is_chained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if has_integer_dot and "integer_dot_product" not in device.info.features:
        pytest.skip("the device has no integer dot products")
    monkeypatch.setattr(device, "has_integer_dot", has_integer_dot)
    n_rows, columns, rows, unroll, groups, kind = case
    columns = -(-columns // weight_format(fmt).block) * weight_format(fmt).block
    is_layer = "layer norm" in kind
    norms, gates = "norm" in kind or "gate" in kind, "gate" in kind
    adds = kind.startswith(("sum", "columns"))
    function = next((name for name in ACTIVATIONS if name in kind), "silu" if gates else "none")
    has_bias, factor = "bias" in kind, -0.22 if "factor" in kind else 1.0
    first, last = (512, 1280) if kind == "columns" else (0, columns)
    rng = np.random.default_rng(columns)
    n_weight_rows = 2 * n_rows if gates else n_rows
    raw = quantized(rng.normal(0, 0.05, (n_weight_rows, columns)).astype(np.float32), fmt)
    source = rng.normal(2, 3, (1, columns)).astype(np.float32)
    norm_weight, eps = rng.normal(1, 0.3, columns).astype(np.float32), np.float32(1e-5)
    bias = rng.normal(0, 1, n_weight_rows + 3).astype(np.float32)
    norm_bias = rng.normal(0, 0.3, columns).astype(np.float32)
    before = rng.normal(0, 1, n_rows + 7).astype(np.float32)
    y, failure = poisoned(device, n_rows + 7), device.buffer(1, is_host=True)
    chain = filled(device, np.zeros(3 * LINK_WORDS, np.uint32))
    chain.words[LINK_WORDS] = 2  # workgroups of link 0, before link 1, have ended
    device.run(
        [
            device.dispatch(
                KERNELS["matvec_fused"],
                (
                    *planes(device, raw, fmt),
                    *(filled(device, source), filled(device, norm_weight), filled(device, before), y, chain, failure),
                    *(filled(device, bias), filled(device, norm_bias), y, y, y),
                ),
                constants=(
                    *(64, columns, first, last - first, rows, unroll),
                    *(
                        norms + is_layer,
                        int(gates),
                        int(adds),
                        int(eps.view(np.uint32)),
                        100 * is_chained,
                        unroll,
                        rows % 2,
                    ),
                    *(int(has_bias), float_bits(factor), ACTIVATIONS.index(function), int(has_bias)),
                    *NO_EXPERTS,
                ),
                groups=(groups, 1),
                push=(n_rows, 3, 0, 1, 2),
                weight_format=fmt,
                is_chained=is_chained,
            )
        ]
    )
    if is_layer:
        x = layer_norm(source, norm_weight, float(eps)) + (norm_bias if has_bias else 0)
    else:
        x = rms_norm(source, norm_weight, float(eps)) if norms else source
    x = x[0, first:last].astype(np.float64)
    product = dequantize(raw, fmt, (n_weight_rows, columns))[:, first:last].astype(np.float64) @ x
    product += bias[3:] if has_bias else 0
    wanted = factor * (product if function == "none" else activate(product[None], function, gates)[0])
    got = floats(y, (n_rows + 7,))
    assert np.isnan(got[:3]).all() and np.isnan(got[3 + n_rows :]).all(), "wrote beyond its rows"
    assert nmse(got[3 : 3 + n_rows], wanted + (before[3 : 3 + n_rows] if adds else 0)) < BOUND * (4 if gates else 1)
    told = words(chain, (chain.n_words,))
    assert told[2 * LINK_WORDS] == (groups if is_chained else 0), "workgroups that told their end"
    assert told[0] == words(failure, (1,))[0] == 0
