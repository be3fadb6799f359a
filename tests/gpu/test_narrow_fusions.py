"""What becomes one dispatch with products of narrow steps: RMS norms between two of them, rotations with the cache."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import cache_words, constants, filled, floats, nmse, planes, poisoned, read_cache, step_buffer
from model_specs import wide_spec
from random_weights import quantized
from tunings import H100

from vkllm.formats.quants import dequantize
from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.fragments import MatrixLayout, most_words
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW
from vkllm.gpu.program.step import LIKELIEST, Part
from vkllm.model.reference import rotate
from vkllm.model.spec import Rope

sys.path.insert(0, str(Path(__file__).parents[2] / "shaders"))

from paper import PaperDevice, paper_program

BOUND = 3e-7  # as in test_matmul_narrow.py
COLUMNS, EPS, FORMAT = 128, 1e-5, "Q8_0"


def spec_of(**changes: object):
    return wide_spec(**{"n_layers": 4, "rope": Rope(1e4, 32, pairing="interleaved")} | changes)


@pytest.mark.parametrize(
    ("pairing", "norm_form", "most", "norms"),
    [
        ("interleaved", "rms", 5 * 4 + 6, 2),
        ("half", "rms", 6 * 4 + 6, 2),  # pairs lie in different workgroups
        ("interleaved", "layer", 7 * 4 + 5, 2 * 4 + 1),
    ],
)
def test_a_narrow_step_has_few_dispatches_in_one_submit(pairing: str, norm_form: str, most: int, norms: int) -> None:
    spec = replace(wide_spec(n_layers=4, rope=Rope(1e4, 32, pairing=pairing)), norm_form=norm_form)
    device = PaperDevice(H100)
    program = paper_program(device, spec, "Q4_K")
    for width in (2, 4, 8, 16, 32):
        parts = [Part(0, [0] * width, 0, [0], results=LIKELIEST)]
        program.submit(parts, is_prompt=True)  # recordings and all that they need
        device.steps.clear()
        program.submit(parts, is_prompt=True)
        (step,) = device.steps
        # begin_step, embed, the first and the last norm, logits, argmax
        assert len(step) == most
        assert Counter(use.kernel for use in step)["norm"] == norms


@pytest.mark.gpu
class TestKernels:
    @pytest.fixture
    def layout(self, device: Device) -> MatrixLayout:
        if device.info.matrix_shape is None:
            pytest.skip("the device has no cooperative matrices")
        return MatrixLayout(device.info.narrow_shape or device.info.matrix_shape)

    def run(
        self, device: Device, layout: MatrixLayout, raw: np.ndarray, n_rows: int, positions: list[int],
        bound: dict[str, Buffer], table: list[int] | None = None, **values: int
    ) -> None:  # fmt: skip
        (m, n, k), y = layout.shape, bound["y"]
        step = step_buffer(device, positions, [0] * len(positions), table or [])
        quants, scales = planes(device, raw, FORMAT)
        bound = {"quants": quants, "scales": scales, "step": step} | bound
        given = dict(
            local_size=2 * device.info.subgroup_size, columns=COLUMNS, n_splits=2, steps_ahead=1,
            token_tiles=-(-len(positions) // n), matrix_m=m, matrix_n=n, matrix_k=k, lanes=1,
            factor=float_bits(1), eps=float_bits(EPS), n_heads=1, n_kv_heads=1, head_dim=8,
        ) | values  # fmt: skip
        dispatch = device.dispatch(
            KERNELS["matmul_narrow"],
            [bound.get(name, y) for name in KERNELS["matmul_narrow"].bindings],
            constants=constants("matmul_narrow", **given),
            groups=(-(-n_rows // m), 1),
            push=(n_rows, 0, n_rows, len(positions)),
            weight_format=FORMAT,
        )
        device.run([dispatch])

    def test_a_norm_between_two_products(self, device: Device, layout: MatrixLayout) -> None:
        """Rows of very different sizes, some of which grow to 10,000 times what they were at the last norm."""
        rng = np.random.default_rng(0)
        n_tokens, (m, _, _) = 9, layout.shape
        first, second = (rng.normal(0, 0.3, (COLUMNS, COLUMNS)).astype(np.float32) for _ in range(2))
        raws = [quantized(w, FORMAT) for w in (first, second)]
        first, second = (dequantize(raw, FORMAT, (COLUMNS, COLUMNS)) for raw in raws)
        x = rng.normal(0, 1, (n_tokens, COLUMNS)).astype(np.float32)
        added = (rng.normal(0, 1, x.shape) * 10.0 ** rng.integers(-2, 4, (n_tokens, 1))).astype(np.float32)
        added[0, 5] = 40_000.0
        weight = rng.normal(1, 0.3, COLUMNS).astype(np.float32)
        before = 10.0 ** rng.integers(-1, 3, n_tokens)  # 1 / root mean square, of the last norm
        before[0] = 10.0

        def pair(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            n = len(x[rows])
            y, halves = poisoned(device, n * COLUMNS), poisoned(device, most_words(COLUMNS))
            squares = poisoned(device, n * COLUMNS // m)
            own = np.zeros(2 * MAX_NARROW, np.float32)
            own[MAX_NARROW:][:n] = before[rows]
            factors = filled(device, own)
            shared = {"squares": squares, "norm_factors": factors}
            inputs = {"x": filled(device, layout.ordered(x[rows])), "add": filled(device, added[rows])}
            self.run(
                device, layout, raws[0], COLUMNS, list(range(n)),
                inputs | shared | {"y": y, "y_halves": halves, "norm_weight": filled(device, weight)},
                adds=1, has_halves=1, next_norm=1, factors_at=MAX_NARROW,
            )  # fmt: skip
            out = poisoned(device, n * COLUMNS)
            self.run(
                device, layout, raws[1], COLUMNS, list(range(n)), {"x": halves, "y": out} | shared,
                norms=1, factors_at=MAX_NARROW,
            )  # fmt: skip
            np.testing.assert_allclose(floats(factors, (n,)), wanted_factors[rows], rtol=1e-4)
            return floats(y, (n, COLUMNS)), floats(out, (n, COLUMNS))

        middle = x.astype(np.float64) @ first.T + added
        wanted_factors = 1 / np.sqrt(np.mean(middle**2, axis=1) + EPS)
        wanted = (middle * wanted_factors[:, None] * weight) @ second.T.astype(np.float64)

        y, out = pair(slice(None))
        assert nmse(y, middle) < BOUND
        for row in range(n_tokens):
            assert nmse(out[row], wanted[row]) < 3 * BOUND, row
        alone = pair(slice(4, 6))
        np.testing.assert_array_equal(alone[0], y[4:6])
        np.testing.assert_array_equal(alone[1], out[4:6])

    @pytest.mark.parametrize("rope_dims", [32, 12, 0])
    def test_queries_and_keys_are_rotated_and_cached(
        self, device: Device, layout: MatrixLayout, rope_dims: int
    ) -> None:
        rng = np.random.default_rng(1)
        n_heads, n_kv_heads, head_dim = 4, 2, 32
        positions, table = [37, 38, 95], [2, 0, 1]
        n_rows = (n_heads + 2 * n_kv_heads) * head_dim
        raw = quantized(rng.normal(0, 0.3, (n_rows, COLUMNS)).astype(np.float32), FORMAT)
        x = rng.normal(0, 1, (3, COLUMNS)).astype(np.float32)
        angles = rng.uniform(0, 6.3, (128, rope_dims // 2))
        turns = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
        q = poisoned(device, 3 * n_heads * head_dim)
        caches = [poisoned(device, cache_words("f16", 3, n_kv_heads, head_dim)) for _ in range(2)]
        bias = rng.normal(0, 1, n_rows).astype(np.float32)
        self.run(
            device, layout, raw, n_rows, positions,
            {"x": filled(device, layout.ordered(x)), "y": q, "k_cache": caches[0], "v_cache": caches[1],
             "rope_table": filled(device, np.append(turns, np.float32(0))), "bias": filled(device, bias)},
            table, stores_heads=1, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope_dims=rope_dims,
            has_bias=1,
        )  # fmt: skip
        qkv = (x @ dequantize(raw, FORMAT, (n_rows, COLUMNS)).T + bias).reshape(3, -1, head_dim).astype(np.float32)
        rotated = rotate(qkv, turns[positions], "interleaved")
        wanted = rotated[:, :n_heads], rotated[:, n_heads : n_heads + n_kv_heads], qkv[:, n_heads + n_kv_heads :]
        assert nmse(floats(q, (3, n_heads, head_dim)), wanted[0]) < BOUND
        for cache, values in zip(caches, wanted[1:], strict=True):
            got = read_cache(cache.words, positions, table, "f16", (n_kv_heads, head_dim))
            assert nmse(got, values) < 2e-6
