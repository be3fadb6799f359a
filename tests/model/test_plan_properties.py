"""Plans of random models on random devices: within every limit, each row placed once, and never worse with more."""

import re
from dataclasses import dataclass, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_specs import tiny_spec

from vkllm.errors import OutOfDeviceMemory
from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import FORMATS, weight_format
from vkllm.model.graph import decoder, expected_shapes
from vkllm.model.memory.limits import DeviceKind, DeviceLimits, HeapLimits, Speeds, Tier, limits_of_heaps
from vkllm.model.memory.plan import USUAL_CONTEXT, MemoryPlan, PlanOptions, plan
from vkllm.model.ops import Embed, Matvec
from vkllm.model.spec import ModelSpec

MIB = 2**20
KINDS: tuple[DeviceKind, ...] = ("discrete", "unified", "cpu")


@dataclass(frozen=True)
class Model:
    spec: ModelSpec
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True)
class Device:
    kind: DeviceKind
    heaps: tuple[HeapLimits, ...]
    host_bytes: int
    max_binding_bytes: int
    max_allocation_bytes: int
    host_share: float

    @property
    def limits(self) -> DeviceLimits:
        return limits_of_heaps(
            self.kind,
            self.heaps,
            max_binding_bytes=self.max_binding_bytes,
            max_allocation_bytes=self.max_allocation_bytes,
            host_bytes=self.host_bytes,
            speeds=Speeds(local_bytes_per_s=1e9, host_bytes_per_s=1e9 * self.host_share, layer_s=1e-6),
        )


@st.composite
def models(draw: st.DrawFn) -> Model:
    unit = draw(st.sampled_from((32, 256)))
    n_kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from((32, 64, 128))) if unit == 32 else 256
    spec = tiny_spec(
        n_layers=draw(st.integers(1, 5)),
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_model=unit * draw(st.integers(1, 1024 // unit)),
        d_ff=unit * draw(st.integers(1, 2048 // unit)),
        n_vocab=draw(st.integers(1, 20_000)),
        n_ctx_train=draw(st.integers(2, 20_000)),
        output_weight=draw(st.sampled_from(("output.weight", "token_embd.weight"))),
    )
    formats = sorted(name for name in FORMATS if unit % weight_format(name).block == 0)
    kinds = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    chosen = {kind: draw(st.sampled_from(formats)) for kind in kinds}
    return Model(
        spec,
        {
            name: TensorInfo(name, shape, chosen[name.split(".")[-2]] if len(shape) == 2 else "F32", 0, 0)
            for name, shape in expected_shapes(spec).items()
        },
    )


@dataclass(frozen=True)
class Case:
    """A model, a device whose memories are about as large as the model, and what a user asks for."""

    model: Model
    device: Device
    n_ctx: int
    options: PlanOptions


@st.composite
def cases(draw: st.DrawFn, plain: bool = False) -> Case:
    """plain: without wishes of a user."""
    model, n_ctx = draw(models()), draw(st.integers(1, 512) | st.integers(1, 12_000))
    endless = DeviceLimits(2**50, 2**50, 2**50)
    needed = plan(model.spec, model.tensors, endless, n_ctx, 8, 2).total_bytes
    bytes_of = st.integers(0, 200).map(lambda percent: needed * percent // 100)
    nearly_all = st.integers(80, 200).map(lambda percent: needed * percent // 100)
    heaps = st.builds(HeapLimits, bytes_of, st.none() | bytes_of, st.booleans())
    device = Device(
        draw(st.sampled_from(KINDS)),
        (
            HeapLimits(draw(bytes_of), None, True),
            HeapLimits(draw(nearly_all), draw(st.none() | nearly_all), False),
            *draw(st.lists(heaps, max_size=2)),
        ),
        draw(st.just(2**40) | nearly_all),
        draw(st.integers(4 * MIB, 64 * MIB)),
        draw(st.integers(4 * MIB, 64 * MIB)),
        draw(st.sampled_from((0.01, 0.3, 1.0))),
    )
    cache_types = st.sampled_from(("f16", "q8_0"))
    limits = st.none() | nearly_all
    options = PlanOptions(
        draw(cache_types), draw(cache_types), draw(st.none() | st.integers(0, 7)), draw(limits), draw(limits)
    )
    return Case(model, device, n_ctx, PlanOptions() if plain else options)


def planned(model: Model, limits: DeviceLimits, n_ctx: int, options: PlanOptions) -> MemoryPlan | None:
    try:
        return plan(model.spec, model.tensors, limits, n_ctx, 8, 2, options)
    except OutOfDeviceMemory:
        return None


def plane_bytes(fmt: str, n_values: int) -> tuple[int, int]:
    """From the format's table, as the uploader allocates."""
    units = -(-n_values // weight_format(fmt).unit)
    return 4 * units * weight_format(fmt).quant_words, 4 * units * weight_format(fmt).scale_words


@given(cases(), st.booleans())
def test_no_plan_exceeds_a_heap_a_budget_a_binding_or_an_allocation(case: Case, is_automatic: bool) -> None:
    model, device, options = case.model, case.device, case.options
    made = planned(model, device.limits, 0 if is_automatic else case.n_ctx, options)
    assume(made is not None)
    assert made is not None
    largest = min(device.max_binding_bytes, device.max_allocation_bytes)
    weights = {tier.tier: 0 for tier in made.tiers}
    for parts in made.matrices.values():
        for part in parts:
            planes = plane_bytes(part.stack.format, part.n_rows * part.stack.n_columns)
            assert max(planes) <= largest
            weights[part.tier] += sum(planes)
    spec = model.spec
    block_bytes = {"f16": 64, "q8_0": 34}
    cached = -(-made.n_ctx // 32) * 32 * spec.n_kv_heads * spec.head_dim // 32
    cache = [cached * block_bytes[kind] for kind in (options.type_k, options.type_v)]
    assert max(cache) <= largest
    for tier in made.tiers:
        matching = [h for h in device.heaps if h.is_device_local == (tier.tier is Tier.LOCAL)]
        heap = max(min(h.size_bytes, h.size_bytes if h.budget_bytes is None else h.budget_bytes) for h in matching)
        needed = weights[tier.tier] + made.cache_tiers.count(tier.tier) * sum(cache)
        if made.arena_tier is tier.tier:
            needed += 4 * (8 * (2 * spec.d_ff + spec.d_model) + 3 * spec.n_vocab)  # some of what is surely there
        assert needed <= tier.used_bytes <= tier.available_bytes <= heap
        if tier.tier is Tier.HOST or device.kind == "cpu":
            assert tier.used_bytes <= device.host_bytes
        if device.kind == "discrete":
            limit = options.vram_limit if tier.tier is Tier.LOCAL else options.ram_limit
            assert limit is None or tier.used_bytes <= limit
    if device.kind != "discrete":
        for limit in (options.vram_limit, options.ram_limit):
            assert limit is None or made.total_bytes <= limit
    if device.kind == "cpu":
        assert made.total_bytes <= device.host_bytes


@given(cases(), st.booleans())
def test_every_row_of_every_tensor_is_placed_once(case: Case, is_automatic: bool) -> None:
    model = case.model
    made = planned(model, case.device.limits, 0 if is_automatic else case.n_ctx, case.options)
    assume(made is not None)
    assert made is not None
    read = {op.weights for op in decoder(model.spec) if isinstance(op, Embed | Matvec)} | {(model.spec.output_weight,)}
    assert set(made.matrices) == read
    for weights, parts in made.matrices.items():
        stacks = list(dict.fromkeys(part.stack for part in parts))
        assert tuple(name for stack in stacks for name in stack.tensors) == weights
        for stack in stacks:
            shapes = [model.tensors[name].shape for name in stack.tensors]
            assert {model.tensors[name].format for name in stack.tensors} == {stack.format}
            assert {shape[1] for shape in shapes} == {stack.n_columns}
            end = 0
            for part in (part for part in parts if part.stack == stack):
                assert part.first_row == end and part.n_rows > 0
                assert part.first_row * stack.n_columns % weight_format(stack.format).unit == 0
                end += part.n_rows
            assert end == sum(shape[0] for shape in shapes)
    assert len(made.cache_tiers) == model.spec.n_layers


growths = st.lists(st.one_of(st.just(0), st.integers(0, 300 * MIB)), min_size=4, max_size=4)


@settings(max_examples=200)
@given(cases(), growths, st.integers(0, 100 * MIB))
def test_more_memory_never_makes_a_plan_slower_or_impossible(case: Case, growth: list[int], host_growth: int) -> None:
    device, n_ctx = case.device, case.n_ctx
    larger = replace(
        device,
        heaps=tuple(
            HeapLimits(
                heap.size_bytes + more,
                None if heap.budget_bytes is None else heap.budget_bytes + more,
                heap.is_device_local,
            )
            for heap, more in zip(device.heaps, growth, strict=False)
        ),
        host_bytes=device.host_bytes + host_growth,
    )
    first, second = (planned(case.model, d.limits, n_ctx, case.options) for d in (device, larger))
    assume(first is not None)
    assert first is not None and second is not None
    for n_past in (0, n_ctx / 2, n_ctx):
        assert second.token_s(n_past) <= first.token_s(n_past) * (1 + 1e-12)


@given(cases(), st.integers(0, 100 * MIB), st.integers(0, 32 * MIB))
def test_looser_limits_never_make_a_plan_slower_or_impossible(case: Case, more: int, binding: int) -> None:
    options, device = case.options, case.device
    looser = replace(
        options,
        vram_limit=None if options.vram_limit is None else options.vram_limit + more,
        ram_limit=None if options.ram_limit is None else options.ram_limit + more,
    )
    wider = replace(device, max_binding_bytes=device.max_binding_bytes + binding)
    first = planned(case.model, device.limits, case.n_ctx, options)
    second = planned(case.model, wider.limits, case.n_ctx, looser)
    assume(first is not None)
    assert first is not None and second is not None
    assert second.token_s(0) <= first.token_s(0) * (1 + 1e-12)


@given(cases(plain=True))
def test_nothing_leaves_the_cards_memory_while_the_next_rows_would_fit(case: Case) -> None:
    model = case.model
    made = planned(model, case.device.limits, case.n_ctx, case.options)
    assume(made is not None and len(made.tiers) == 2)
    assert made is not None
    left = [part for parts in made.matrices.values() for part in parts if part.tier is not Tier.LOCAL]
    if made.cache_tiers.count(Tier.LOCAL) == model.spec.n_layers and left and made.arena_tier is Tier.LOCAL:
        step = max(part.stack.n_bytes(min(128, part.stack.n_rows)) for part in left)
        assert made.tiers[0].free_bytes < step


@given(cases())
def test_context_0_is_the_longest_that_costs_no_speed(case: Case) -> None:
    model, device, options = case.model, case.device, case.options
    made = planned(model, device.limits, 0, options)
    usual = min(USUAL_CONTEXT, model.spec.n_ctx_train)
    at_usual = planned(model, device.limits, usual, options)
    if made is None:
        assert planned(model, device.limits, min(256, usual), options) is None
        return
    assert made == planned(model, device.limits, made.n_ctx, options)
    assert made.n_ctx <= model.spec.n_ctx_train
    if at_usual is None:
        assert made.n_ctx < usual
        assert planned(model, device.limits, made.n_ctx + 32, options) is None or made.n_ctx + 32 > usual
    else:
        assert made.n_ctx >= usual
        if made.n_ctx > usual:
            assert all(tier.tier is not Tier.HOST or tier.used_bytes == 0 for tier in made.tiers) or all(
                tier.bytes_per_s == made.tiers[0].bytes_per_s for tier in made.tiers
            )


@given(cases())
def test_a_suggested_context_fits_and_a_longer_one_does_not(case: Case) -> None:
    model, device, n_ctx, options = case.model, case.device, 16 * case.n_ctx, case.options
    try:
        plan(model.spec, model.tensors, device.limits, n_ctx, 8, 2, options)
    except OutOfDeviceMemory as error:
        found = re.search(r"a context of (\d+) tokens (?:or|would)", str(error))
        if found is None:
            assert planned(model, device.limits, min(256, n_ctx), options) is None
            return
        longest = int(found[1])
        assert planned(model, device.limits, longest, options) is not None
        assert longest + 32 > n_ctx or planned(model, device.limits, longest + 32, options) is None
    else:
        assume(False)
