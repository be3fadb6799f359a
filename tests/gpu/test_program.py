"""Whole programs against the numpy reference: mixed formats, every step width, tied embeddings, both pairings."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import TINY_SPEC, WIDE_SPEC, tiny_spec, wide_spec
from random_model import engine_config, reference, write_random_model

from vkllm.engine.sampler import masked, pick, slope
from vkllm.errors import ModelFileError, OutOfDeviceMemory
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.probe import Heap
from vkllm.gpu.device.requirements import without_subgroups
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.decode import Decode
from vkllm.gpu.program.kernels import KV_BLOCK, MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import KEEP_ALL, LIKELIEST, LOGITS, WIDTHS, Draw, Part, Result
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.plan import PlanOptions
from vkllm.model.spec import Rope

pytestmark = pytest.mark.gpu

# Keys and values are rounded to float16 (2^-12), which these random layers amplify some times: (8 * 2^-12)^2.
BOUND = 4e-6

MODELS = {
    "mixed": (
        TINY_SPEC,
        {"token_embd": "Q8_0", "attn_q": "F16", "attn_k": "IQ4_NL", "attn_v": "BF16", "attn_output": "Q5_1",
         "ffn_gate": "Q5_0", "ffn_up": "Q5_0", "ffn_down": "MXFP4", "output": "F16"},
    ),
    "Q4_K_M": (
        WIDE_SPEC,
        {"token_embd": "Q4_K", "attn_q": "Q4_K", "attn_k": "IQ4_XS", "attn_v": "Q6_K", "attn_output": "Q5_K",
         "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q3_K", "output": "Q6_K"},
    ),
    "tied, half, factors": (
        tiny_spec(
            rope=Rope(10000.0, 32, factors="rope_freqs.weight"), output_weight="token_embd.weight"
        ),
        dict.fromkeys(
            ("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), "Q4_1"
        ),
    ),
}  # fmt: skip


CHOICES = {
    "": {},
    ", chained": {"is_chained": True, "groups": 3, "steps_touched": 1, "doubles": True},
    ", many rows": {"size": 64, "rows": 2, "unroll": 2, "groups": 0},
    ", matrices": {},
}


@pytest.fixture(params=[m + c for m in MODELS for c in CHOICES], scope="module")
def case(request: pytest.FixtureRequest, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A program and its configuration, with choices for decoding that other devices have."""
    name = next(name for name in MODELS if request.param.startswith(name))
    spec, formats = MODELS[name]
    path = write_random_model(tmp_path_factory.mktemp("random") / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    choices = tuning(device.info)
    choices = replace(choices, decode=replace(choices.decode, **CHOICES[request.param.removeprefix(name)]))
    if request.param.endswith(", matrices"):
        if device.info.matrix_shape is None:
            pytest.skip("the device has no cooperative matrices")
        choices = replace(choices, has_matmul=True, has_tiled_attention=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_module, "tuning", lambda info: choices)
        yield Program(device, spec, path, config.tensors, config.n_ctx), config


def logits_of(program: Program, tokens: list[int], chunk: int) -> np.ndarray:
    """Logits of the last token, the tokens run in chunks; the cache's blocks in an odd order."""
    table = list(reversed(range(program.n_blocks)))
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        n_blocks = -(-(start + len(part)) // KV_BLOCK)
        is_last = start + len(part) == len(tokens)
        results = LOGITS if is_last else ()
        step = program.submit([Part(0, part, start, table[:n_blocks], results=results)], is_prompt=True)
    return program.logits(step)


@pytest.mark.parametrize("n_tokens", [1, 2, 9, 70])
def test_logits_equal_the_reference(case: tuple, n_tokens: int) -> None:
    program, config = case
    tokens = [int(t) for t in np.random.default_rng(n_tokens).integers(0, config.spec.n_vocab, n_tokens)]
    wanted = reference(config).run(tokens)[-1]
    assert nmse(logits_of(program, tokens, MAX_ROWS), wanted) < BOUND


def test_chunks_of_any_length_give_the_very_same_logits(case: tuple) -> None:
    program, config = case
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, config.spec.n_vocab, 70)]
    wide = logits_of(program, tokens, MAX_ROWS)
    narrow = logits_of(program, tokens, 32)
    assert np.array_equal(narrow, wide) or program.tuning.has_matmul, "only matrices have other ones for few rows"
    assert nmse(narrow, wide) < 4 * BOUND
    for chunk in (1, 3, 8):
        assert np.array_equal(logits_of(program, tokens, chunk), narrow), chunk
    assert np.array_equal(logits_of(program, tokens, 35), wide)


@pytest.mark.parametrize("n_submits", [2, 7, 64])
def test_a_step_in_several_submits_gives_the_very_same_logits(case: tuple, n_submits: int) -> None:
    program, _ = case
    part = Part(0, range(0, 60, 3), 0, [0], results=LOGITS)
    whole, cut = (program.submit([part], is_prompt=True, n_submits=n) for n in (1, n_submits))
    assert np.array_equal(program.logits(whole), program.logits(cut))
    part = Part(0, [1], 20, [0], results=LOGITS)
    whole, cut = (program.submit([part], n_submits=n) for n in (1, n_submits))
    assert np.array_equal(program.logits(whole), program.logits(cut))


def test_the_gpu_feeds_its_own_choice_into_the_next_step(case: tuple) -> None:
    program, _ = case
    steps = [program.submit([Part(0, [5 if i == 0 else None], i, [0], results=LIKELIEST)]) for i in range(3)]
    tokens = [token for step in steps for token in program.tokens(step)]
    expected = [5]
    for _ in range(3):
        expected.append(int(np.argmax(logits_of(program, expected, 1))))
    assert tokens == expected[1:]


@pytest.mark.parametrize("is_drawn", [False, True])
def test_each_step_in_flight_has_its_own_mask(case: tuple, is_drawn: bool) -> None:
    program, config = case
    n_vocab = config.spec.n_vocab
    draw = Draw(top_k=40, top_p=KEEP_ALL, min_p=0, slope=slope(5.0), number=7) if is_drawn else None
    rng = np.random.default_rng(1)
    is_allowed = rng.random((6, 32 * -(-n_vocab // 32))) < 0.05
    masks = [*np.packbits(is_allowed, axis=1, bitorder="little").view(np.uint32)]
    masks[3] = None  # between masked steps one of all tokens
    logits = program.logits(program.submit([Part(0, [5], 0, [0], results=LOGITS)]))
    tokens = []
    for three in (masks[:3], masks[3:]):
        steps = [program.submit([Part(0, [5], 0, [0], results=[Result(draw, mask)])]) for mask in three]
        tokens += [token for step in steps for token in program.tokens(step)]
    scores = [logits if mask is None else masked(logits, mask) for mask in masks]
    assert tokens == [int(np.argmax(s)) if draw is None else pick(s, draw) for s in scores]
    assert len(set(tokens)) > 3


def test_without_subgroups_logits_equal_the_reference(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "info", without_subgroups(device.info))
    spec, formats = MODELS["mixed"]
    path = write_random_model(tmp_path / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    program = Program(device, spec, path, config.tensors, config.n_ctx)
    made = [dispatch for width in WIDTHS[:2] for dispatch in program.dispatches(width, LOGITS)]
    assert all(dispatch.kernel.has_plain for dispatch in made if dispatch.kernel.subgroup)
    tokens = [int(t) for t in np.random.default_rng(5).integers(0, spec.n_vocab, 40)]
    wanted = reference(config).run(tokens)[-1]
    whole = logits_of(program, tokens, MAX_ROWS)
    assert nmse(whole, wanted) < BOUND and nmse(decoded_logits(program, tokens), wanted) < BOUND
    assert np.array_equal(logits_of(program, tokens, 3), whole)


def test_a_model_too_large_is_refused_before_loading(
    case: tuple, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = case
    heaps = tuple(replace(heap, size_bytes=50_000, budget_bytes=50_000) for heap in device.info.heaps)
    monkeypatch.setattr(device, "info", replace(device.info, heaps=heaps))
    loaded: list[int] = []
    with pytest.raises(OutOfDeviceMemory, match="needs"):
        Program(device, config.spec, Path("unread"), config.tensors, config.n_ctx, loaded.append)
    assert loaded == []


def decoded_logits(program: Program, tokens: list[int]) -> np.ndarray:
    """Logits of the last token, the tokens run one by one."""
    table = list(reversed(range(program.n_blocks)))
    for position, token in enumerate(tokens):
        is_last = position + 1 == len(tokens)
        results = LOGITS if is_last else ()
        step = program.submit([Part(0, [token], position, table[: position // KV_BLOCK + 1], results=results)])
    return program.logits(step)


@pytest.mark.parametrize("n_tokens", [1, 2, 33, 70])
def test_decoding_equals_the_reference(case: tuple, n_tokens: int) -> None:
    program, config = case
    tokens = [int(t) for t in np.random.default_rng(n_tokens).integers(0, config.spec.n_vocab, n_tokens)]
    assert nmse(decoded_logits(program, tokens), reference(config).run(tokens)[-1]) < BOUND


def test_matrices_too_wide_for_shared_memory_are_read_in_parts(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decode, "_most_columns", lambda self, matvec: 256)
    spec, formats = MODELS["Q4_K_M"]
    path = write_random_model(tmp_path / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    assert max(spec.d_ff, spec.d_model) > 256
    program = Program(device, spec, path, config.tensors, config.n_ctx)
    assert nmse(decoded_logits(program, [1, 2, 3]), reference(config).run([1, 2, 3])[-1]) < BOUND


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q8_0"), ("f16", "q8_0")])
def test_a_q8_0_cache_gives_nearly_the_same_logits(device: Device, tmp_path: Path, type_k: str, type_v: str) -> None:
    spec, formats = MODELS["Q4_K_M"]
    path = write_random_model(tmp_path / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    plain = Program(device, spec, path, config.tensors, config.n_ctx)
    options = PlanOptions(type_k=type_k, type_v=type_v)
    quantized = Program(device, spec, path, config.tensors, config.n_ctx, options=options)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, spec.n_vocab, 70)]
    wanted = logits_of(plain, tokens, MAX_ROWS)
    for got in (logits_of(quantized, tokens, MAX_ROWS), decoded_logits(quantized, tokens)):
        # a byte keeps 1/127 of a block's largest value: errors of 0.5 % of a value, amplified some times
        assert 0 < nmse(got, wanted) < 2e-3
    assert np.array_equal(logits_of(quantized, tokens, 3), logits_of(quantized, tokens, MAX_ROWS))
    assert quantized.plan.cache_bytes < plain.plan.cache_bytes


@pytest.mark.parametrize("limit_kib", [None, 700, 620], ids=["local", "some in system memory", "most in system memory"])
def test_a_spilled_model_gives_the_very_same_logits(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_kib: int | None
) -> None:
    spec, formats = MODELS["Q4_K_M"]
    spec = replace(spec, n_vocab=1280)
    path = write_random_model(tmp_path / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    whole = Program(device, spec, path, config.tensors, config.n_ctx)
    heaps = (Heap(2**30, None, True), Heap(2**30, None, False))
    monkeypatch.setattr(device, "info", replace(device.info, type="discrete", heaps=heaps))
    limit = None if limit_kib is None else whole.plan.arena_bytes + whole.plan.cache_bytes + limit_kib * 1024
    monkeypatch.setattr(program_module, "tuning", lambda info: replace(whole.tuning))
    spilled = Program(device, spec, path, config.tensors, config.n_ctx, options=PlanOptions(vram_limit=limit))
    tiers = {rows.tier for parts in spilled.plan.matrices.values() for rows in parts}
    assert tiers == ({Tier.LOCAL} if limit is None else {Tier.LOCAL, Tier.HOST})
    if limit is not None:
        assert any(len(parts) > 1 for parts in spilled.plan.matrices.values()), "no matrix is cut"
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, spec.n_vocab, 20)]
    assert np.array_equal(logits_of(spilled, tokens, MAX_ROWS), logits_of(whole, tokens, MAX_ROWS))
    assert np.array_equal(decoded_logits(spilled, tokens), decoded_logits(whole, tokens))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_while_it_is_loaded_ends_in_a_sentence(device: Device, tmp_path: Path, share: float) -> None:
    spec, formats = MODELS["Q4_K_M"]
    path = write_random_model(tmp_path / "model.gguf", spec, formats)
    config = engine_config(path, spec)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ModelFileError, match="can no longer be read"):
        Program(device, spec, path, config.tensors, config.n_ctx)


def test_a_vocabulary_of_262144_tokens_is_read_in_parts(device: Device, tmp_path: Path) -> None:
    spec = wide_spec(n_vocab=262_144, n_layers=1, output_weight="token_embd.weight")
    path = write_random_model(tmp_path / "model.gguf", spec, {"token_embd": "F16"})
    config = engine_config(path, spec, 64)
    info = replace(device.info, max_binding_bytes=min(device.info.max_binding_bytes, 100 * 2**20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "info", info)
        program = Program(device, spec, path, config.tensors, config.n_ctx)
    assert len(program.plan.matrices[("token_embd.weight",)]) == 2, "134 MB in bindings of 100 MiB"
    tokens = [0, 262_143, 131_072, 261_000]
    wanted = reference(config).run(tokens)[-1]
    assert nmse(logits_of(program, tokens, MAX_ROWS), wanted) < BOUND
    block = program.n_blocks - 1
    step = program.submit([Part(0, tokens[-1:], 3, [block], results=LIKELIEST)])
    assert program.tokens(step) == [np.argmax(wanted)]
    draw = Draw(top_k=1, top_p=KEEP_ALL, min_p=0, slope=1.0, number=7)
    step = program.submit([Part(0, tokens[-1:], 3, [block], results=[Result(draw)])])
    assert program.tokens(step) == [np.argmax(wanted)]
