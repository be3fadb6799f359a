"""The values to try, and which of them a device can run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_specs import TINY_SPEC
from tunings import H100, LLAMA_7B, LLAMA_8B, RADEON, with_decode

from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.probe import AMD, NVIDIA, DeviceInfo, devices
from vkllm.gpu.program.choices import GPU, VENDORS, Tuning, tuning
from vkllm.gpu.tuning.space import (
    DECODE_FIELDS,
    PREFILL_FIELDS,
    ModelKind,
    fields_to_try,
    is_possible,
    model_kind,
    moved,
    value_of,
)


@pytest.mark.parametrize(
    ("info", "groups"),
    [
        (H100, 132),
        (replace(H100, n_cores=114), 114),
        (replace(H100, n_cores=None), VENDORS[NVIDIA].decode.groups),
        (RADEON, 192),
        (replace(RADEON, n_cores=None), VENDORS[AMD].decode.groups),
        (replace(H100, vendor_id=0x8086), GPU.decode.groups),
    ],
)
def test_the_table_takes_as_many_workgroups_as_run_at_once(info: DeviceInfo, groups: int) -> None:
    assert tuning(info).decode.groups == groups


@pytest.mark.parametrize("info", [H100, RADEON], ids=["H100", "RX 7900 XTX"])
@pytest.mark.parametrize("kind", [LLAMA_7B, LLAMA_8B, ModelKind("Q4_1", 3, 64)], ids=str)
def test_the_tables_own_choice_is_possible(info: DeviceInfo, kind: ModelKind) -> None:
    assert is_possible(tuning(info), info, kind)


@pytest.mark.gpu
def test_the_tables_own_choice_is_possible_here() -> None:
    for info in devices():
        assert is_possible(tuning(info), info, ModelKind("Q4_1", 3, 64))


@pytest.mark.parametrize(
    ("field", "value", "up", "down"),
    [
        ("decode.size", 512, 1024, 256),
        ("decode.groups", 132, 264, 66),
        ("decode.steps_touched", 1, 2, 0),
        ("decode.steps_touched", 0, 1, None),
        ("decode.is_chained", True, None, False),
        ("decode.is_chained", False, True, None),
        ("tile_rows", 2, 4, 1),
        ("has_matmul", True, None, False),
        ("has_tiled_attention", False, True, None),
        ("narrow_rows", 64, 128, 32),
        ("matmul_size", 128, 256, 64),
    ],
)
def test_a_step_leads_to_the_next_value(field: str, value: int, up: int | None, down: int | None) -> None:
    start = tuning(H100)
    owner, _, name = field.rpartition(".")
    start = with_decode(start, **{name: value}) if owner else replace(start, **{name: value})
    assert value_of(start, field) == value
    for wanted, is_up in ((up, True), (down, False)):
        found = moved(start, field, up=is_up)
        assert (None if found is None else value_of(found, field)) == wanted
        if found is not None:
            others = set((*DECODE_FIELDS, *PREFILL_FIELDS)) - {field}
            assert all(value_of(found, other) == value_of(start, other) for other in others)


def test_every_field_of_decoding_is_tried() -> None:
    assert {f"decode.{name}" for name in vars(tuning(H100).decode)} == set(DECODE_FIELDS)


IMPOSSIBLE = {
    "a workgroup larger than the device's": with_decode(tuning(H100), size=2048),
    "no power of two": with_decode(tuning(H100), size=384),
    "smaller than a subgroup": with_decode(tuning(H100), attention_size=16),
    "more subgroups than there is room for": with_decode(tuning(replace(H100, vendor_id=0)), size=1024),
    "no rows": with_decode(tuning(H100), rows=0),
    "absurd rows": with_decode(tuning(H100), rows=64),
    "no workgroups": with_decode(tuning(H100), groups=0),
    "absurd workgroups": with_decode(tuning(H100), groups=10**6),
    "negative steps": with_decode(tuning(H100), steps_touched=-1),
    "absurd tiles": replace(tuning(H100), tile_tokens=64),
    "no local size": replace(tuning(H100), local_size=0),
    "a local size that is too large four times": replace(tuning(H100), local_size=512),
}


@pytest.mark.parametrize("choices", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_choices_beyond_the_devices_limits_are_impossible(choices: Tuning) -> None:
    info = replace(H100, subgroup_size=8) if choices.decode.size == 1024 else H100
    assert not is_possible(choices, info, LLAMA_7B)


def test_only_nvidia_may_chain_and_only_devices_with_matrices_may_multiply_them() -> None:
    chained = with_decode(tuning(RADEON), is_chained=True)
    assert not is_possible(chained, RADEON, LLAMA_7B)
    assert is_possible(with_decode(tuning(H100), is_chained=False), H100, LLAMA_7B)
    without = replace(RADEON, matrix_shape=None)
    assert tuning(RADEON).has_matmul and is_possible(replace(tuning(RADEON), has_matmul=False), RADEON, LLAMA_7B)
    assert not is_possible(tuning(RADEON), without, LLAMA_7B)
    tiled = replace(tuning(RADEON), has_matmul=False, has_tiled_attention=True)
    assert is_possible(tiled, RADEON, LLAMA_7B) and not is_possible(tiled, without, LLAMA_7B)


def test_attention_must_fit_into_shared_memory() -> None:
    # 32 teams of 16 lanes, 4 heads: 32 * 4 * 130 * 4 bytes are 66,560
    larger = with_decode(tuning(H100), attention_size=512)
    assert is_possible(larger, H100, LLAMA_7B) and not is_possible(larger, H100, LLAMA_8B)
    more = replace(tuning(H100), attention_queries=16)
    assert not is_possible(more, H100, LLAMA_7B)


def test_tiles_of_matvec_are_tried_where_there_are_no_matrices() -> None:
    assert "tile_rows" in fields_to_try(replace(tuning(H100), has_matmul=False), PREFILL_FIELDS)
    assert "tile_rows" not in fields_to_try(tuning(H100), PREFILL_FIELDS)
    assert "keys_at_once" not in fields_to_try(tuning(H100), PREFILL_FIELDS)
    assert "keys_at_once" in fields_to_try(replace(tuning(H100), has_tiled_attention=False), PREFILL_FIELDS)


def test_tiles_of_matmul_are_tried_where_there_are_matrices() -> None:
    for field in ("narrow_rows", "steps_ahead", "steps_ahead_wide", "matmul_size"):
        assert field in fields_to_try(tuning(RADEON), PREFILL_FIELDS)
        assert field not in fields_to_try(replace(tuning(RADEON), has_matmul=False), PREFILL_FIELDS)
    for rows, is_tried in ((16, False), (32, True), (128, True), (256, False)):
        assert is_possible(replace(tuning(RADEON), narrow_rows=rows), RADEON, LLAMA_7B) == is_tried
    assert not is_possible(replace(tuning(RADEON), steps_ahead=8), RADEON, LLAMA_7B)
    assert not is_possible(replace(tuning(H100), matmul_size=64), H100, LLAMA_7B)


def test_a_models_kind_is_the_format_of_most_bytes_and_the_shape_of_its_heads() -> None:
    tensors = {
        name: TensorInfo(name, (1,), fmt, 0, n_bytes)
        for name, fmt, n_bytes in (("a", "Q4_K", 60), ("b", "Q6_K", 90), ("c", "Q4_K", 40), ("d", "F32", 10))
    }
    assert model_kind(TINY_SPEC, tensors) == ModelKind("Q4_K", 2, 32)
