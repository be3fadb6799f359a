"""The oracle itself: properties that its operations must have, and the cache against a whole run."""

import math
from dataclasses import replace

import numpy as np
import pytest
from model_specs import TINY_SPEC

from vkllm.model.graph import expected_shapes
from vkllm.model.reference import Reference, activate, attention, rms_norm, rope_table, rotate
from vkllm.model.spec import Rope, Yarn

ROPE = Rope(10000.0, 32, "interleaved")


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.2, shape).astype(np.float32) for n, shape in expected_shapes(TINY_SPEC).items()}


def test_tokens_one_by_one_give_what_all_at_once_give() -> None:
    weights, tokens = random_weights(), [3, 300, 7, 7, 21]
    whole = Reference(TINY_SPEC, weights.__getitem__, 16).run(tokens)
    stepwise = Reference(TINY_SPEC, weights.__getitem__, 16)
    rows = [stepwise.run([token])[0] for token in tokens]
    assert np.allclose(whole, rows, atol=1e-5) and whole.shape == (5, 301)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    weights = random_weights()
    one = Reference(TINY_SPEC, weights.__getitem__, 16).run([3, 300, 7])
    other = Reference(TINY_SPEC, weights.__getitem__, 16).run([3, 300, 8])
    assert np.allclose(one[:2], other[:2], atol=1e-6) and not np.allclose(one[2], other[2])


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rotation_keeps_lengths_and_depends_on_distance_only(pairing: str) -> None:
    table = rope_table(ROPE, 64)
    rng = np.random.default_rng(0)
    q, k = (np.repeat(rng.normal(0, 1, (1, 1, 32)).astype(np.float32), 64, axis=0) for _ in range(2))
    turned_q, turned_k = rotate(q, table, pairing), rotate(k, table, pairing)
    assert np.allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), atol=1e-4)
    near = (turned_q[5] * turned_k[2]).sum()
    far = (turned_q[55] * turned_k[52]).sum()
    assert near == pytest.approx(far, abs=1e-3) and near != pytest.approx((q[5] * k[2]).sum(), abs=1e-3)


def test_the_pairings_differ_by_a_permutation() -> None:
    table = rope_table(ROPE, 8)
    x = np.random.default_rng(0).normal(0, 1, (8, 2, 32)).astype(np.float32)
    order = [*range(0, 32, 2), *range(1, 32, 2)]
    assert np.allclose(rotate(x[..., order], table, "half"), rotate(x, table, "interleaved")[..., order], atol=1e-6)


def test_frequency_factors_and_linear_scaling_slow_the_rotation() -> None:
    plain = rope_table(ROPE, 9)
    assert np.allclose(rope_table(ROPE, 9, np.full(16, 2, np.float32))[8], plain[4], atol=1e-6)
    assert np.allclose(rope_table(replace(ROPE, scale=4.0), 9)[8], plain[2], atol=1e-6)


def yarn_table_by_the_paper(rope: Rope, yarn: Yarn, position: int) -> list[tuple[float, float]]:
    """Equations 17 to 22 of arXiv 2309.00071, one rotation at a time; the slope runs over rotations, its ends rounded
    outwards, as in the authors' code."""
    n = rope.dims
    table = []
    for i in range(n // 2):
        theta = rope.theta ** (-2 * i / n)
        # rotation number d turns n_ctx / wavelength(d) times: solved for d
        low, high = (
            n * math.log(yarn.n_ctx / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (yarn.beta_fast, yarn.beta_slow)
        )
        low, high = math.floor(low), math.ceil(high)
        gamma = 1.0 if i <= low else 0.0 if i >= high else 1 - (i - low) / (high - low)
        h = (1 - gamma) * theta / rope.scale + gamma * theta
        t = 0.1 * math.log(rope.scale) + 1
        table.append((t * math.cos(position * h), t * math.sin(position * h)))
    return table


@pytest.mark.parametrize(("dims", "theta", "n_ctx", "scale"), [(32, 1e4, 256, 4.0), (128, 1e6, 32768, 4.0)])
def test_yarn_is_the_paper_s(dims: int, theta: float, n_ctx: int, scale: float) -> None:
    yarn = Yarn(n_ctx)
    rope = Rope(theta, dims, scale=scale, yarn=yarn)
    rope = replace(rope, magnitude=0.1 * math.log(scale) + 1)
    table = rope_table(rope, 301)
    for position in (0, 1, 77, 300):
        assert np.allclose(table[position], yarn_table_by_the_paper(rope, yarn, position), atol=1e-6)
    plain = rope_table(replace(rope, scale=1.0, magnitude=1.0, yarn=None), 301)
    linear = rope_table(replace(rope, magnitude=1.0, yarn=None), 301)
    assert np.allclose(table[:, 0], plain[:, 0] * rope.magnitude, atol=1e-6), "the fastest keeps its speed"
    assert np.allclose(table[:, -1], linear[:, -1] * rope.magnitude, atol=1e-6), "the slowest is scaled whole"
    assert not np.allclose(table, plain * rope.magnitude, atol=1e-2)


def test_the_slope_of_yarn_has_its_ends() -> None:
    rope = replace(ROPE, scale=2.0, yarn=Yarn(256, beta_fast=8.0, beta_slow=2.0))
    angles = np.arctan2(rope_table(rope, 2)[1, :, 1], rope_table(rope, 2)[1, :, 0])
    shares = angles / 10000.0 ** (-np.arange(16) / 16)
    # 32 log(256 / (2 pi turns)) / (2 log 10000): 2.83 for 8 turns, 5.24 for 2, so a slope from 2 to 6
    kept = np.array([1, 1, 1, 0.75, 0.5, 0.25] + [0] * 10)
    assert np.allclose(shares, 0.5 * (1 - kept) + kept, atol=1e-6)


def test_attention_of_equal_keys_is_the_mean_of_what_is_seen() -> None:
    v = np.random.default_rng(0).normal(0, 1, (6, 1, 32)).astype(np.float32)
    out = attention(np.ones((2, 2, 32), np.float32), np.ones((6, 1, 32), np.float32), v, np.array([2, 5]))
    assert np.allclose(out[0, 1], v[:3, 0].mean(axis=0), atol=1e-6)
    assert np.allclose(out[1, 0], v[:, 0].mean(axis=0), atol=1e-6)


def test_norm_and_gate() -> None:
    x = np.array([[3.0, -4.0]], np.float32)
    assert np.allclose(rms_norm(x, np.array([1, 2], np.float32), 0), x / np.sqrt(12.5) * [1, 2])
    assert np.allclose(activate(np.array([[0, 100, 5, 2]], np.float32)), [[0, 200]])
