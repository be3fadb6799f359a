"""The decoder as a list of operations, in reading order.

A graph says what is computed, not where or how: `model/reference.py` runs it in numpy, `gpu/program/program.py`
records it as dispatches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from vkllm.formats.quants import BLOCK
from vkllm.model.expert_ops import ExpertSum
from vkllm.model.layers.attention import attention
from vkllm.model.layers.experts import mixture, mixture_beside_dense
from vkllm.model.layers.feed_forward import feed_forward
from vkllm.model.layers.latent_attention import latent_attention
from vkllm.model.layers.layer_ops import copied, padded
from vkllm.model.layers.per_layer import per_layer_embeddings, per_layer_input, scaled
from vkllm.model.layers.prediction import HIDDEN, UNSHIFTED, joined
from vkllm.model.layers.recurrent import delta_net, mamba2, short_convolution
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, ShortConvolution
from vkllm.model.ops import AllReduce, Embed, Matvec, MoveRows, Norm, Op, Shapes, Softcap
from vkllm.model.spec import NO_LAYER, LayerSpec, ModelSpec, Predictor


@lru_cache(maxsize=8)
def decoder(spec: ModelSpec) -> tuple[Op, ...]:
    """All operations from token ids, or from what is received, to the last layer's residual stream `x`."""
    ops: list[Op] = []
    if not spec.receives or spec.d_per_layer:
        ops.append(
            Embed(
                output="x",
                width=spec.d_model,
                weights=("token_embd.weight",),
                n_rows=spec.n_embeddings or spec.n_vocab,
                scale=spec.embedding_scale,
                column_padding=padded(spec.d_model) - spec.d_model,
            )
        )
    if spec.d_per_layer:
        ops += per_layer_embeddings(spec)
    if spec.receives:
        ops.append(MoveRows(output="x", width=spec.d_model, is_sent=False))
    for number, layer in enumerate(spec.layers):
        if layer == NO_LAYER:
            continue
        own = [*_mixing(spec, layer, number), *_feed_forward(spec, layer, number)]
        ops += _with_one_sum(own) if layer.is_parallel else own
        if spec.d_per_layer:
            ops += per_layer_input(spec, layer, number)
        elif layer.has_output_scale:
            ops[-1] = scaled(ops[-1], number)
    if spec.sends:
        ops.append(MoveRows(output="x", width=spec.d_model, input="x", is_sent=True))
    return tuple(ops)


def _mixing(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    match layer.mixer:
        case DeltaNet():
            return delta_net(spec, layer, number)
        case Mamba2():
            return mamba2(spec, layer, number)
        case ShortConvolution():
            return short_convolution(spec, layer, number)
        case LatentAttention():
            return latent_attention(spec, layer, number)
        case None:
            return attention(spec, layer, number) if layer.n_heads else []


def _feed_forward(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    if layer.experts is None:
        return feed_forward(spec, layer, number) if layer.d_ff else []
    make = mixture_beside_dense if layer.experts.is_beside_dense else mixture
    return make(spec, layer, number)


def _with_one_sum(ops: list[Op]) -> list[Op]:
    """A parallel layer: what attention and feed-forward layer add is summed over devices at once, where both are."""
    sums = [i for i, op in enumerate(ops) if isinstance(op, AllReduce) and op.output == "x"]
    if len(sums) < 2:
        return ops
    first, last = sums
    product = ops[last - 1]
    assert isinstance(product, Matvec | ExpertSum)
    return [*ops[:first], *ops[first + 1 : last - 1], replace(product, add=product.output), *ops[last:]]


@lru_cache(maxsize=8)
def prediction(spec: ModelSpec, predictor: Predictor) -> tuple[Op, ...]:
    """From HIDDEN and the ids of the tokens that follow to `x` of a head that predicts a further token."""
    number, layer = predictor.number, predictor.layer
    return (*joined(spec, predictor), *_mixing(spec, layer, number), *_feed_forward(spec, layer, number))


def head_of(spec: ModelSpec, predictor: Predictor) -> tuple[Op, ...]:
    """From `x` of one row of such a head to its logits."""
    own = {name: getattr(predictor, name) for name in ("output_norm", "output_weight", "norm_form", "norm_eps")}
    return head(replace(spec, **own))


@lru_cache(maxsize=8)
def head(spec: ModelSpec) -> tuple[Op, ...]:
    """From the residual stream of one row to its logits; nothing where that is sent on."""
    if spec.sends:
        return ()
    final = Norm(
        output="final",
        width=spec.d_model,
        input="x",
        form=spec.norm_form,
        eps=spec.norm_eps,
        weight=f"{spec.output_norm}.weight",
        bias=f"{spec.output_norm}.bias" if spec.has_output_norm_bias else None,
    )
    is_odd = spec.d_model % BLOCK > 0
    normed = (final, copied("final", "rounded", spec.d_model)) if is_odd else (final,)
    projection = Matvec(
        output="logits",
        width=spec.n_vocab,
        input=normed[-1].output,
        weights=(spec.output_weight,),
        n_rows=(spec.n_vocab,),
        n_columns=padded(spec.d_model),
        column_padding=padded(spec.d_model) - spec.d_model,
        biases=("output.bias" if spec.has_output_bias else None,),
    )
    if spec.logit_scale == 1 and spec.logit_softcap == 0:
        return *normed, projection
    softcap = Softcap(
        output="logits", width=spec.n_vocab, input="logits", scale=spec.logit_scale, cap=spec.logit_softcap
    )
    return *normed, projection, softcap


def hidden(spec: ModelSpec) -> Norm:
    """What heads for further tokens read of all rows of a step, as the final norm leaves it."""
    final = head(spec)[0]
    assert isinstance(final, Norm)
    return replace(final, output=UNSHIFTED)


@lru_cache(maxsize=8)
def loaded(spec: ModelSpec) -> tuple[Op, ...]:
    """All operations that a device may have to run; the vocabulary projection is the last that reads a matrix."""
    predictions = [op for each in spec.predictors for op in (*prediction(spec, each), *head_of(spec, each))]
    return (*decoder(spec), *([hidden(spec), *predictions] if predictions else ()), *head(spec))


def of_predictors(spec: ModelSpec) -> Shapes:
    """Name and shape of the tensors that only heads for further tokens read."""
    own: Shapes = {}
    for predictor in spec.predictors:
        for op in (*prediction(spec, predictor), *head_of(spec, predictor)):
            own |= op.tensors()
    used = expected_shapes(spec)
    return {name: shape for name, shape in own.items() if name not in used}


def widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of every activation, of the widest operation that writes it: shape (T, columns), float32."""
    columns: dict[str, int] = {HIDDEN: spec.d_model} if spec.predictors else {}
    for op in loaded(spec):
        n_columns = max(op.width, op.output_width if isinstance(op, Norm) else 0)
        columns[op.output] = max(columns.get(op.output, 0), n_columns)
    return columns


def each_expected(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model reads, in reading order; some more than once."""
    for op in (*decoder(spec), *head(spec)):
        yield from op.tensors().items()


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Name and shape of every tensor that the model reads."""
    return dict(each_expected(spec))
