"""The oracle of mixtures of experts: what its operations give by hand, and a whole model against sums written out."""

from dataclasses import replace

import numpy as np
import pytest
from model_specs import TINY_SPEC

from vkllm.model.graph import expected_shapes
from vkllm.model.reference import Floats, Reference, activate
from vkllm.model.reference_experts import chosen_experts, chosen_weights, expert_matvec, expert_sum, route
from vkllm.model.spec import Experts

FOUR = Experts(n_experts=4, n_used=2, d_ff=32)
LOGITS = np.log(np.array([[1, 4, 3, 2]], np.float32))  # softmax: 0.1, 0.4, 0.3, 0.2; sigmoid: 1/2, 4/5, 3/4, 2/3


def routed(experts: Experts, logits: Floats = LOGITS, bias: list[float] | None = None) -> tuple[list[int], list[float]]:
    routes = route(logits, experts, None if bias is None else np.array(bias, np.float32))
    assert routes.dtype == np.float32 and routes.shape == (len(logits), 2 * experts.n_used + 1)
    numbers, weights = chosen_experts(routes, experts.n_used), chosen_weights(routes, experts.n_used)
    return numbers[0].tolist(), [*weights[0].tolist(), float(routes[0, -1])]


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, [0.4, 0.3]),
        ({"is_normalized": True}, [4 / 7, 3 / 7]),
        ({"is_normalized": True, "scale": 2.5}, [10 / 7, 7.5 / 7]),
        ({"gating": "sigmoid"}, [0.8, 0.75]),
        ({"gating": "sigmoid", "is_normalized": True}, [0.8 / 1.55, 0.75 / 1.55]),
        ({"gating": "softmax_of_chosen", "scale": 3.0}, [12 / 7, 9 / 7]),
        ({"n_used": 1, "gating": "sigmoid", "chooses_by_logits": True}, [0.8]),
        ({"n_used": 4}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_best_experts_are_chosen_and_weighed(fields: dict[str, object], weights: list[float]) -> None:
    numbers, found = routed(replace(FOUR, **fields))
    assert numbers == [1, 2, 3, 0][: len(weights)] and found == pytest.approx([*weights, 1.0])


def test_a_bias_changes_the_choice_and_no_weight() -> None:
    assert routed(replace(FOUR, has_selection_bias=True), bias=[0.5, 0, 0, 0.15]) == (
        [0, 1],
        pytest.approx([0.1, 0.4, 1]),
    )
    by_logits = replace(FOUR, gating="softmax_of_chosen")
    assert routed(by_logits, bias=[2, 0, 0, 0]) == ([0, 1], pytest.approx([1 / 5, 4 / 5, 1]))


def test_of_equal_experts_the_first_is_chosen() -> None:
    assert routed(replace(FOUR, n_used=3), np.zeros((1, 4), np.float32))[0] == [0, 1, 2]
    assert routed(replace(FOUR, gating="sigmoid"), np.array([[0, 90, 50, 70]], np.float32))[0] == [1, 2]


def test_a_tiny_sum_is_not_divided_by() -> None:
    normalized = replace(FOUR, gating="sigmoid", is_normalized=True)
    logits = np.log(np.array([[1e-6, 3e-6, 2e-6, 1e-7]], np.float32))
    assert routed(normalized, logits)[1] == pytest.approx([3e-6 * 2**14, 2e-6 * 2**14, 1], rel=1e-4)


def test_groups_are_chosen_by_their_two_best_experts() -> None:
    groups = Experts(n_experts=9, n_used=3, d_ff=32, gating="sigmoid", n_groups=3, n_groups_used=2, scale=0.5)
    gates = np.array([[0.9, 0.1, 0.1, 0.6, 0.5, 0.1, 0.7, 0.4, 0.55]], np.float32)  # best pairs: 1.0, 1.1, 1.25
    logits = np.log(gates / (1 - gates))
    assert routed(groups, logits) == ([6, 3, 8], pytest.approx([0.35, 0.3, 0.275, 1]))
    bias = [0.3, 0, 0, 0, 0, 0, 0, 0, 0]  # 1.3: groups 0 and 2
    assert routed(groups, logits, bias) == ([0, 6, 8], pytest.approx([0.45, 0.35, 0.275, 1]))


def test_the_gate_of_the_shared_expert_is_the_last_logit() -> None:
    gated = replace(FOUR, d_ff_shared=32, has_shared_gate=True)
    logits = np.concatenate([LOGITS, np.full((1, 1), np.log(3), np.float32)], axis=1)
    assert routed(gated, logits) == ([1, 2], pytest.approx([0.4, 0.3, 0.75]))


@pytest.mark.parametrize("has_own_inputs", [False, True])
def test_each_slot_has_the_product_of_its_expert(has_own_inputs: bool) -> None:
    random = np.random.default_rng(0)
    matrices, bias, scale = (random.normal(0, 1, shape).astype(np.float32) for shape in ((5, 6, 7), (5, 6), (5,)))
    numbers = random.integers(0, 5, (4, 3))
    x = random.normal(0, 1, (4, 3, 7) if has_own_inputs else (4, 7)).astype(np.float32)
    found = expert_matvec(x, matrices, numbers, bias, scale)
    for row in range(4):
        for slot in range(3):
            expert = numbers[row, slot]
            column = x[row, slot] if has_own_inputs else x[row]
            product = scale[expert] * (matrices[expert] @ column) + bias[expert]
            assert np.allclose(found[row, slot], product, atol=1e-5)
    assert np.allclose(
        expert_matvec(x, matrices, numbers), (found - bias[numbers]) / scale[numbers][..., None], atol=1e-4
    )


def test_the_sum_has_the_weights() -> None:
    results = np.array([[[1, 2], [3, 4]]], np.float32)
    assert expert_sum(results).tolist() == [[4, 6]]
    assert expert_sum(results, np.array([[2, 10]], np.float32)).tolist() == [[32, 44]]


def test_the_activation_of_gpt_oss_is_cut_on_both_sides() -> None:
    gate, up = [1.0, 9.0, -9.0, 0.0], [2.0, 9.0, -9.0, -1.0]
    expected = [1 / (1 + np.exp(-1.702)) * 3, 7 / (1 + np.exp(-1.702 * 7)) * 8, -9 / (1 + np.exp(1.702 * 9)) * -6, 0]
    assert np.allclose(activate(np.array([gate + up], np.float32), "swiglu_oai"), expected, rtol=1e-5)


def test_slots_are_activated_one_by_one() -> None:
    x = np.random.default_rng(0).normal(0, 1, (3, 24)).astype(np.float32)
    found = activate(x, slots=4)
    assert np.allclose(found, np.concatenate([activate(x[:, i : i + 6]) for i in range(0, 24, 6)], axis=1))
    assert np.array_equal(activate(x, "relu2", is_gated=False, slots=4), activate(x, "relu2", is_gated=False))


FUSED = replace(FOUR, has_fused_gate_up=True, scales=("ffn_gate_up_exps", "ffn_down_exps"), gating="sigmoid")
ODD = replace(
    FOUR, d_ff=48, biases=("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), weighs_input=True
)
SHARED = replace(FOUR, d_ff_shared=40, has_shared_gate=True, is_normalized=True, is_gated=False, function="relu2")


@pytest.mark.parametrize("experts", [FUSED, ODD, SHARED], ids=["fused, scaled", "odd, biased", "shared, without gate"])
def test_a_layer_is_the_sum_of_its_experts(experts: Experts) -> None:
    layer = replace(TINY_SPEC.layers[0], n_heads=0, d_ff=0, experts=experts, residual_scale=0.5)
    spec = replace(TINY_SPEC, layers=(layer,))
    random = np.random.default_rng(0)
    weights = {n: random.normal(0, 0.2, shape).astype(np.float32) for n, shape in expected_shapes(spec).items()}
    model = Reference(spec, weights.__getitem__, 16)
    found = model._run([3, 7, 250])
    of_layer = {name.removeprefix("blk.0."): value for name, value in weights.items()}

    def product(name: str, column: Floats, expert: int | None = None) -> Floats:
        pick = slice(None) if expert is None else expert
        y = np.atleast_2d(of_layer[f"{name}.weight"][pick]) @ column
        if f"{name}.scale" in of_layer:
            y = y * of_layer[f"{name}.scale"][pick]
        return y + of_layer[f"{name}.bias"][pick] if f"{name}.bias" in of_layer else y

    def feed_forward(column: Floats, kind: str, expert: int | None = None) -> Floats:
        if experts.has_fused_gate_up:
            inner = product(f"ffn_gate_up_{kind}", column, expert)
        else:
            names = ("gate", "up") if experts.is_gated else ("up",)
            inner = np.concatenate([product(f"ffn_{name}_{kind}", column, expert) for name in names])
        return product(f"ffn_down_{kind}", activate(inner[None], experts.function, experts.is_gated)[0], expert)

    for row, token in enumerate([3, 7, 250]):
        x = weights["token_embd.weight"][token]
        normed = x / np.sqrt(np.mean(x * x) + spec.norm_eps) * of_layer["ffn_norm.weight"]
        numbers, parts = routed(experts, found["router"][row : row + 1])
        assert np.allclose(found["router"][row, :4], product("ffn_gate_inp", normed), atol=1e-5)
        total = np.zeros_like(x)
        for number, weight in zip(numbers, parts, strict=False):
            is_first = experts.weighs_input
            result = feed_forward(weight * normed if is_first else normed, "exps", number)
            total += result if is_first else weight * result
        if experts.d_ff_shared:
            total += parts[-1] * feed_forward(normed, "shexp")
        assert np.allclose(found["x"][row], x + 0.5 * total, atol=1e-4)
