"""Which operations of divided models may run for half of a step's rows: never those that would see too few."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_specs import HYBRID_SPEC, KINDS_OF_LAYERS, LAYER, of_layers

from vkllm.formats.gguf import TensorInfo
from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.graph import decoder, expected_shapes
from vkllm.model.ops import AllReduce, Op
from vkllm.model.shards.many_rows import of_many_rows
from vkllm.model.shards.rank_model import rank_models
from vkllm.model.shards.row_halves import Piece, pieces_of
from vkllm.model.spec import Experts, ModelSpec

MIXTURE = replace(LAYER, d_ff=0, experts=Experts(8, 2, 64, d_ff_shared=32))
BESIDE_DENSE = replace(LAYER, experts=Experts(8, 2, 64, is_beside_dense=True), post_ffn_norm="post_ffw_norm")


def of_ranks(spec: ModelSpec) -> list[ModelSpec]:
    tensors = {name: TensorInfo(name, shape, "F32", 0, 0) for name, shape in expected_shapes(spec).items()}
    return [model.spec for model in rank_models(spec, tensors, [1, 1])]


def operations(pieces: tuple[Piece, ...]) -> list[Op]:
    return [op for piece in pieces for op in (*piece.ops, *((piece.total,) if piece.total else ()))]


@pytest.mark.parametrize("name", KINDS_OF_LAYERS)
def test_dense_layers_are_cut_as_a_whole(name: str) -> None:
    for rank in of_ranks(KINDS_OF_LAYERS[name]):
        pieces = pieces_of(rank)
        assert tuple(operations(pieces)) == of_many_rows(decoder(rank)) and all(piece.is_cut for piece in pieces)
        assert all(piece.total is not None for piece in pieces[:-1])


@pytest.mark.parametrize("layers", [(LAYER, MIXTURE), (BESIDE_DENSE, LAYER)])
def test_operations_of_experts_are_of_all_rows(layers: tuple) -> None:
    """Beside a dense layer, they share what it has made, which lies in rows of one width."""
    for rank in of_ranks(of_layers(*layers)):
        pieces = pieces_of(rank)
        assert tuple(operations(pieces)) == of_many_rows(decoder(rank))
        whole = [piece for piece in pieces if not piece.is_cut]
        assert len(whole) == 1 and isinstance(whole[0].total, AllReduce)
        assert {Route, ExpertMatvec, ExpertSum} <= {type(op) for op in whole[0].ops}


def test_steps_stay_whole_where_rows_depend_on_others_or_nothing_is_summed() -> None:
    llama = of_layers(LAYER)
    assert pieces_of(llama) == (), "one device has no sums"
    assert all(pieces_of(rank) == () for rank in of_ranks(HYBRID_SPEC)), "states pass from row to row"
    both_ways = replace(llama, is_causal=False)
    assert all(pieces_of(rank) == () for rank in of_ranks(both_ways)), "rows see those behind them"
    assert all(pieces_of(rank) != () for rank in of_ranks(llama))


def test_steps_stay_whole_where_most_pieces_would_be() -> None:
    """Two mixtures without attention of which ranks have parts, for each one with it."""
    alone = replace(MIXTURE, n_heads=0, n_kv_heads=0, head_dim=0, rope=None)
    assert all(pieces_of(rank) != () for rank in of_ranks(of_layers(MIXTURE, MIXTURE)))
    assert all(pieces_of(rank) == () for rank in of_ranks(of_layers(MIXTURE, alone)))


def test_steps_stay_whole_where_halves_and_all_rows_would_lie_otherwise() -> None:
    """A parallel layer's attention runs for all rows beside its experts; another one's has rows of the same width, or
    not."""
    parallel = replace(MIXTURE, is_parallel=True)
    for other, is_cut in ((LAYER, True), (replace(LAYER, n_heads=2, n_kv_heads=1, head_dim=96), False)):
        for rank in of_ranks(of_layers(parallel, other, other)):
            assert len({op.width for op in decoder(rank) if op.output == "qkv"}) == 2 - is_cut
            assert (pieces_of(rank) != ()) == is_cut
