"""What a device holds of a model that is divided among ranks: the rank's parts of the file's tensors, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import KINDS_OF_LAYERS, LAYER, of_layers
from random_model import write_random_model
from test_split_planes import read_back

from vkllm.formats.gguf import ModelFile, read_tensor
from vkllm.formats.quants import dequantize, split_planes, weight_format
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.program import weights
from vkllm.gpu.program.buffers import HEAD_ROWS, ModelBuffers
from vkllm.gpu.program.kernels import MAX_NARROW, MAX_ROWS, WEIGHT_FORMATS
from vkllm.model.memory.plan import PlanOptions, plan
from vkllm.model.shards.rank_model import RankModel, rank_models
from vkllm.model.spec import Experts, ModelSpec, Rope

pytestmark = pytest.mark.gpu

N_CTX = 256
DENSE = of_layers(
    replace(LAYER, head_dim=128, rope=Rope(1e4, 128), d_ff=768), d_model=256, output_weight="token_embd.weight"
)
NAMES = ("token_embd", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def load(device: Device, path: Path, model: RankModel) -> tuple[ModelBuffers, int]:
    """The buffers of a rank, and how many bytes were loaded."""
    made = plan(model.spec, model.tensors, device_limits(device.info), N_CTX, MAX_ROWS, HEAD_ROWS)
    loaded: list[int] = []
    return ModelBuffers(device, model.spec, path, model.tensors, made, PlanOptions(), loaded.append), sum(loaded)


def check(device: Device, path: Path, model: RankModel) -> tuple[ModelBuffers, int]:
    """Compares all matrices on the device with what the file has; padded ones with their numbers."""
    buffers, n_loaded = load(device, path, model)
    for names, stacks in buffers.matrices.items():
        raws = [read_tensor(path, model.tensors[name]) for name in names]
        formats = [model.tensors[name].format for name in names]
        if any(weight_format(fmt).name != stacks[0].format for fmt in formats):
            continue
        assert len(stacks) == 1 and len(set(formats)) == 1
        (planes,), n_columns = stacks, model.tensors[names[0]].n_columns
        assert planes.n_columns >= n_columns
        if planes.n_columns > n_columns or planes.n_rows > sum(model.tensors[name].n_rows for name in names):
            continue
        quants, scales = split_planes(np.concatenate(raws), formats[0])
        assert np.array_equal(read_back(device, planes.quants, len(quants)), quants), names
        if weight_format(formats[0]).is_quantized:
            assert np.array_equal(read_back(device, planes.scales, len(scales)), scales), names
    return buffers, n_loaded


@pytest.mark.parametrize("fmt", WEIGHT_FORMATS)
def test_each_rank_has_its_rows_and_columns(
    device: Device, tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "STAGING_WORDS", 5000)  # so that chunks begin and end within rows
    path = write_random_model(tmp_path / "model.gguf", DENSE, dict.fromkeys(NAMES, fmt))
    tensors = ModelFile.open(path).tensors
    models = rank_models(DENSE, tensors, [2, 1])
    whole = {
        name: dequantize(read_tensor(path, info), info.format, info.shape)
        for name, info in tensors.items()
        if "ffn_down" in name or "attn_output" in name or "attn_k" in name
    }
    for model, hidden, heads, keys in zip(
        models,
        (slice(512), slice(512, 768)),
        (slice(256), slice(256, 512)),
        (slice(128), slice(128, 256)),
        strict=True,
    ):
        _, n_loaded = check(device, path, model)
        for name, part in (("ffn_down", np.s_[:, hidden]), ("attn_output", np.s_[:, heads]), ("attn_k", np.s_[keys])):
            info = model.tensors[f"blk.0.{name}.weight"]
            own = dequantize(read_tensor(path, info), info.format, info.shape)
            assert np.array_equal(own, whole[f"blk.0.{name}.weight"][part], equal_nan=True)
        n_bytes = sum(info.n_bytes for info in model.tensors.values())
        codebook_bytes = weight_format(fmt).codebook.nbytes * 6  # of six stacked matrices
        other_bytes = 4 * (N_CTX * 128 + MAX_NARROW * model.spec.n_heads)  # the table of rotations, counters
        assert n_loaded == n_bytes + codebook_bytes + other_bytes
    sizes = [sum(info.n_bytes for info in model.tensors.values()) for model in models]
    assert sizes[1] < sizes[0] < sum(info.n_bytes for info in tensors.values())


EXPERTS = Experts(6, 2, 96, d_ff_shared=64, has_shared_gate=True, biases=("ffn_gate_exps", "ffn_down_exps"))
FUSED_EXPERTS = Experts(6, 2, 96, has_fused_gate_up=True, scales=("ffn_down_exps",))


@pytest.mark.parametrize(
    ("spec", "fmt", "only_on_the_first"),
    [
        (
            of_layers(*(replace(LAYER, d_ff=0, experts=experts) for experts in (EXPERTS, FUSED_EXPERTS))),
            "MXFP4",
            {"ffn_down_exps"},
        ),
        (KINDS_OF_LAYERS["starcoder2"], "Q5_0", {"attn_output", "ffn_down"}),
        (KINDS_OF_LAYERS["deepseek2"], "F16", set()),
        (KINDS_OF_LAYERS["gemma"], "Q8_0", set()),
    ],
    ids=("experts", "one tensor for queries, keys and values", "latent attention", "one tensor for gate and up"),
)
def test_tensors_with_several_matrices(
    device: Device,
    tmp_path: Path,
    spec: ModelSpec,
    fmt: str,
    only_on_the_first: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "STAGING_WORDS", 1000)
    names = (*NAMES, "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps", "attn_q_b", "attn_v_b")
    path = write_random_model(tmp_path / "model.gguf", spec, dict.fromkeys(names, fmt))
    models = rank_models(spec, ModelFile.open(path).tensors, [1, 1])
    biases = []
    for model in models:
        assert any(info.excerpt for info in model.tensors.values())
        buffers, _ = check(device, path, model)
        biases.append({names[0].split(".")[-2] for names in buffers.biases})
    assert biases[0] - biases[1] == only_on_the_first
