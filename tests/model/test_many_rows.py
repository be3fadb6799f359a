"""Steps of many rows of divided models: ranks hand over rounded parts, and the residual stream is not among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from file_reference import log_softmax
from model_specs import HYBRID_SPEC, KINDS_OF_LAYERS, LAYER, of_layers
from random_model import write_random_model
from test_shards import weights_of
from test_shared_exponent import as_bfloat16

from vkllm.formats.gguf import ModelFile, TensorInfo
from vkllm.model.expert_ops import ExpertSum
from vkllm.model.graph import decoder, expected_shapes
from vkllm.model.memory.exchange_memory import is_packed
from vkllm.model.ops import AllReduce, Matvec, Op
from vkllm.model.reference import Reference
from vkllm.model.shards import lockstep
from vkllm.model.shards.lockstep import LockstepReference
from vkllm.model.shards.many_rows import of_many_rows
from vkllm.model.shards.rank_model import rank_models
from vkllm.model.spec import ModelSpec


def sums(ops: tuple[Op, ...]) -> list[AllReduce]:
    return [op for op in ops if isinstance(op, AllReduce)]


def products(ops: tuple[Op, ...]) -> list[Matvec | ExpertSum]:
    """What makes the parts of sums."""
    parts = {total.input for total in sums(ops)}
    return [op for op in ops if isinstance(op, Matvec | ExpertSum) and op.output in parts]


@pytest.mark.parametrize("name", [*KINDS_OF_LAYERS, "hybrid"])
def test_the_residual_stream_is_in_no_part_and_every_rank_adds_it(name: str) -> None:
    spec = HYBRID_SPEC if name == "hybrid" else KINDS_OF_LAYERS[name]
    assert of_many_rows(decoder(spec)) == decoder(spec)
    tensors = {name: TensorInfo(name, shape, "F32", 0, 0) for name, shape in expected_shapes(spec).items()}
    for rank, model in enumerate(rank_models(spec, tensors, [1, 1])):
        few, many = decoder(model.spec), of_many_rows(decoder(model.spec))
        has_residual = any(total.residual == "x" for total in sums(few))
        assert any(op.add == "x" for op in products(few)) == (has_residual and rank == 0)
        assert [total.add for total in sums(many)] == [total.residual for total in sums(few)] != []
        assert all(total.is_packed and total.add in ("x", None) for total in sums(many))
        assert all(op.add in (None, op.output) for op in products(many)), "a parallel layer adds both to one part"


def test_steps_of_many_rows_are_near_the_whole_model_and_nearer_than_with_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers with norms before and behind them; the errors of log-probabilities, of 2, 3 and 4 ranks."""
    spec = of_layers(LAYER, *KINDS_OF_LAYERS["olmo2"].layers, LAYER)
    path = write_random_model(tmp_path / "model.gguf", spec, {"attn_output": "Q4_0", "ffn_down": "Q4_0"})
    tokens = np.random.default_rng(0).integers(8, spec.n_vocab, 43).tolist()
    exact, packed = errors(path, spec, tokens, 32), errors(path, spec, tokens, 40)
    monkeypatch.setattr(lockstep, "rounded", as_bfloat16)
    halves = errors(path, spec, tokens, 40)
    assert max(exact) < 1e-4, "narrow steps hand over float32"
    assert all(1e-4 < one < 3e-3 and other > 10 * one for one, other in zip(packed, halves, strict=True))


def errors(path: Path, spec: ModelSpec, tokens: list[int], n_first: int) -> list[float]:
    """The largest error of a log-probability in two steps, for each number of ranks."""
    tensors = ModelFile.open(path).tensors
    steps = tokens[:n_first], tokens[n_first:]
    whole = Reference(spec, weights_of(path, tensors), 64)
    wanted = [log_softmax(whole.run(step)) for step in steps]
    found = []
    for n in (2, 3, 4):
        models = rank_models(spec, tensors, [1] * n)
        divided = LockstepReference(models, [weights_of(path, model.tensors) for model in models], 64)
        logprobs = [log_softmax(divided.run(step)) for step in steps]
        found.append(max(float(np.abs(a - b).max()) for a, b in zip(logprobs, wanted, strict=True)))
    return found


def test_rows_that_are_no_whole_eights_are_handed_over_as_they_are() -> None:
    assert is_packed(33, 96) and not is_packed(33, 92) and not is_packed(32, 96)
    odd = AllReduce(output="x", width=92, input="x_part", residual="x")
    assert of_many_rows([odd]) == (odd,)
