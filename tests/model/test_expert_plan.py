"""Plans of mixtures of experts: what is read in part leaves fast memory first, and what a token reads decides speed."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from model_specs import LAYER, of_layers

from vkllm.errors import InvalidParameter, OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Speeds, Tier
from vkllm.model.memory.needs import Needs, tensor_bytes
from vkllm.model.memory.overrides import experts_in_system_memory
from vkllm.model.memory.placement import Tiers
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, decode_bytes, plan
from vkllm.model.spec import Experts

MOE = of_layers(*3 * [replace(LAYER, d_ff=0, experts=Experts(n_experts=8, n_used=2, d_ff=96, is_normalized=True))])
TENSORS = {
    name: TensorInfo(name, shape, "Q4_0" if len(shape) > 1 and "gate_inp" not in name else "F32", 0, 0)
    for name, shape in expected_shapes(MOE).items()
}
ALL = sum(map(tensor_bytes, TENSORS.values()))
NEEDS = Needs(MOE, TENSORS, 64, 1, "f16", "f16")
EXPERTS = ("blk.2.ffn_gate_exps.weight", "blk.2.ffn_up_exps.weight")


def limits(local: int, spill: int = 2**30) -> DeviceLimits:
    return DeviceLimits(local, 2**30, kind="discrete", spill_bytes=spill, speeds=Speeds(1e9, 1e8, 0.0))


def planned(local: int, options: PlanOptions | None = None) -> MemoryPlan:
    return plan(MOE, TENSORS, limits(local), 64, 64, 1, options)


def host_matrices(made: MemoryPlan) -> set[str]:
    return {name for parts in made.matrices.values() for p in parts if p.tier is Tier.HOST for name in p.stack.tensors}


def test_the_tensors_of_experts_have_three_dimensions() -> None:
    assert expected_shapes(MOE)[EXPERTS[0]] == (8, 96, MOE.d_model)
    assert TENSORS[EXPERTS[0]].n_rows == 8 * 96 and TENSORS[EXPERTS[0]].n_columns == MOE.d_model


def test_a_token_reads_the_experts_that_it_chooses() -> None:
    experts = sum(tensor_bytes(info) for name, info in TENSORS.items() if "exps" in name)
    table = tensor_bytes(TENSORS["token_embd.weight"])
    assert decode_bytes(MOE, TENSORS, 0) == pytest.approx(ALL - table - experts * 6 / 8)
    made = planned(2**30)
    assert made.tiers[0].read_bytes == pytest.approx(decode_bytes(MOE, TENSORS, 0), rel=0.05)
    assert made.token_s(0) == pytest.approx(made.tiers[0].read_bytes / 1e9)


def test_experts_leave_fast_memory_before_all_else_that_is_read_whole() -> None:
    whole = planned(2**30).tiers[0].used_bytes
    spilled = [host_matrices(planned((whole - lack) * 20 // 19)) for lack in range(4096, whole // 2, 4096)]
    order = [{name for name in names if "exps" in name} for names in spilled]
    assert any(order) and all(fewer <= more for fewer, more in pairwise(order))
    all_experts = {name for name in TENSORS if "exps" in name}
    for names in spilled:
        assert names <= all_experts | {"token_embd.weight"} or names >= all_experts


def test_the_first_layers_experts_leave_first() -> None:
    order = [weights[0] for weights in NEEDS.matrices()]
    experts = [name for name in order if "exps" in name]
    assert [name.split(".")[1] for name in experts] == ["2", "2", "1", "1", "0", "0"]
    assert order[0] == MOE.output_weight and order[-1] == "token_embd.weight"


def test_experts_are_stacked_and_never_cut_but_where_they_cannot_be_bound() -> None:
    (both,) = planned(2**30).matrices[EXPERTS]
    assert both.stack.tensors == EXPERTS and both.n_rows == 2 * 8 * 96
    largest = max(both.stack.plane_bytes(both.n_rows))
    parts = Tiers([(Tier.LOCAL, 2**30)], largest - 1).place_rows(both.stack)
    assert [(part.stack.tensors, part.n_rows) for part in parts] == [((name,), 8 * 96) for name in EXPERTS]
    with pytest.raises(OutOfDeviceMemory, match=r"experts of blk\.2\.ffn_gate_exps"):
        Tiers([(Tier.LOCAL, 2**30)], largest // 2 - 1).place_rows(both.stack)


# --- Where a user wants tensors ---------------------------------------------------------------------------------------


def test_an_override_keeps_tensors_out_of_a_cards_own_memory() -> None:
    made = planned(2**30, PlanOptions(override_tensor=r"blk\.[12]\.ffn_.*_exps=CPU"))
    wanted = {name for name in TENSORS if "exps" in name and not name.startswith("blk.0.")}
    assert host_matrices(made) == wanted
    assert made.tiers[1].weights_bytes == sum(tensor_bytes(TENSORS[name]) for name in wanted)


def test_the_first_override_that_matches_decides_and_stacked_matrices_stay_together() -> None:
    first = planned(2**30, PlanOptions(override_tensor="blk.1.=Vulkan0,exps=CPU"))
    assert host_matrices(first) == {name for name in TENSORS if "exps" in name and not name.startswith("blk.1.")}
    assert host_matrices(planned(2**30, PlanOptions(override_tensor="blk.0.attn_k=CPU"))) == {
        f"blk.0.attn_{part}.weight" for part in "qkv"
    }


def test_an_override_gives_back_what_ngl_takes() -> None:
    options = PlanOptions(n_gpu_layers=1, override_tensor="blk.0.attn_output=GPU")
    spilled = host_matrices(planned(2**30, options))
    assert "blk.0.attn_output.weight" not in spilled and "blk.1.attn_output.weight" in spilled


@pytest.mark.parametrize(("n_layers", "numbers"), [(2, {0, 1}), (None, {0, 1, 2}), (99, {0, 1, 2})])
def test_the_experts_of_the_first_layers_can_be_kept_in_system_memory(n_layers: int | None, numbers: set[int]) -> None:
    made = planned(2**30, PlanOptions(override_tensor=experts_in_system_memory(n_layers)))
    assert host_matrices(made) == {name for name in TENSORS if "exps" in name and int(name.split(".")[1]) in numbers}


def test_overrides_change_nothing_on_unified_memory() -> None:
    device = replace(limits(2**30), kind="unified")
    made = plan(MOE, TENSORS, device, 64, 64, 1, PlanOptions(override_tensor="exps=CPU"))
    assert {part.tier for parts in made.matrices.values() for part in parts} == {Tier.LOCAL}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exps", "EXPRESSION=CPU or EXPRESSION=GPU, not 'exps'"),
        ("=CPU", "EXPRESSION=CPU or EXPRESSION=GPU, not '=CPU'"),
        ("exps=disk", "knows the places CPU and GPU, not 'disk'"),
        ("ffn_(up=CPU", "is no regular expression"),
        (["exps=CPU"], "must be a text"),
    ],
)
def test_what_is_no_override_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(problem)):
        PlanOptions(override_tensor=text)
