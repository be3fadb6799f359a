"""The decoder as a list of operations, in reading order.

A graph says what is computed, not where or how: `model/reference.py` runs it in numpy, `gpu/program/program.py`
records it as dispatches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from vkllm.formats.quants import BLOCK
from vkllm.model.ops import (
    Activate,
    Attention,
    Embed,
    HeadNormalization,
    Matvec,
    Norm,
    Op,
    Rotation,
    Shapes,
    Softcap,
)
from vkllm.model.spec import LayerSpec, ModelSpec


@lru_cache(maxsize=8)
def decoder(spec: ModelSpec) -> tuple[Op, ...]:
    """All operations from token ids to the last layer's residual stream `x`."""
    ops: list[Op] = [
        Embed(
            output="x",
            width=spec.d_model,
            weights=("token_embd.weight",),
            n_rows=spec.n_vocab,
            scale=spec.embedding_scale,
        )
    ]
    for number, layer in enumerate(spec.layers):
        ops += _attention(spec, layer, number)
        ops += _feed_forward(spec, layer, number)
    return tuple(ops)


@lru_cache(maxsize=8)
def head(spec: ModelSpec) -> tuple[Op, ...]:
    """From the residual stream of one row to its logits."""
    final = Norm(
        output="final",
        width=spec.d_model,
        input="x",
        form=spec.norm_form,
        eps=spec.norm_eps,
        weight="output_norm.weight",
        bias="output_norm.bias" if spec.has_output_norm_bias else None,
    )
    projection = Matvec(
        output="logits",
        width=spec.n_vocab,
        input="final",
        weights=(spec.output_weight,),
        n_rows=(spec.n_vocab,),
        n_columns=spec.d_model,
        biases=("output.bias" if spec.has_output_bias else None,),
    )
    if spec.logit_scale == 1 and spec.logit_softcap == 0:
        return final, projection
    softcap = Softcap(
        output="logits", width=spec.n_vocab, input="logits", scale=spec.logit_scale, cap=spec.logit_softcap
    )
    return final, projection, softcap


def widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of every activation, of the widest operation that writes it: shape (T, columns), float32."""
    columns: dict[str, int] = {}
    for op in (*decoder(spec), *head(spec)):
        columns[op.output] = max(columns.get(op.output, 0), op.width)
    return columns


def each_expected(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model reads, in reading order; some more than once."""
    for op in (*decoder(spec), *head(spec)):
        yield from op.tensors().items()


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Name and shape of every tensor that the model reads."""
    return dict(each_expected(spec))


class _LayerOps:
    """Makes the operations of one layer, with its tensors' names."""

    def __init__(self, spec: ModelSpec, layer: LayerSpec, number: int) -> None:
        self.spec = spec
        self.layer = layer
        self.number = number

    def tensor(self, name: str) -> str:
        """Name of the layer's weight."""
        return f"blk.{self.number}.{name}.weight"

    def bias(self, name: str) -> str | None:
        """Name of a weight's bias, if it has one."""
        return f"blk.{self.number}.{name}.bias" if name in self.layer.biases else None

    def norm(self, name: str, source: str, output: str, add: str | None = None) -> Norm:
        """A norm of d_model columns."""
        return Norm(
            output=output,
            width=self.spec.d_model,
            input=source,
            layer=self.number,
            form=self.spec.norm_form,
            eps=self.spec.norm_eps,
            weight=self.tensor(name),
            bias=self.bias(name),
            add=add,
        )

    def before(self, name: str | None) -> Norm:
        """What attention or feed-forward layer reads: the residual stream, through a norm if there is one."""
        return self.copy("x", "normed", self.spec.d_model) if name is None else self.norm(name, "x", "normed")

    def copy(self, source: str, output: str, width: int) -> Norm:
        """The same values, in a buffer that has them quantized too."""
        return Norm(output=output, width=width, input=source, layer=self.number, form="none", eps=0.0)

    def matvec(self, names: dict[str, int], source: str, n_columns: int, output: str, add: str | None = None) -> Matvec:
        """A product with stacked matrices. names: with their numbers of rows."""
        return Matvec(
            output=output,
            width=sum(names.values()),
            input=source,
            layer=self.number,
            weights=tuple(map(self.tensor, names)),
            n_rows=tuple(names.values()),
            n_columns=n_columns,
            biases=tuple(map(self.bias, names)),
            add=add,
            factor=1.0 if add is None else self.layer.residual_scale,
        )

    def ending(self, names: dict[str, int], source: str, n_columns: int, norm: str | None) -> list[Matvec | Norm]:
        """The last product of attention or feed-forward layer, added to the residual stream, through a norm if any."""
        if norm is None:
            return [self.matvec(names, source, n_columns, "x", add="x")]
        return [self.matvec(names, source, n_columns, "added"), self.norm(norm, "added", "x", add="x")]


def _attention(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    make = _LayerOps(spec, layer, number)
    q_width, kv_width = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    heads = {"n_heads": layer.n_heads, "n_kv_heads": layer.n_kv_heads, "head_dim": layer.head_dim, "layer": number}
    names = (
        {"attn_qkv": q_width + 2 * kv_width}
        if layer.has_fused_qkv
        else {"attn_q": q_width, "attn_k": kv_width, "attn_v": kv_width}
    )
    ops: list[Op] = [
        replace(make.before(layer.attn_norm), is_shared=layer.is_parallel),
        make.matvec(names, "normed", spec.d_model, "qkv"),
    ]
    norm_weights = None if layer.head_norm is None else (make.tensor("attn_q_norm"), make.tensor("attn_k_norm"))
    is_after_rope = layer.head_norm is not None and layer.head_norm.is_after_rope
    if layer.head_norm is not None:
        ops.append(
            HeadNormalization(
                output="qkv",
                width=q_width + 2 * kv_width,
                input="qkv",
                norm=layer.head_norm,
                eps=spec.norm_eps,
                weights=None if is_after_rope else norm_weights,
                **heads,
            )
        )
    ops += [
        Rotation(
            output="q",
            width=q_width,
            input="qkv",
            rope=layer.rope,
            weights=norm_weights if is_after_rope else None,
            temperature=layer.query_temperature,
            **heads,
        ),
        Attention(
            output="attended",
            width=q_width,
            input="q",
            scale=layer.attention_scale,
            softcap=layer.softcap,
            window=layer.window,
            is_causal=spec.is_causal,
            **heads,
        ),
    ]
    attended = "attended"
    if layer.head_dim % BLOCK:  # attention cannot quantize blocks that two heads share
        ops.append(make.copy("attended", "rounded", q_width))
        attended = "rounded"
    return ops + make.ending({"attn_output": spec.d_model}, attended, q_width, layer.post_attention_norm)


def _feed_forward(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    make = _LayerOps(spec, layer, number)
    ops: list[Op] = []
    if not layer.is_parallel:
        ops.append(make.before(layer.ffn_norm))
    if not layer.is_gated:
        names = {"ffn_up": layer.d_ff}
    elif layer.has_fused_gate_up:
        names = {"ffn_up": 2 * layer.d_ff}
    else:
        names = {"ffn_gate": layer.d_ff, "ffn_up": layer.d_ff}
    padding = -layer.d_ff % BLOCK
    gate_up = make.matvec(names, "normed", spec.d_model, "gate_up")
    ops += [
        replace(gate_up, width=gate_up.width + padding * len(names), row_padding=padding),
        Activate(
            output="hidden",
            width=layer.d_ff + padding,
            input="gate_up",
            layer=number,
            function=layer.function,
            is_gated=layer.is_gated,
        ),
    ]
    down, *norm = make.ending({"ffn_down": spec.d_model}, "hidden", layer.d_ff + padding, layer.post_ffn_norm)
    assert isinstance(down, Matvec)
    return [*ops, replace(down, column_padding=padding), *norm]
