"""What stands in place of attention and keeps a state: gated delta net, Mamba 2, short convolution."""

from __future__ import annotations

from vkllm.formats.quants import BLOCK
from vkllm.model.layers.layer_ops import LayerOps
from vkllm.model.mixers import DeltaNet, Mamba2, ShortConvolution
from vkllm.model.ops import AllReduce, Op
from vkllm.model.spec import LayerSpec, ModelSpec
from vkllm.model.state_ops import SQUARES, Convolution, DeltaNetStep, GatedNorm, GatedSquares, Mamba2Step


def delta_net(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Projections, convolution, the net itself, its gated norm, and the projection of its result."""
    net, make = layer.mixer, LayerOps(spec, layer, number)
    assert isinstance(net, DeltaNet)
    convolved = 2 * net.k_width + net.v_width
    z_column, beta_column = convolved, convolved + net.v_width
    gates = (
        {"ssm_ba": 2 * net.n_v_heads}
        if net.has_fused_beta_alpha
        else {"ssm_beta": net.n_v_heads, "ssm_alpha": net.n_v_heads}
    )
    return [
        make.before(layer.attn_norm),
        make.matvec({"attn_qkv": convolved, "attn_gate": net.v_width, **gates}, "normed", spec.d_model, "projected"),
        Convolution(
            output="convolved",
            width=convolved,
            input="projected",
            layer=number,
            n_kernel=net.n_kernel,
            weight=make.tensor("ssm_conv1d"),
            function="silu",
        ),
        DeltaNetStep(
            output="mixed",
            width=net.v_width,
            input="convolved",
            layer=number,
            net=net,
            eps=spec.norm_eps,
            gates="projected",
            beta_column=beta_column,
            alpha_column=beta_column + (0 if net.has_fused_beta_alpha else net.n_v_heads),
            dt=f"blk.{number}.ssm_dt.bias",
            a=f"blk.{number}.ssm_a",
        ),
        GatedNorm(
            output="gated",
            width=net.v_width,
            input="mixed",
            layer=number,
            eps=spec.norm_eps,
            gates="projected",
            column=z_column,
            weight=make.tensor("ssm_norm"),
            group=net.head_dim,
        ),
        *_ending(make, "ssm_out", net.v_width),
    ]


def mamba2(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Projection, convolution, the state space itself, its gated norm, and the projection of its result."""
    mamba, make = layer.mixer, LayerOps(spec, layer, number)
    assert isinstance(mamba, Mamba2)
    d_inner, group = mamba.d_inner, mamba.d_inner // mamba.n_groups
    is_part = mamba.normed_columns is not None
    return [
        make.before(layer.attn_norm),
        make.matvec({"ssm_in": d_inner + mamba.convolved + mamba.n_heads}, "normed", spec.d_model, "projected"),
        Convolution(
            output="convolved",
            width=mamba.convolved,
            input="projected",
            layer=number,
            n_kernel=mamba.n_kernel,
            weight=make.tensor("ssm_conv1d"),
            bias=f"blk.{number}.ssm_conv1d.bias",
            column=d_inner,
            function="silu",
        ),
        Mamba2Step(
            output="mixed",
            width=d_inner,
            input="convolved",
            layer=number,
            mamba=mamba,
            gates="projected",
            dt_column=d_inner + mamba.convolved,
            dt_bias=f"blk.{number}.ssm_dt.bias",
            a=f"blk.{number}.ssm_a",
            d=f"blk.{number}.ssm_d",
        ),
        *(_squares(number, d_inner) if is_part else ()),
        GatedNorm(
            output="gated",
            width=d_inner,
            input="mixed",
            layer=number,
            eps=spec.norm_eps,
            gates="projected",
            column=0,
            weight=make.tensor("ssm_norm"),
            group=group,
            is_gated_first=True,
            has_weight_per_group=True,
            squares="squares" if is_part else None,
            normed_columns=mamba.normed_columns or 0,
        ),
        *_ending(make, "ssm_out", d_inner),
    ]


def _squares(number: int, d_inner: int) -> list[Op]:
    """The sum of squares of a group of which each device has a part."""
    own = GatedSquares(
        output="own_squares",
        width=SQUARES,
        input="mixed",
        layer=number,
        n_columns=d_inner,
        gates="projected",
        column=0,
    )
    return [own, AllReduce(output="squares", width=SQUARES, input=own.output, layer=number)]


def short_convolution(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """Projection, gated convolution, and the projection of its result."""
    convolution, make = layer.mixer, LayerOps(spec, layer, number)
    assert isinstance(convolution, ShortConvolution)
    return [
        make.before(layer.attn_norm),
        make.matvec({"shortconv.in_proj": 3 * convolution.width}, "normed", spec.d_model, "projected"),
        Convolution(
            output="gated",
            width=convolution.width,
            input="projected",
            layer=number,
            n_kernel=convolution.n_kernel,
            weight=make.tensor("shortconv.conv"),
            is_gated=True,
        ),
        *_ending(make, "shortconv.out_proj", convolution.width),
    ]


def _ending(make: LayerOps, name: str, n_columns: int) -> list[Op]:
    """The projection of what is gated, whose columns may be no whole blocks."""
    return make.ending(name, "gated", n_columns, make.layer.post_attention_norm, copies=n_columns % BLOCK > 0)
