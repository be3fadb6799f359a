"""Which part of each tensor of a layer one rank has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from vkllm.formats.gguf import TensorInfo
from vkllm.formats.gguf_header import Excerpt
from vkllm.formats.quants import weight_format
from vkllm.model.memory.states import slot_words
from vkllm.model.shards.partition import Ranges, length, moved
from vkllm.model.spec import LayerSpec


@dataclass(frozen=True)
class Cut:
    """A part of a tensor (rows, columns), or of each of its matrices (matrices, rows, columns); None is all of them.

    A bias or another vector is one row.
    """

    rows: Ranges | None = None
    columns: Ranges | None = None
    matrices: Ranges | None = None

    def of(self, info: TensorInfo) -> TensorInfo:
        """The entry of that part."""
        n_matrices, n_rows, n_columns = math.prod(info.shape[:-2]), (1, *info.shape)[-2], info.shape[-1]
        columns = self.columns or (range(n_columns),)
        numbers = (number for part in self.matrices or (range(n_matrices),) for number in part)
        own_rows = self.rows or (range(n_rows),)
        rows = _joined(own if own.start < 0 else moved(own, n * n_rows) for n in numbers for own in own_rows)
        sizes = [*([length(self.matrices)] if self.matrices else info.shape[:-2]), length(own_rows), length(columns)]
        shape, fmt = tuple(sizes[-len(info.shape) :]), weight_format(info.format)
        n_bytes = math.prod(shape) * fmt.block_bytes // fmt.block
        return replace(info, shape=shape, n_bytes=n_bytes, excerpt=Excerpt(n_columns, rows, _joined(columns)))


def _joined(ranges: Iterable[range]) -> Ranges:
    """The same, neighbours that follow each other as one."""
    found: list[range] = []
    for part in ranges:
        if found and found[-1].stop == part.start:
            found[-1] = range(found[-1].start, part.stop)
        else:
            found.append(part)
    return tuple(found)


Cuts = Mapping[str, Cut]
"""By names of weights without layer and ".weight", such as "attn_q"; their biases are cut like their rows."""


@dataclass(frozen=True)
class StatePart:
    """Which part of a layer's state one rank has: columns of each token before its convolution, and numbers of it."""

    columns: Ranges
    numbers: Ranges = ()

    def pieces(self, whole: LayerSpec, own: LayerSpec) -> list[tuple[range, range]]:
        """Places in a slot of the rank, and places of the same numbers in one of the whole layer."""
        n_tokens = own.state_sizes[0] // length(self.columns)
        n_columns = whole.state_sizes[0] // n_tokens
        columns = [moved(part, token * n_columns) for token in range(n_tokens) for part in self.columns]
        numbers = [moved(part, slot_words(whole)[0]) for part in self.numbers]
        return [*_placed(columns, 0), *_placed(numbers, slot_words(own)[0])]


def _placed(parts: Iterable[range], first: int) -> Iterator[tuple[range, range]]:
    """Each part's place, one behind the other from `first` on, and the part."""
    for part in parts:
        yield range(first, first + len(part)), part
        first += len(part)


@dataclass(frozen=True)
class CachedParts:
    """What one rank keeps of a sequence, of layers that are divided. keys: its key/value heads, by layer. states: its
    parts of the states."""

    keys: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    states: Mapping[int, StatePart] = field(default_factory=dict)


WHOLE = CachedParts()
"""Of a rank whose layers are whole."""


@dataclass(frozen=True)
class RankLayer:
    """A layer as one rank has it, and which part of its tensors and its state that is; what is not named is whole."""

    layer: LayerSpec
    cuts: Cuts
    state: StatePart | None = None

    def then(self, further: RankLayer) -> RankLayer:
        """This layer with further cuts; further.layer has those of this one."""
        return RankLayer(further.layer, {**self.cuts, **further.cuts}, further.state or self.state)

    def cut(self, tensor: str) -> Cut | None:
        """The part of a tensor; None where it is whole. tensor: its name without the layer."""
        name, _, kind = tensor.rpartition(".") if tensor.endswith((".weight", ".bias")) else (tensor, "", "weight")
        cut = self.cuts.get(name)
        if cut is None or kind == "weight":
            return cut
        return Cut(columns=cut.rows) if cut.rows else None


def without_biases(names: tuple[str, ...], rank: int, name: str) -> tuple[str, ...]:
    """Names of matrices with a bias, without one whose products are added up over ranks: the first adds its bias."""
    return names if rank == 0 else tuple(each for each in names if each != name)
