"""A model divided among ranks: what each has is an ordinary, smaller model, apart from sums over all (`AllReduce`).

Query heads go with their key/value heads, feed-forward layers and experts by their hidden columns, the vocabulary by
rows. What cannot be divided, every rank has and computes. Knows no devices and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import weight_format
from vkllm.model.graph import expected_shapes
from vkllm.model.shards.attention import Heads, attention_of, divided_heads
from vkllm.model.shards.cuts import WHOLE, CachedParts, Cut, RankLayer
from vkllm.model.shards.feed_forward import experts_of, feed_forward_of
from vkllm.model.shards.mixers import divided_mixer, last_matrix, mixer_of
from vkllm.model.shards.partition import SIZES, Hidden, divided, divided_hidden
from vkllm.model.spec import LayerSpec, ModelSpec

VOCABULARY_ROWS = (2048, 256, 32)
"""Pieces that the vocabulary is divided in: the lists that tokens are chosen from, or less in small models."""

PLAIN_COLUMNS = SIZES[-1]
"""Columns of matrices of plain numbers may be cut at multiples of it, those of others at their blocks."""

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class RankModel:
    """What one rank has: a specification, a tensor table with parts of the file's tensors, and the tokens whose logits
    it makes, which all ranks do where the vocabulary is too small to divide. cached: what it keeps of a
    sequence."""

    spec: ModelSpec
    tensors: dict[str, TensorInfo]
    vocabulary: range
    cached: CachedParts = WHOLE


def rank_models(spec: ModelSpec, tensors: Tensors, proportions: Sequence[float]) -> list[RankModel]:
    """The model of each rank; of one, the model itself. proportions: of the work, a number above 0 for each rank."""
    if len(proportions) == 1:
        return [RankModel(spec, dict(tensors), range(spec.n_vocab))]
    division = _Division(spec, tensors, tuple(proportions))
    return [division.model(rank) for rank in range(len(proportions))]


class _Division:
    """Where everything is cut."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, proportions: tuple[float, ...]) -> None:
        self._spec = spec
        self._tensors = tensors
        self._proportions = proportions
        self._heads = self._divided_heads()
        self._mixers = self._divided_mixers()
        self._vocabulary = divided(spec.n_vocab, 1, proportions, VOCABULARY_ROWS)

    def model(self, rank: int) -> RankModel:
        """The model of a rank."""
        layers = [self._layer(number, layer, rank) for number, layer in enumerate(self._spec.layers)]
        spec = replace(self._spec, layers=tuple(each.layer for each in layers), predictors=())
        cuts: dict[str, Cut] = {}
        sources: dict[str, str] = {}
        vocabulary = range(spec.n_vocab)
        if self._vocabulary is not None:
            vocabulary = self._vocabulary[rank]
            if spec.output_weight == "token_embd.weight":  # the table is whole beside its part
                sources["output.weight"] = spec.output_weight
            spec = replace(spec, n_vocab=len(vocabulary), n_embeddings=spec.n_vocab, output_weight="output.weight")
            cuts = {"output.weight": Cut(rows=(vocabulary,)), "output.bias": Cut(columns=(vocabulary,))}
        tensors: dict[str, TensorInfo] = {}
        for name in expected_shapes(spec):
            info = self._tensors[sources.get(name, name)]
            if name.startswith("blk."):
                _, number, tensor = name.split(".", 2)
                cut = layers[int(number)].cut(tensor)
            else:
                cut = cuts.get(name)
            tensors[name] = info if cut is None else cut.of(info)
        keys = {i: tuple(head for own in heads[rank].keys for head in own) for i, heads in self._heads.items()}
        states = {i: each.state for i, each in enumerate(layers) if each.state is not None}
        return RankModel(spec, tensors, vocabulary, CachedParts(keys, states))

    def _layer(self, number: int, layer: LayerSpec, rank: int) -> RankLayer:
        found = RankLayer(replace(layer, adds_residual=rank == 0), {})
        if (heads := self._heads.get(number)) is not None:
            found = found.then(attention_of(found.layer, heads[rank], rank))
        if (parts := self._mixers.get(number)) is not None:
            found = found.then(mixer_of(found.layer, parts[rank]))
        if layer.d_ff and (hidden := self._hidden(number, "ffn_down", layer.d_ff)):
            found = found.then(feed_forward_of(found.layer, hidden[rank], rank))
        if layer.experts is not None and (hidden := self._hidden(number, "ffn_down_exps", layer.experts.d_ff)):
            shared = self._hidden(number, "ffn_down_shexp", layer.experts.d_ff_shared)
            found = found.then(experts_of(found.layer, hidden[rank], None if shared is None else shared[rank], rank))
        return found

    def _hidden(self, number: int, name: str, n: int) -> list[Hidden] | None:
        """The columns of a matrix of n columns, by rank."""
        return divided_hidden(n, self._border(number, name), self._proportions, number) if n else None

    def _divided_mixers(self) -> dict[int, list[range]]:
        """The heads, groups or columns by layer and rank, of what stands in place of attention and can be divided."""
        layers = [(i, layer, layer.mixer) for i, layer in enumerate(self._spec.layers) if layer.mixer is not None]
        found = {
            i: divided_mixer(mixer, layer.n_heads, self._border(i, last_matrix(mixer)), self._proportions, turn)
            for turn, (i, layer, mixer) in enumerate(layers)
        }
        return {i: parts for i, parts in found.items() if parts is not None}

    def _border(self, number: int, name: str) -> int:
        """The columns of a matrix can be cut at multiples of it."""
        fmt = weight_format(self._tensors[f"blk.{number}.{name}.weight"].format)
        return fmt.block if fmt.is_quantized else PLAIN_COLUMNS

    def _divided_heads(self) -> dict[int, list[Heads]]:
        """The heads of each rank, by layer, of those that can be divided."""
        layers = {i: layer for i, layer in enumerate(self._spec.layers) if layer.n_heads and layer.mixer is None}
        # layers with equal heads are divided alike, because some read the caches of others
        border = max((self._border(i, "attn_output") for i in layers), default=1)
        have_own_caches = all(layer.cache_layer is None for layer in layers.values())
        found = {
            i: divided_heads(layer, border, self._proportions, turn if have_own_caches else 0)
            for turn, (i, layer) in enumerate(layers.items())
        }
        kept = {i: heads for i, heads in found.items() if heads is not None}
        for owner in {layer.cache_layer for layer in layers.values() if layer.cache_layer is not None}:
            readers = [i for i, layer in layers.items() if owner in (i, layer.cache_layer)]
            keys = {None if (heads := found[i]) is None else tuple(each.keys for each in heads) for i in readers}
            if len(keys) > 1:
                kept = {i: heads for i, heads in kept.items() if i not in readers}
        return kept
