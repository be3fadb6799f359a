"""What stands in place of attention, divided: delta nets and latent attention by heads, Mamba 2 by groups of heads or,
where all are one group, by heads, short convolutions by columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vkllm.formats.quants import BLOCK
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, Mixer, ShortConvolution
from vkllm.model.shards.cuts import Cut, Cuts, RankLayer, StatePart
from vkllm.model.shards.partition import divided, divided_pieces, length, times
from vkllm.model.spec import LayerSpec


def last_matrix(mixer: Mixer) -> str:
    """The matrix that is cut by columns."""
    match mixer:
        case LatentAttention():
            return "attn_output"
        case ShortConvolution():
            return "shortconv.out_proj"
    return "ssm_out"


def divided_mixer(
    mixer: Mixer, n_heads: int, border: int, proportions: Sequence[float], turn: int = 0
) -> list[range] | None:
    """What each rank has: key heads of a delta net, groups of Mamba 2 or heads of its only one, heads of latent
    attention, columns of a short convolution; None where there are too few.

    border: the columns of its last matrix are cut at multiples of it; a rank has whole BLOCKs of them. n_heads: of
    latent attention. turn: see `shares`.
    """
    if isinstance(mixer, ShortConvolution):
        parts = divided(mixer.width, math.lcm(border, BLOCK), proportions, turn=turn)
        return parts if parts and all(len(part) % BLOCK == 0 for part in parts) else None
    match mixer:
        case DeltaNet():
            n, size = mixer.n_k_heads, mixer.v_width // mixer.n_k_heads
            lie_apart = not mixer.are_heads_grouped and size > mixer.head_dim  # a rank's value heads
            if lie_apart and mixer.k_width % border:
                return None
            piece = mixer.head_dim if lie_apart else size
        case Mamba2():
            n = mixer.n_groups if mixer.n_groups > 1 else mixer.n_heads
            size = piece = mixer.d_inner // n
        case LatentAttention():
            n, size, piece = n_heads, mixer.value_dim, mixer.value_dim
    for multiple in (math.lcm(border, BLOCK), border):
        parts = divided_pieces(n, piece, multiple, proportions, turn)
        if parts is not None and all(len(part) * size % BLOCK == 0 for part in parts):
            return parts
    return None


def mixer_of(layer: LayerSpec, part: range) -> RankLayer:
    """The layer with that part of its mixer only."""
    own: Mixer
    state: StatePart | None = None
    mixer, n_heads = layer.mixer, layer.n_heads
    match mixer:
        case DeltaNet():
            own, cuts, state = _delta_net(mixer, part)
        case Mamba2():
            own, cuts, state = _mamba2(mixer, part)
        case LatentAttention():
            own, cuts, n_heads = mixer, _latent_attention(mixer, part), len(part)
        case ShortConvolution():
            own, cuts, state = _short_convolution(mixer, part)
        case None:
            raise AssertionError("attention is divided by divided_heads")
    return RankLayer(replace(layer, mixer=own, n_heads=n_heads, parts=(*layer.parts, last_matrix(own))), cuts, state)


def _delta_net(net: DeltaNet, keys: range) -> tuple[DeltaNet, Cuts, StatePart]:
    """keys: key heads; each goes with its value heads."""
    n_sharing, size = net.n_v_heads // net.n_k_heads, net.head_dim
    if net.are_heads_grouped:
        values = times([keys], n_sharing)
    else:
        values = tuple(range(first + keys.start, first + keys.stop) for first in range(0, net.n_v_heads, net.n_k_heads))
    first_value = 2 * net.k_width
    convolved = (*times([keys], size), *times([keys], size, net.k_width), *times(values, size, first_value))
    cuts = {
        "attn_qkv": Cut(rows=convolved),
        "attn_gate": Cut(rows=times(values, size)),
        "ssm_conv1d": Cut(rows=convolved),
        "ssm_ba": Cut(rows=times([keys], 2 * n_sharing)),
        "ssm_beta": Cut(rows=values),
        "ssm_alpha": Cut(rows=values),
        "ssm_dt": Cut(rows=values),
        "ssm_a": Cut(columns=values),
        "ssm_out": Cut(columns=times(values, size)),
    }
    state = StatePart(convolved, times(values, size**2))
    return replace(net, n_k_heads=len(keys), n_v_heads=length(values)), cuts, state


def _mamba2(mamba: Mamba2, part: range) -> tuple[Mamba2, Cuts, StatePart]:
    """part: groups, each of which goes with its heads, and its B and C; or heads of the only group, whose B and C every
    rank has."""
    d_inner, n_groups = mamba.d_inner, mamba.n_groups
    groups, heads = (part, times([part], mamba.n_heads // n_groups)) if n_groups > 1 else (range(1), (part,))
    columns = times(heads, mamba.head_dim)

    def convolved(first: int) -> tuple[range, ...]:
        first_b = first + d_inner
        first_c = first_b + n_groups * mamba.d_state
        of_groups = (times([groups], mamba.d_state, place) for place in (first_b, first_c))
        return (*times(heads, mamba.head_dim, first), *(part for parts in of_groups for part in parts))

    cuts = {
        "ssm_in": Cut(rows=(*columns, *convolved(d_inner), *times(heads, 1, d_inner + mamba.convolved))),
        "ssm_conv1d": Cut(rows=convolved(0)),
        "ssm_dt": Cut(rows=heads),
        "ssm_a": Cut(rows=heads),
        "ssm_d": Cut(rows=heads),
        "ssm_norm": Cut(rows=(groups,)) if n_groups > 1 else Cut(columns=columns),
        "ssm_out": Cut(columns=columns),
    }
    state = StatePart(convolved(0), times(columns, mamba.d_state))
    own = replace(mamba, n_heads=length(heads), n_groups=len(groups))
    return own if n_groups > 1 else replace(own, normed_columns=d_inner), cuts, state


def _latent_attention(latent: LatentAttention, heads: range) -> Cuts:
    """The latent vectors, and so the cache, are whole."""
    queries = Cut(rows=times([heads], latent.nope_dim + latent.rope_dim))
    return {
        "attn_q": queries,
        "attn_q_b": queries,
        "attn_k_b": Cut(matrices=(heads,)),
        "attn_v_b": Cut(matrices=(heads,)),
        "attn_output": Cut(columns=times([heads], latent.value_dim)),
    }


def _short_convolution(convolution: ShortConvolution, columns: range) -> tuple[ShortConvolution, Cuts, StatePart]:
    rows = tuple(part for i in range(3) for part in times([columns], 1, i * convolution.width))
    cuts = {
        "shortconv.in_proj": Cut(rows=rows),
        "shortconv.conv": Cut(rows=(columns,)),
        "shortconv.out_proj": Cut(columns=(columns,)),
    }
    return replace(convolution, width=len(columns)), cuts, StatePart((columns,))
