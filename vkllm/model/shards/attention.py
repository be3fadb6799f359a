"""Grouped-query attention, divided by heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vkllm.formats.quants import BLOCK
from vkllm.model.shards.cuts import Cut, RankLayer, without_biases
from vkllm.model.shards.partition import divided_pieces, times
from vkllm.model.spec import LayerSpec

LEAST_COLUMNS = BLOCK // 2 + 1
"""Of queries: the padding of fewer could be taken for more of them."""


MOST_KEYS = 2
"""Groups that are cut in pieces take a key head for each piece: at most so many times the heads of the whole layer. A
rank would read more of its cache than it saves of weights."""


@dataclass(frozen=True)
class Heads:
    """Query heads of a rank, and the key/value head of each of its groups of them; ranks may have the same ones."""

    queries: range
    keys: tuple[range, ...]


def divided_heads(layer: LayerSpec, border: int, proportions: Sequence[float], turn: int = 0) -> list[Heads] | None:
    """The heads of each rank: whole groups, or fewer heads where there are more ranks than key/value heads.

    border: their columns begin and end at multiples of it. turn: see `shares`.
    None where a norm needs all heads, or there are too few.
    """
    if layer.head_norm is not None and layer.head_norm.over == "row":
        return None
    group = layer.n_heads // layer.n_kv_heads
    for least in (group, 1):
        for multiple in (math.lcm(border, BLOCK), border):
            parts = divided_pieces(layer.n_heads // least, least * layer.head_dim, multiple, proportions, turn)
            if parts is None:
                continue
            queries = [range(part.start * least, part.stop * least) for part in parts]
            if min(map(len, queries)) * layer.head_dim < LEAST_COLUMNS:
                continue
            found = [Heads(heads, _keys(heads, group)) for heads in queries]
            if max(len(heads.keys) for heads in found) <= MOST_KEYS * layer.n_kv_heads:
                return found
    return None


def _keys(queries: range, group: int) -> tuple[range, ...]:
    """The key/value head of each group of a rank's query heads: the largest groups that share one and are equal."""
    bounds = [queries.start, *(n for n in queries if n % group == 0 and n != queries.start), queries.stop]
    n_sharing = math.gcd(*(end - start for start, end in pairwise(bounds)))
    return tuple(range(n // group, n // group + 1) for n in queries[::n_sharing])


def attention_of(layer: LayerSpec, heads: Heads, rank: int) -> RankLayer:
    """The layer with those heads only."""
    size = layer.head_dim
    queries = times([heads.queries], 2 * size if layer.has_query_gates else size)
    keys = times(heads.keys, size)
    first_key, first_value = layer.n_heads * size, (layer.n_heads + layer.n_kv_heads) * size
    cuts = {
        "attn_qkv": Cut(rows=(*queries, *times(heads.keys, size, first_key), *times(heads.keys, size, first_value))),
        "attn_q": Cut(rows=queries),
        "attn_k": Cut(rows=keys),
        "attn_v": Cut(rows=keys),
        "attn_output": Cut(columns=times([heads.queries], size)),
        "attn_sinks": Cut(columns=(heads.queries,)),
    }
    if layer.head_norm is not None and layer.head_norm.has_weight_per_head:
        cuts |= {"attn_q_norm": Cut(rows=(heads.queries,)), "attn_k_norm": Cut(rows=heads.keys)}
    own = replace(
        layer,
        n_heads=len(heads.queries),
        n_kv_heads=len(heads.keys),
        biases=without_biases(layer.biases, rank, "attn_output"),
        parts=(*layer.parts, "attn_output"),
    )
    return RankLayer(own, cuts)
