"""Whatever is changed in a header at random, reading and planning a specification gives it right or a typed error."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from model_specs import TINY_SPEC
from mutations import LIMIT_BYTES, LIMIT_S, TimeLimit, limits, run_mutations

from vkllm.errors import VkllmError
from vkllm.formats.gguf import Metadata, ModelFile, TensorInfo
from vkllm.model.architectures import model_spec
from vkllm.model.graph import expected_shapes
from vkllm.model.memory.limits import DeviceLimits
from vkllm.model.memory.plan import plan

N_MUTATIONS = int(os.environ.get("VKLLM_TEST_MUTATIONS", "1000"))
LIMITS = DeviceLimits(memory_bytes=1 << 30, max_binding_bytes=1 << 30)
EXTREMES = (0, 1, 2, -1, 32, 96, 256, 1e-5, 0.5, 1e30, float("nan"), float("inf"), 2**31 - 1, 2**31, 2**32, 2**62)
WORDS = ("rope.scale_linear", "attention.scale", "attention.sliding_window", "logit_scale", "expert_count", "new.key")
NUMBERS = {
    GGUFValueType.UINT8: np.uint8,
    GGUFValueType.INT32: np.int32,
    GGUFValueType.UINT32: np.uint32,
    GGUFValueType.UINT64: np.uint64,
    GGUFValueType.INT64: np.int64,
    GGUFValueType.FLOAT32: np.float32,
    GGUFValueType.FLOAT64: np.float64,
    GGUFValueType.BOOL: np.bool_,
}

Header = tuple[Metadata, Mapping[str, TensorInfo]]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A header of little else than what makes a specification, so that every other change hits one of its numbers."""
    writer = GGUFWriter(tmp_path / "sound.gguf", "llama")
    spec = TINY_SPEC
    writer.add_context_length(spec.n_ctx_train)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.n_layers)
    writer.add_array("llama.feed_forward_length", [spec.d_ff] * spec.n_layers)
    writer.add_head_count(spec.n_heads)
    writer.add_array("llama.attention.head_count_kv", [spec.n_kv_heads] * spec.n_layers)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_dimension_count(spec.layers[0].rope.dims)
    writer.add_string("llama.rope.scaling.type", "yarn")
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    writer.add_uint32("llama.rope.scaling.original_context_length", 64)
    writer.add_bool("llama.attention.causal", True)
    writer.add_uint32("llama.expert_count", 0)
    for name, shape in expected_shapes(spec).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "sound.gguf"


def check_and_plan(file: Header) -> bool:
    """Reads a header's specification and plans it; whether it has one. Anything but a typed error is a defect."""
    metadata, tensors = file
    try:
        spec = model_spec(metadata, tensors)
    except VkllmError as error:
        assert str(metadata.path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return False
    assert {name: info.shape for name, info in tensors.items()} == expected_shapes(spec)
    for n_ctx in (0, spec.n_ctx_train):
        try:
            assert 0 < plan(spec, tensors, LIMITS, n_ctx, 512).n_ctx <= spec.n_ctx_train
        except VkllmError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
    return True


def open_and_plan(path: Path) -> bool:
    try:
        file = ModelFile.open(path)
    except VkllmError:  # tests/formats/test_gguf_mutations.py
        return False
    return check_and_plan((file.metadata, file.tensors))


def mutated(sound: Header, rng: random.Random) -> Header:
    """One or two changes, in values, types, keys and tensors; the rest of the file stays sound."""
    metadata, tensors = sound
    fields, tensors = dict(metadata._fields), dict(tensors)
    for _ in range(rng.choice([1, 1, 1, 2])):
        key, name = rng.choice(list(fields)), rng.choice(list(tensors))
        field, info = fields[key], tensors[name]
        match rng.randrange(10):
            case 0:
                del fields[key]
            case 1:
                fields["llama." + rng.choice(WORDS)] = field
            case 2:
                fields[key] = rng.choice(list(fields.values()))
            case 3 | 4 | 5:
                kind = rng.choice(list(NUMBERS))
                n_values = rng.choice([1, 1, 1, 0, 2, 3, 1000])
                with np.errstate(all="ignore"):
                    values = np.array([rng.choice(EXTREMES)] * n_values).astype(NUMBERS[kind])
                types = [kind] if n_values == 1 else [GGUFValueType.ARRAY, kind]
                fields[key] = field._replace(parts=[values], types=types)
            case 6:
                del tensors[name]
            case 7:
                other = rng.choice([name + ".scale", name.replace("blk.1", "blk.2"), rng.choice(WORDS), "\n" * 99])
                tensors[other] = replace(tensors.pop(name), name=other)
            case 8:
                shape = [rng.choice([*info.shape, 1, 32, 2**40, 2**63]) for _ in range(rng.randint(1, 4))]
                tensors[name] = replace(info, shape=tuple(shape))
            case 9:
                tensors[name] = replace(info, format=rng.choice(["F32", "F16", "Q4_0", "Q4_K", "Q8_K", "I8"]))
    return Metadata(metadata.path, fields), tensors


def test_random_headers_give_a_typed_error_or_the_right_specification(sound: Path) -> None:
    file = ModelFile.open(sound)
    header = (file.metadata, file.tensors)
    assert check_and_plan(header)
    n_sound, failures = 0, []
    for number in range(N_MUTATIONS):
        try:
            with limits(LIMIT_S, LIMIT_BYTES):
                n_sound += check_and_plan(mutated(header, random.Random(number)))
        except (Exception, TimeLimit) as error:
            failures.append(f"mutation {number}: {type(error).__name__}: {error}")
    assert failures == []
    assert N_MUTATIONS / 20 < n_sound < N_MUTATIONS / 2, "mutations too harmless or too harsh to prove anything"


def test_random_bytes_in_a_header_give_a_typed_error_or_the_right_specification(sound: Path, tmp_path: Path) -> None:
    n_sound, failures = run_mutations(sound, tmp_path / "mutated.gguf", open_and_plan, N_MUTATIONS // 8)
    assert failures == []
    assert n_sound > 0
