"""Tables of embeddings for each layer: rows of them are read, so a card keeps them in system memory."""

from dataclasses import replace

import pytest
from model_specs import KINDS_OF_LAYERS

from vkllm.formats.gguf import TensorInfo
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.needs import decode_bytes
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan

GEMMA4 = KINDS_OF_LAYERS["gemma4"]
SPEC = replace(GEMMA4, n_vocab=3000, n_ctx_train=32768, d_per_layer=32)
TABLE = "per_layer_token_embd.weight"
TABLE_BYTES = 3000 * 32 * SPEC.n_layers * 2
TENSORS = {
    name: TensorInfo(name, shape, "F16" if len(shape) == 2 else "F32", 0, 0)
    for name, shape in expected_shapes(SPEC).items()
}
CARD = DeviceLimits(memory_bytes=2**30, max_binding_bytes=2**27, spill_bytes=2**30)


def made(limits: DeviceLimits, n_ctx: int = 512, **options: object) -> MemoryPlan:
    return plan(SPEC, TENSORS, limits, n_ctx, max_rows=8, options=PlanOptions(**options))  # type: ignore[arg-type]


def tier_of(found: MemoryPlan, name: str) -> Tier:
    ((part,),) = (parts for weights, parts in found.matrices.items() if name in weights)
    return part.tier


def test_a_card_keeps_them_in_system_memory_and_only_them() -> None:
    found = made(CARD)
    assert tier_of(found, TABLE) is Tier.HOST and tier_of(found, "token_embd.weight") is Tier.LOCAL
    fast, slow = found.tiers
    assert slow.used_bytes == slow.weights_bytes == TABLE_BYTES and slow.read_bytes == 0
    assert sum(tier.read_bytes for tier in found.tiers) < decode_bytes(SPEC, TENSORS, 0) * 1.01
    assert fast.weights_bytes + TABLE_BYTES == found.weights_bytes


@pytest.mark.parametrize(
    ("limits", "options", "tier"),
    [
        (CARD, {"override_tensor": "per_layer=GPU"}, Tier.LOCAL),
        (CARD, {"ram_limit": TABLE_BYTES // 2}, Tier.LOCAL),
        (CARD, {"n_gpu_layers": 0}, Tier.HOST),
        (replace(CARD, kind="unified"), {}, Tier.LOCAL),
    ],
    ids=str,
)
def test_where_else_they_lie(limits: DeviceLimits, options: dict[str, object], tier: Tier) -> None:
    assert tier_of(made(limits, **options), TABLE) is tier


def test_they_cost_no_context() -> None:
    without = made(CARD).tiers[0].used_bytes
    small = replace(CARD, memory_bytes=without * 8)
    found = made(small, 0)
    assert found.n_ctx > 4096 and tier_of(found, TABLE) is Tier.HOST
    assert found.n_ctx >= made(small, 0, override_tensor="per_layer=GPU").n_ctx
