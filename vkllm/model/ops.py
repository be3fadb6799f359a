"""The operations that a graph has, one dataclass a kind, and the tensors that each reads.

They say what is computed on T rows (tokens), not where or how. An operation's kind is the name of its kernel, its
shader and its test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vkllm.model.spec import Function, HeadNorm, NormForm, QueryTemperature, Rope

Kind = Literal[
    "embed",
    "norm",
    "matvec",
    "head_norm",
    "rope",
    "attention",
    "activate",
    "softcap",
    "route",
    "expert_matvec",
    "expert_sum",
    "convolution",
    "delta_net",
    "mamba2",
    "gated_norm",
    "gated_squares",
    "latent_rope",
    "all_reduce",
    "move_rows",
]

Ahead = Literal["none", "window", "all"]
"""Which of the keys behind it a row sees: none, those less than a window away, or all of its sequence."""

Shapes = dict[str, tuple[int, ...]]
"""Tensors by name in the file, with their shapes (rows, columns) or (columns,)."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation on T rows (tokens). It writes the activation `output` (T, width), float32, and reads `input`.

    layer: which layer it belongs to, -1 outside the layers. Operations with equal names of activations share buffers.
    """

    kind: ClassVar[Kind]
    output: str
    width: int
    input: str = ""
    layer: int = -1

    @property
    def matrices(self) -> tuple[str, ...]:
        """Those of its tensors that may have any weight format; the others are vectors in F32."""
        return ()

    def tensors(self) -> Shapes:
        """The tensors that it reads."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Embed(Op):
    """Rows of the embedding table (n_rows, width), by token id, multiplied by scale.

    column_padding: what its rows lack to whole blocks; it lies behind each in a device's memory.
    """

    kind: ClassVar[Kind] = "embed"
    weights: tuple[str]
    n_rows: int
    scale: float = 1.0
    column_padding: int = 0

    @property
    def is_padded(self) -> bool:
        """Whether rows are no whole blocks."""
        return self.column_padding > 0

    @property
    def matrices(self) -> tuple[str, ...]:
        """The table."""
        return self.weights

    def tensors(self) -> Shapes:
        """The table."""
        return {self.weights[0]: (self.n_rows, self.width)}


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """scale * factor * ([add +] norm(input) * weight [+ bias]). "none" copies the row, so that it can be quantized.

    is_shared: more than one operation reads the result. group: columns that are normed at once, with a weight (group,)
    for all groups; 0 is the whole width. input_width: columns of the input, if not width; what lies behind the last
    whole group is 0. output_column, output_width: where the output begins, behind the columns of another operation, and
    the columns of both, if not width. scale: a tensor with one number, if any.
    """

    kind: ClassVar[Kind] = "norm"
    form: NormForm
    eps: float
    weight: str | None = None
    bias: str | None = None
    add: str | None = None
    is_shared: bool = False
    output_column: int = 0
    output_width: int = 0
    group: int = 0
    input_width: int = 0
    factor: float = 1.0
    scale: str | None = None

    def tensors(self) -> Shapes:
        """Weight and bias, (width,) or (group,), and scale (1,)."""
        shapes: Shapes = {name: (self.group or self.width,) for name in (self.weight, self.bias) if name is not None}
        return shapes if self.scale is None else {**shapes, self.scale: (1,)}


@dataclass(frozen=True, kw_only=True)
class Matvec(Op):
    """[add +] factor * (W input [+ bias]). W: the rows of all `weights`, stacked; n_rows and biases go with them.

    flat: weights of one row, which the file has as (n_columns,).
    row_padding: zero rows behind each of the matrices, column_padding: zero columns behind all rows, where the file's
    are not whole blocks; width and n_columns include them. n_parts: matrices in each tensor, which lie behind each
    other and have padding each. width may be more than all rows: columns behind them are not written.
    """

    kind: ClassVar[Kind] = "matvec"
    weights: tuple[str, ...]
    n_rows: tuple[int, ...]
    n_columns: int
    biases: tuple[str | None, ...]
    add: str | None = None
    factor: float = 1.0
    row_padding: int = 0
    column_padding: int = 0
    n_parts: int = 1
    flat: tuple[str, ...] = ()

    @property
    def is_padded(self) -> bool:
        """Whether the matrices of the file must be extended."""
        return self.row_padding + self.column_padding > 0

    @property
    def has_bias(self) -> bool:
        """Whether any of the stacked matrices has a bias."""
        return any(bias is not None for bias in self.biases)

    @property
    def matrices(self) -> tuple[str, ...]:
        """All weights."""
        return self.weights

    def tensors(self) -> Shapes:
        """Matrices and biases."""
        shapes: Shapes = {}
        for weight, n_rows, bias in zip(self.weights, self.n_rows, self.biases, strict=True):
            n_columns = self.n_columns - self.column_padding
            shapes[weight] = (n_columns,) if weight in self.flat else (n_rows, n_columns)
            if bias is not None:
                shapes[bias] = (n_rows,)
        return shapes


@dataclass(frozen=True, kw_only=True)
class HeadNormalization(Op):
    """Normalizes the queries and the keys of (T, queries | keys | values), in place.

    weights: of queries and keys; None where they follow the rotation (`Rotation.weights`), or where there are none; one
    where there are no keys (n_kv_heads = 0). has_gates: see Rotation. values: "norm" divides values by their root mean
    square, "keys" writes the keys, divided by theirs, in the place of the values.
    """

    kind: ClassVar[Kind] = "head_norm"
    norm: HeadNorm
    eps: float
    n_heads: int
    n_kv_heads: int
    head_dim: int
    weights: tuple[str, ...] | None
    has_gates: bool = False
    values: Literal["as they are", "norm", "keys"] = "as they are"

    def tensors(self) -> Shapes:
        """One weight for queries, one for keys."""
        return {
            name: _head_norm_shape(self.norm, n_heads, self.head_dim)
            for name, n_heads in zip(self.weights or (), (self.n_heads, self.n_kv_heads), strict=False)
        }


def _head_norm_shape(norm: HeadNorm, n_heads: int, head_dim: int) -> tuple[int, ...]:
    """Shape of the weight of a norm of n_heads heads."""
    if norm.over == "row":
        return (n_heads * head_dim,)
    return (n_heads, head_dim) if norm.has_weight_per_head else (head_dim,)


@dataclass(frozen=True, kw_only=True)
class Rotation(Op):
    """Rotates queries, writes them to output, and stores rotated keys and values in the layer's cache.

    rope: None rotates nothing. weights: by which rotated queries and keys are multiplied, (head_dim,) each.
    temperature: of the queries. n_kv_heads = 0: there are only queries, and nothing is stored. has_gates: the input
    has head_dim gates behind each head's query (T, query | gate of each head | keys | values); the output has none.
    """

    kind: ClassVar[Kind] = "rope"
    rope: Rope | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    weights: tuple[str, ...] | None = None
    temperature: QueryTemperature | None = None
    has_gates: bool = False

    def tensors(self) -> Shapes:
        """The weights and the factors of the rotation."""
        shapes: Shapes = {name: (self.head_dim,) for name in self.weights or ()}
        for factors in () if self.rope is None else (self.rope.factors, self.rope.long_factors):
            if factors is not None and self.rope is not None:
                shapes[factors] = (self.rope.dims // 2,)
        return shapes


@dataclass(frozen=True, kw_only=True)
class Attention(Op):
    """Attention of queries to a layer's cache. scale, softcap, window, chunk: see LayerSpec.

    ahead: which of the keys behind it a row sees.
    cache_layer: whose cache it reads. sinks: a tensor (n_heads,): one more score for each head, without a value. gates:
    the activation (T, query | gate of each head | ...) whose gates' sigmoid multiplies the result. value_dim: size of a
    head's values and result. is_latent: the values are the first value_dim numbers of the keys, and there is no
    cache of values.
    """

    kind: ClassVar[Kind] = "attention"
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    window: int = 0
    ahead: Ahead = "none"
    chunk: int = 0
    cache_layer: int = -1
    sinks: str | None = None
    gates: str | None = None
    value_dim: int = 0
    is_latent: bool = False

    def tensors(self) -> Shapes:
        """The sinks."""
        return {} if self.sinks is None else {self.sinks: (self.n_heads,)}


@dataclass(frozen=True, kw_only=True)
class Activate(Op):
    """function(gate) * up of (T, gate | up), or function(input).

    slots: groups of columns that are activated one by one, (T, slots * (gate | up)) -> (T, slots * width / slots).
    up, up_column: another activation, and its column, where the factors of function(input) begin.
    """

    kind: ClassVar[Kind] = "activate"
    function: Function
    is_gated: bool = True
    slots: int = 1
    up: str | None = None
    up_column: int = 0


@dataclass(frozen=True, kw_only=True)
class Softcap(Op):
    """cap * tanh(scale * input / cap), or scale * input where the cap is 0; in place."""

    kind: ClassVar[Kind] = "softcap"
    scale: float
    cap: float


@dataclass(frozen=True, kw_only=True)
class AllReduce(Op):
    """[add +] the sum of the inputs that all devices have, in the order of their ranks: the same bits on each.

    It stands behind a product with a matrix of which each device has some columns (LayerSpec.parts); what is added to
    the product, residual, is in the first rank's input. On one device it is the input. In steps of many rows
    (`shards/many_rows.py`) every rank adds the residual itself, and inputs are rounded as they are handed over
    (is_packed).
    """

    kind: ClassVar[Kind] = "all_reduce"
    residual: str | None = None
    add: str | None = None
    is_packed: bool = False


@dataclass(frozen=True, kw_only=True)
class MoveRows(Op):
    """Moves the rows of an activation to a place in host memory that each step in flight has, or from there."""

    kind: ClassVar[Kind] = "move_rows"
    is_sent: bool
