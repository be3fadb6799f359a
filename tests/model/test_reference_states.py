"""The oracle of layers with a state and of latent attention, against other forms of the same sums in float64."""

from __future__ import annotations

import numpy as np
import pytest

from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2
from vkllm.model.reference import attention, latent_rope, rope_table, rotate
from vkllm.model.reference_states import (
    beta_and_alpha,
    convolution,
    delta_net,
    gated_convolution,
    gated_norm,
    gated_norm_of_part,
    gated_squares,
    mamba2,
    sigmoid,
    silu,
    softplus,
)
from vkllm.model.spec import Rope

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def test_softplus_and_sigmoid_bear_large_arguments() -> None:
    x = np.array([-200, -30, 0, 30, 200], np.float32)
    assert np.allclose(softplus(x), [0, np.exp(-30), np.log(2), 30, 200], rtol=1e-6)
    assert np.allclose(sigmoid(x), [0, np.exp(-30), 0.5, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("n_kernel", [2, 3, 4])
def test_a_convolution_sees_the_last_tokens_and_keeps_those_it_needs(n_kernel: int) -> None:
    x, weight, bias = normal(11, 6), normal(6, n_kernel), normal(6)
    start = np.zeros((n_kernel - 1, 6), np.float32)
    expected = [np.convolve(x[:, c], weight[c, ::-1])[:11] for c in range(6)]
    whole, after = convolution(x, weight, start)
    assert np.allclose(whole, np.transpose(expected), atol=1e-5)
    assert np.array_equal(after, x[11 - (n_kernel - 1) :])
    first, middle = convolution(x[:1], weight, start)  # fewer tokens than the kernel has
    rest, last = convolution(x[1:], weight, middle)
    assert np.allclose(np.concatenate([first, rest]), whole) and np.array_equal(last, after)
    activated, _ = convolution(x, weight, start, bias, "silu")
    assert np.allclose(activated, silu(whole + bias))
    gated, _ = gated_convolution(np.concatenate([x, bias + 0 * x, 2 + 0 * x], axis=-1), weight, start)
    assert np.allclose(gated, 2 * bias * whole, atol=1e-4)


@pytest.mark.parametrize("are_heads_grouped", [False, True])
def test_a_delta_net_is_the_solution_of_its_triangular_system(are_heads_grouped: bool) -> None:
    net, n_rows, eps = DeltaNet(2, 6, 8, 4, are_heads_grouped), 13, 0.3
    qkv, beta, alpha = normal(n_rows, 2 * 16 + 48), normal(n_rows, 6), normal(n_rows, 6)
    dt, a, state = normal(6), -np.abs(normal(6)), normal(6, 8, 8)
    found, after = delta_net(net, eps, qkv, beta, alpha, dt, a, state)
    for head in range(6):
        k_head = head // 3 if are_heads_grouped else head % 2
        q, k = (qkv[:, 16 * i + 8 * k_head :][:, :8].astype(np.float64) for i in range(2))
        q, k = (part / np.sqrt((part**2).sum(axis=1, keepdims=True) + eps) for part in (q, k))
        v = qkv[:, 32 + 8 * head :][:, :8]
        log_decay = np.cumsum(np.log1p(np.exp(alpha[:, head] + dt[head])) * a[head])
        decay = np.exp(np.tril(log_decay[:, None] - log_decay))
        strength = 1 / (1 + np.exp(-beta[:, head]))[:, None]
        system = np.eye(n_rows) + strength * np.tril(decay * (k @ k.T), -1)
        start = np.exp(log_decay)[:, None]
        written = np.linalg.solve(system, strength * (v - start * (k @ state[head])))
        out = start * (q @ state[head]) + np.tril(decay * (q @ k.T)) @ written
        assert np.allclose(found[:, 8 * head :][:, :8], out * 8**-0.5, atol=1e-4)
        end = decay[-1][:, None]
        assert np.allclose(after[head], start[-1] * state[head] + (end * k).T @ written, atol=1e-4)


def test_fused_beta_and_alpha_lie_by_key_head() -> None:
    beta, alpha = beta_and_alpha(DeltaNet(2, 4, 8, 4, has_fused_beta_alpha=True), np.arange(8.0)[None])
    assert beta.tolist() == [[0, 1, 4, 5]] and alpha.tolist() == [[2, 3, 6, 7]]


def test_mamba_2_is_a_masked_attention() -> None:
    mamba, n_rows = Mamba2(n_heads=6, head_dim=4, d_state=5, n_groups=2, n_kernel=4), 9
    xbc, dt, bias = normal(n_rows, 24 + 20), normal(n_rows, 6), normal(6)
    a, d, state = -np.abs(normal(6)), normal(6), normal(6, 4, 5)
    found, after = mamba2(mamba, xbc, dt, bias, a, d, state)
    step = np.log1p(np.exp((dt + bias).astype(np.float64)))
    for head in range(6):
        x = xbc[:, 4 * head :][:, :4]
        b, c = (xbc[:, 24 + 10 * i + 5 * (head // 3) :][:, :5] for i in range(2))
        log_decay = np.cumsum(step[:, head] * a[head])
        decay = np.exp(np.tril(log_decay[:, None] - log_decay))
        start = np.exp(log_decay)[:, None]
        written = step[:, head, None] * x
        out = np.tril(decay * (c @ b.T)) @ written + start * (c @ state[head].T) + d[head] * x
        assert np.allclose(found[:, 4 * head :][:, :4], out, atol=1e-4)
        assert np.allclose(after[head], start[-1] * state[head] + (decay[-1][:, None] * written).T @ b, atol=1e-4)


def test_rows_one_by_one_leave_the_same_states() -> None:
    net, qkv, gates = DeltaNet(2, 4, 8, 4), normal(5, 64), normal(2, 5, 4)
    dt, a, state = normal(4), -np.abs(normal(4)), np.zeros((4, 8, 8), np.float32)
    whole, after = delta_net(net, 1e-6, qkv, *gates, dt, a, state)
    rows = []
    for t in range(5):
        row, state = delta_net(net, 1e-6, qkv[t : t + 1], *gates[:, t : t + 1], dt, a, state)
        rows.append(row[0])
    assert np.allclose(whole, rows, atol=1e-6) and np.allclose(after, state, atol=1e-6)


def test_parts_of_a_group_are_normed_by_the_squares_of_all() -> None:
    rng = np.random.default_rng(8)
    x, z = (rng.normal(0, 1, (3, 12)).astype(np.float32) for _ in range(2))
    weight = rng.normal(1, 0.3, (1, 12)).astype(np.float32)
    parts = (slice(0, 4), slice(4, 12))
    squares = sum(gated_squares(x[:, part], z[:, part]) for part in parts)
    assert isinstance(squares, np.ndarray) and squares.shape == (3, 4) and not squares[:, 1:].any()
    found = [gated_norm_of_part(x[:, part], z[:, part], weight[:, part], 0.1, squares, 12) for part in parts]
    assert np.allclose(np.concatenate(found, axis=1), gated_norm(x, z, weight, 0.1, is_gated_first=True), atol=1e-6)


def test_gated_norms_differ_in_what_comes_first() -> None:
    x, z, weight = normal(3, 24), normal(3, 24), normal(3, 8)

    def rms(y: np.ndarray) -> np.ndarray:
        return np.sqrt((y.reshape(3, 3, 8) ** 2).mean(axis=-1) + 0.1).repeat(8, axis=-1)

    assert np.allclose(gated_norm(x, z, weight[0], 0.1), x / rms(x) * np.tile(weight[0], 3) * silu(z), atol=1e-5)
    gated = x * silu(z)
    found = gated_norm(x, z, weight, 0.1, is_gated_first=True)
    assert np.allclose(found, gated / rms(gated) * weight.reshape(-1), atol=1e-5)


def test_a_sink_takes_weight_like_a_key_whose_value_is_zero() -> None:
    q, k, v, sinks = normal(4, 6, 8), normal(4, 2, 8), normal(4, 2, 5), normal(6)
    found = attention(q, k, v, np.arange(4), sinks=sinks)
    for head in range(6):
        scores = q[:, head] @ k[:, head // 3].T * 8**-0.5
        weights = np.exp(np.where(np.tri(4), scores, -np.inf))
        expected = weights @ v[:, head // 3] / (weights.sum(axis=1) + np.exp(sinks[head]))[:, None]
        assert np.allclose(found[:, head], expected, atol=1e-5)
    plain, drowned = attention(q, k, v, np.arange(4)), attention(q, k, v, np.arange(4), sinks=np.full(6, 1e4))
    assert np.allclose(attention(q, k, v, np.arange(4), sinks=np.full(6, -1e4)), plain) and not drowned.any()


def test_rows_see_only_keys_of_their_own_chunk() -> None:
    q, k, v = normal(9, 2, 8), normal(9, 1, 8), normal(9, 1, 8)
    found = attention(q, k, v, np.arange(9), chunk=4)
    for first in range(0, 9, 4):
        part = slice(first, first + 4)
        alone = attention(q[part], k[part], v[part], np.arange(len(q[part])))
        assert np.allclose(found[part], alone, atol=1e-6)


def test_latent_attention_is_attention_with_keys_and_values_of_each_head() -> None:
    latent, n_rows, n_heads = LatentAttention(0, kv_rank=12, nope_dim=6, rope_dim=4, value_dim=5), 7, 3
    compressed, weight, queries = normal(n_rows, 16), normal(12), normal(n_rows, n_heads, 10)
    of_keys, of_values = normal(n_heads, 12, 6), normal(n_heads, 5, 12)
    table = rope_table(Rope(100.0, 4, "interleaved"), n_rows)
    absorbed = np.einsum("thn,hrn->thr", queries[..., :6], of_keys)
    q, cached = latent_rope(latent, compressed, weight, 0.1, queries, absorbed, table, "interleaved")
    sums = attention(q, cached, cached[..., :12], np.arange(n_rows), scale=0.3)
    found = np.einsum("thr,hvr->thv", sums, of_values)
    vector = compressed[:, :12] / np.sqrt((compressed[:, :12] ** 2).mean(axis=1, keepdims=True) + 0.1) * weight
    key = rotate(compressed[:, None, 12:], table, "interleaved")
    keys = np.concatenate([np.einsum("tr,hrn->thn", vector, of_keys), np.repeat(key, n_heads, axis=1)], axis=-1)
    rotated = np.concatenate([queries[..., :6], rotate(queries[..., 6:], table, "interleaved")], axis=-1)
    values = np.einsum("tr,hvr->thv", vector, of_values)
    assert np.allclose(found, attention(rotated, keys, values, np.arange(n_rows), scale=0.3), atol=1e-4)
