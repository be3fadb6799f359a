"""Models divided among ranks, run in lockstep in numpy, against the whole models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_reference import log_softmax
from model_specs import HYBRID_SPEC, KINDS_OF_LAYERS, LAYER, STATE, of_layers
from random_model import write_random_model

from vkllm.formats.gguf import ModelFile, TensorInfo, read_tensor
from vkllm.formats.quants import dequantize
from vkllm.model.architectures import model_spec
from vkllm.model.graph import decoder, expected_shapes
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, ShortConvolution
from vkllm.model.ops import AllReduce
from vkllm.model.reference import Floats, Reference
from vkllm.model.shards.attention import divided_heads
from vkllm.model.shards.lockstep import LockstepReference
from vkllm.model.shards.partition import divided
from vkllm.model.shards.rank_model import RankModel, Tensors, rank_models
from vkllm.model.spec import Experts, HeadNorm, ModelSpec, Rope

TINY = Path(__file__).parents[3] / "shared" / "tiny"
FORMATS = ("quant-q4_0", "quant-mxfp4", "quant-nvfp4")
"""Of the small models that differ by a format only, those that are divided here."""
BOUND = 1e-4
"""Of log-probabilities in float32, whose sums have another order."""


NAMES = sorted(path.stem for path in TINY.glob("*.gguf") if "quant-" not in path.stem or path.stem in FORMATS)


def weights_of(path: Path, tensors: Tensors) -> Callable[[str], Floats]:
    return cache(lambda name: dequantize(read_tensor(path, tensors[name]), tensors[name].format, tensors[name].shape))


def check(path: Path, spec: ModelSpec, tensors: Tensors, *divisions: Sequence[float]) -> list[list[RankModel]]:
    """Runs a model whole and in divisions, in two steps; returns what ranks have in each."""
    n_ctx, rng = 64, np.random.default_rng(0)
    tokens = rng.integers(8, spec.n_vocab, 20).tolist()
    whole = Reference(spec, weights_of(path, tensors), n_ctx)
    wanted = [log_softmax(whole.run(step)) for step in (tokens[:17], tokens[17:])]
    found = []
    for proportions in divisions:
        models = rank_models(spec, tensors, proportions)
        for model in models:
            assert {name: info.shape for name, info in model.tensors.items()} == expected_shapes(model.spec)
        divided = LockstepReference(models, [weights_of(path, model.tensors) for model in models], n_ctx)
        for step, logprobs in zip((tokens[:17], tokens[17:]), wanted, strict=True):
            assert np.abs(log_softmax(divided.run(step)) - logprobs).max() < BOUND
        found.append(models)
    return found


def sums(model: RankModel) -> list[int]:
    """The layers of its sums over ranks."""
    return [op.layer for op in decoder(model.spec) if isinstance(op, AllReduce)]


@pytest.mark.skipif(not TINY.is_dir(), reason="needs the small models beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_two_three_and_four_ranks_are_those_of_one(name: str) -> None:
    file = ModelFile.open(TINY / f"{name}.gguf")
    spec = model_spec(file.metadata, file.tensors)
    divisions = check(file.path, spec, file.tensors, [1, 1], [1, 1, 1], [1, 1, 1, 1])
    assert all(sums(models[0]) for models in divisions)
    assert [model.vocabulary for model in divisions[0]] == [range(160), range(160, 288)]


@pytest.mark.parametrize("name", [*KINDS_OF_LAYERS, "hybrid"])
def test_unequal_ranks(name: str, tmp_path: Path) -> None:
    spec = HYBRID_SPEC if name == "hybrid" else KINDS_OF_LAYERS[name]
    path = write_random_model(tmp_path / "model.gguf", spec, {"attn_output": "Q4_0", "ffn_down": "Q4_0"})
    tensors = ModelFile.open(path).tensors
    (models, _) = check(path, spec, tensors, [3, 2], [1, 2, 2])
    assert sums(models[0]) and sums(models[0]) == sums(models[1])


def test_mixers_are_divided(tmp_path: Path) -> None:
    mixers = (
        DeltaNet(8, 16, 32, 4), DeltaNet(8, 8, 32, 4), DeltaNet(4, 8, 16, 4, True, True), Mamba2(16, 16, 16, 8, 4),
        ShortConvolution(3, 256), LatentAttention(40, 64, 32, 16, 32),
    )  # fmt: skip
    latent = replace(LAYER, n_heads=8, n_kv_heads=1, head_dim=80, rope=Rope(1e4, 16), mixer=mixers[-1], d_ff=256)
    spec = of_layers(*(replace(STATE, mixer=mixer, d_ff=256) for mixer in mixers[:-1]), latent)
    path = write_random_model(tmp_path / "model.gguf", spec, dict.fromkeys(("ssm_out", "attn_output"), "Q4_0"))
    for models in check(path, spec, ModelFile.open(path).tensors, [1, 1, 1, 1], [3, 1]):
        assert all(sums(model) == sorted([*range(6)] * 2) for model in models)
        caches = [[layer.state_sizes for layer in model.spec.layers] for model in models]
        assert np.sum(caches, axis=0)[:5].tolist() == [list(layer.state_sizes) for layer in spec.layers[:5]]
        assert all(model.spec.layers[-1].cached_widths == (80,) for model in models)


def test_heads_of_a_single_group_are_divided_and_its_norm_is_over_all(tmp_path: Path) -> None:
    """Each rank has B and C of the group; a further sum is of the squares that the norm is over."""
    mamba = Mamba2(16, 16, 16, 1, 4)
    spec = of_layers(replace(STATE, mixer=mamba, d_ff=256), d_model=256)
    path = write_random_model(tmp_path / "model.gguf", spec, {"ssm_out": "Q4_0"})
    for models, n_heads in zip(
        check(path, spec, ModelFile.open(path).tensors, [1, 1, 1, 1], [3, 1]), ([4] * 4, [12, 4]), strict=True
    ):
        found = [model.spec.layers[0].mixer for model in models]
        assert found == [replace(mamba, n_heads=n, normed_columns=256) for n in n_heads]
        assert all(sums(model) == [0, 0, 0] for model in models)
        assert [model.spec.layers[0].state_sizes[1] for model in models] == [n * 256 for n in n_heads]


def test_parallel_layers_have_one_sum(tmp_path: Path) -> None:
    spec = KINDS_OF_LAYERS["command-r"]
    path = write_random_model(tmp_path / "model.gguf", spec, {})
    (models,) = check(path, spec, ModelFile.open(path).tensors, [1, 1])
    assert sums(models[0]) == [0, 1]


def test_ranks_share_blocks_where_there_are_too_few(tmp_path: Path) -> None:
    """Two super-blocks of hidden columns for three and more ranks: each has one, and zeros for the others' rows."""
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    experts = (
        Experts(4, 2, 512, function="swiglu_oai", biases=names, d_ff_shared=256),
        Experts(4, 2, 768, has_fused_gate_up=True, function="gelu"),
    )
    spec = of_layers(
        *(replace(LAYER, d_ff=0, experts=each) for each in experts),
        replace(LAYER, d_ff=512, function="relu2", is_gated=False, biases=("ffn_up", "ffn_down")),
        replace(LAYER, d_ff=512, has_fused_gate_up=True),
        d_model=256,
    )
    matrices = (*names, "ffn_gate_up_exps", "ffn_up", "ffn_down", "ffn_down_shexp")
    path = write_random_model(tmp_path / "model.gguf", spec, dict.fromkeys(matrices, "Q4_K"))
    for models in check(path, spec, ModelFile.open(path).tensors, [1, 1, 1], [1] * 5):
        for model in models:
            first, second, *dense = model.spec.layers
            assert first.experts is not None and second.experts is not None
            assert (first.experts.d_ff, second.experts.d_ff) == (256, 256)
            assert [layer.d_ff for layer in dense] == [256, 256]
        shared = [layer.experts.d_ff_shared for model in models if (layer := model.spec.layers[0]).experts]
        assert shared == [256, *[0] * (len(models) - 1)]


def test_layers_take_turns_with_what_is_left(tmp_path: Path) -> None:
    """Three super-blocks for two ranks, and three key/value heads."""
    spec = of_layers(*2 * [replace(LAYER, n_heads=6, n_kv_heads=3, d_ff=768)], d_model=256)
    path = write_random_model(tmp_path / "model.gguf", spec, {"ffn_down": "Q4_K"})
    (models,) = check(path, spec, ModelFile.open(path).tensors, [1, 1])
    assert [[layer.d_ff for layer in model.spec.layers] for model in models] == [[512, 256], [256, 512]]
    assert [[layer.n_kv_heads for layer in model.spec.layers] for model in models] == [[2, 1], [1, 2]]


def test_mixers_take_turns_with_what_is_left_whatever_stands_between_them(tmp_path: Path) -> None:
    """Three key heads, and three blocks of columns, for two ranks."""
    net, convolution = DeltaNet(3, 6, 32, 4), ShortConvolution(3, 96)
    mixers = (net, None, net, convolution, None, convolution)
    spec = of_layers(*(LAYER if mixer is None else replace(STATE, mixer=mixer) for mixer in mixers))
    path = write_random_model(tmp_path / "model.gguf", spec, {})
    (models,) = check(path, spec, ModelFile.open(path).tensors, [1, 1])
    found = [[layer.mixer for layer in model.spec.layers if layer.mixer] for model in models]
    nets = [[mixer.n_k_heads for mixer in of_rank if isinstance(mixer, DeltaNet)] for of_rank in found]
    columns = [[mixer.width for mixer in of_rank if isinstance(mixer, ShortConvolution)] for of_rank in found]
    assert (nets, columns) == ([[2, 1], [1, 2]], [[64, 32], [32, 64]])


def test_what_has_too_few_parts_is_on_every_rank() -> None:
    spec = of_layers(
        replace(LAYER, head_norm=HeadNorm(over="row"), d_ff=8),
        replace(STATE, mixer=Mamba2(4, 16, 16, 1, 4), d_ff=8),
        replace(STATE, mixer=DeltaNet(2, 4, 16, 4), d_ff=8),
        replace(STATE, mixer=ShortConvolution(3, 80), d_ff=8),
        n_vocab=20,
    )
    tensors = {name: TensorInfo(name, shape, "F32", 0, 0) for name, shape in expected_shapes(spec).items()}
    for model in rank_models(spec, tensors, [1, 1, 1]):
        assert (model.tensors, model.vocabulary) == (tensors, range(20))
        assert decoder(model.spec) == decoder(spec)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "border", "proportions", "wanted"),
    [
        (64, 8, 256, (1, 1), [(0, 32, range(4)), (32, 64, range(4, 8))]),
        (64, 8, 256, (3, 1), [(0, 48, range(6)), (48, 64, range(6, 8))]),
        (64, 8, 256, (1, 1, 1), [(0, 24, range(3)), (24, 48, range(3, 6)), (48, 64, range(6, 8))]),
        (8, 8, 256, (1, 1, 1), [(0, 4, range(4)), (4, 6, range(4, 6)), (6, 8, range(6, 8))]),
        (16, 2, 32, (1, 1, 1, 1), [(0, 4, [0]), (4, 8, [0]), (8, 12, [1]), (12, 16, [1])]),
        (8, 2, 32, (1, 1, 1), [(0, 3, [0]), (3, 6, [0, 1, 1]), (6, 8, [1])]),
        (7, 1, 256, (1, 1), [(0, 4, [0]), (4, 7, [0])]),
        (2, 2, 256, (1, 1), None),
        (14, 2, 256, (1, 1, 1), [(0, 6, [0]), (6, 10, [0, 1, 1, 1]), (10, 14, [1])]),
        (28, 4, 256, (1, 1, 1), None),  # of 10 query heads, one to a key head
        (4, 1, 256, (1, 1, 1), None),
    ],
)
def test_heads_of_ranks(
    n_heads: int, n_kv_heads: int, border: int, proportions: tuple[float, ...], wanted: list[Any] | None
) -> None:
    """Heads of 128 numbers, two to a super-block."""
    layer = replace(LAYER, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=128)
    found = divided_heads(layer, border, proportions)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        plain = [(each.queries.start, each.queries.stop, [key.start for key in each.keys]) for each in found]
        assert plain == [(first, end, list(keys)) for first, end, keys in wanted]


@pytest.mark.parametrize(
    ("n", "border", "proportions", "wanted"),
    [
        (28672, 256, (1, 1), [14336, 14336]),
        (28672, 256, (1,) * 8, [3584] * 8),
        (28672, 256, (3, 1), [21504, 7168]),
        (11008, 32, (1, 1), [5632, 5376]),  # 43 super-blocks
        (1408, 32, (1, 1, 1, 1), [352] * 4),
        (768, 256, (1, 1), [512, 256]),
        (100, 8, (1, 1), [56, 44]),
        (512, 256, (9, 1), [256, 256]),
        (512, 256, (1, 1, 1), None),
    ],
)
def test_columns_of_ranks(n: int, border: int, proportions: tuple[float, ...], wanted: list[int] | None) -> None:
    found = divided(n, border, proportions)
    assert (found and [len(part) for part in found]) == wanted
    assert found is None or [part.stop for part in found[:-1]] == [part.start for part in found[1:]]
