"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from vkllm.model.expert_ops import ExpertMatvec, ExpertSum, Route
from vkllm.model.layers.layer_ops import LayerOps, padded
from vkllm.model.ops import Activate, Matvec, Op
from vkllm.model.spec import Experts, LayerSpec, ModelSpec


def mixture(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """A mixture in place of the dense feed-forward layer."""
    make, experts = LayerOps(spec, layer, number), layer.experts
    assert experts is not None
    ops: list[Op] = [] if layer.is_parallel else [replace(make.before(layer.ffn_norm), is_shared=True)]
    ops += [_router(make, experts, "normed"), _route(make, experts)]
    if experts.d_ff_shared:
        ops += _shared(make, experts)
    is_last = layer.post_ffn_norm is None
    ops += _experts(make, experts, "x" if is_last else "added", "x" if is_last else None)
    return ops if layer.post_ffn_norm is None else [*ops, make.norm_behind(layer.post_ffn_norm, "added", "x", add="x")]


def mixture_beside_dense(spec: ModelSpec, layer: LayerSpec, number: int) -> list[Op]:
    """A mixture and a dense layer side by side, each with norms of its own; the router reads a third one."""
    make, experts = LayerOps(spec, layer, number), layer.experts
    assert experts is not None and layer.post_ffn_norm is not None and layer.ffn_norm is not None
    router_norm = replace(
        make.norm("", "x", "router_normed"), weight=f"blk.{number}.ffn_gate_inp.scale", factor=spec.d_model**-0.5
    )
    return [
        make.norm(layer.ffn_norm, "x", "normed"),
        make.matvec({"ffn_gate": layer.d_ff, "ffn_up": layer.d_ff}, "normed", spec.d_model, "gate_up", pads_rows=True),
        Activate(output="hidden", width=padded(layer.d_ff), input="gate_up", layer=number, function=layer.function),
        *make.summed(make.matvec({"ffn_down": spec.d_model}, "hidden", layer.d_ff, "added"), "ffn_down"),
        make.norm_behind("post_ffw_norm_1", "added", "dense"),
        router_norm,
        _router(make, experts, "router_normed"),
        _route(make, experts),
        make.norm("pre_ffw_norm_2", "x", "normed"),
        *_experts(make, experts, "added", None),
        make.norm_behind("post_ffw_norm_2", "added", "both", add="dense"),
        make.norm_behind(layer.post_ffn_norm, "both", "x", add="x"),
    ]


def _router(make: LayerOps, experts: Experts, source: str) -> Matvec:
    """Logits of the experts and, behind them, the gate of the shared one."""
    gate = {"ffn_gate_inp_shexp": 1} if experts.has_shared_gate else {}
    names = {"ffn_gate_inp": experts.n_experts, **gate}
    router = make.matvec(names, source, make.spec.d_model, "router")
    biases = (_bias(make, experts, "ffn_gate_inp"), *(None for _ in gate))
    return replace(router, biases=biases, flat=tuple(map(make.tensor, gate)))


def _route(make: LayerOps, experts: Experts) -> Route:
    bias = f"blk.{make.number}.exp_probs_b.bias" if experts.has_selection_bias else None
    return Route(
        output="routes",
        width=2 * experts.n_used + 1,
        input="router",
        layer=make.number,
        experts=experts,
        bias=bias,
    )


def _shared(make: LayerOps, experts: Experts) -> list[Op]:
    """The expert that every token takes."""
    names = ("ffn_gate_shexp", "ffn_up_shexp") if experts.is_gated else ("ffn_up_shexp",)
    rows = dict.fromkeys(names, experts.d_ff_shared)
    return [
        make.matvec(rows, "normed", make.spec.d_model, "shared_gate_up", pads_rows=True),
        Activate(
            output="shared_hidden",
            width=padded(experts.d_ff_shared),
            input="shared_gate_up",
            layer=make.number,
            function=experts.function,
            is_gated=experts.is_gated,
        ),
        make.matvec({"ffn_down_shexp": make.spec.d_model}, "shared_hidden", experts.d_ff_shared, "shared"),
    ]


def _experts(make: LayerOps, experts: Experts, output: str, add: str | None) -> list[Op]:
    """What the chosen experts make of `normed`, summed up with the shared one."""
    d_model, d_ff, n_used = make.spec.d_model, experts.d_ff, experts.n_used
    if not experts.is_gated:
        names = {"ffn_up_exps": d_ff}
    elif experts.has_fused_gate_up:
        names = {"ffn_gate_up_exps": 2 * d_ff}
    else:
        names = {"ffn_gate_exps": d_ff, "ffn_up_exps": d_ff}
    gate_up = _product(make, experts, names, "normed", d_model, "expert_gate_up")
    down = _product(make, experts, {"ffn_down_exps": d_model}, "expert_hidden", d_ff, "expert_out")
    total = ExpertSum(
        output=output,
        width=d_model,
        input="expert_out",
        layer=make.number,
        n_slots=n_used,
        routes="routes",
        is_weighed=not experts.weighs_input,
        shared="shared" if experts.d_ff_shared else None,
        add=add,
        factor=1.0 if add is None else make.layer.residual_scale,
    )
    return [
        replace(gate_up, is_weighed=experts.weighs_input),
        Activate(
            output="expert_hidden",
            width=n_used * padded(d_ff),
            input="expert_gate_up",
            layer=make.number,
            function=experts.function,
            is_gated=experts.is_gated,
            slots=n_used,
        ),
        replace(down, is_input_shared=False, input_stride=padded(d_ff)),
        *make.summed(total, "ffn_down_exps"),
    ]


def _product(
    make: LayerOps, experts: Experts, names: dict[str, int], source: str, n_columns: int, output: str
) -> ExpertMatvec:
    n_parts = 2 if "ffn_gate_up_exps" in names else 1
    row_padding = 0 if output == "expert_out" else max(padded(n // n_parts) - n // n_parts for n in names.values())
    return ExpertMatvec(
        output=output,
        width=experts.n_used * (sum(names.values()) + row_padding * n_parts * len(names)),
        input=source,
        layer=make.number,
        weights=tuple(map(make.tensor, names)),
        n_experts=experts.n_experts,
        n_slots=experts.n_used,
        n_rows=tuple(names.values()),
        n_columns=padded(n_columns),
        row_padding=row_padding,
        column_padding=padded(n_columns) - n_columns,
        n_parts=n_parts,
        routes="routes",
        is_input_shared=True,
        biases=tuple(_bias(make, experts, name) for name in names),
        scales=tuple(f"blk.{make.number}.{name}.scale" if name in experts.scales else None for name in names),
    )


def _bias(make: LayerOps, experts: Experts, name: str) -> str | None:
    return f"blk.{make.number}.{name}.bias" if name in experts.biases else None
