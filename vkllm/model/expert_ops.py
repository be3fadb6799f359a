"""The operations of mixtures of experts, one dataclass a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vkllm.model.ops import Kind, Op, Shapes
from vkllm.model.spec import Experts


@dataclass(frozen=True, kw_only=True)
class Route(Op):
    """Chooses experts for each row of a router's logits (T, n_experts [+ 1 for the gate of the shared expert]).

    output (T, 2 * n_used + 1): the numbers of the chosen experts (uint32), the best first; their weights (float32);
    and the weight of the shared expert: the sigmoid of its gate, or 1. bias: a tensor (n_experts,), added for the
    choice only.
    """

    kind: ClassVar[Kind] = "route"
    experts: Experts
    bias: str | None = None

    def tensors(self) -> Shapes:
        """The bias."""
        return {} if self.bias is None else {self.bias: (self.experts.n_experts,)}


@dataclass(frozen=True, kw_only=True)
class ExpertMatvec(Op):
    """For each slot k of a row: scale * (W input) + bias, of the matrices of the expert that the row chose for it.

    weights: tensors (n_experts, n_rows, n_columns); the output has the rows of all of them, slot by slot:
    (T, n_slots * sum(n_rows)). routes: the output of a Route; None: slot k takes matrix k, n_slots = n_experts.
    is_input_shared: all slots read the same n_columns, otherwise slot k reads its own, input_stride columns apart.
    is_weighed: W input is multiplied by the slot's weight, before the bias. biases (n_experts, n_rows) and scales
    (n_experts,) go with weights. row_padding, column_padding, n_parts: see Matvec.
    """

    kind: ClassVar[Kind] = "expert_matvec"
    weights: tuple[str, ...]
    n_experts: int
    n_slots: int
    n_rows: tuple[int, ...]
    n_columns: int
    routes: str | None
    is_input_shared: bool
    input_stride: int = 0
    is_weighed: bool = False
    biases: tuple[str | None, ...]
    scales: tuple[str | None, ...]
    row_padding: int = 0
    column_padding: int = 0
    n_parts: int = 1

    @property
    def padded_rows(self) -> tuple[int, ...]:
        """Rows of each of the weights, with what is behind them."""
        return tuple(n + self.n_parts * self.row_padding for n in self.n_rows)

    @property
    def is_padded(self) -> bool:
        """Whether the matrices of the file must be extended."""
        return self.row_padding + self.column_padding > 0

    @property
    def matrices(self) -> tuple[str, ...]:
        """All weights."""
        return self.weights

    def tensors(self) -> Shapes:
        """Matrices, biases and scales."""
        shapes: Shapes = {}
        for weight, n_rows, bias, scale in zip(self.weights, self.n_rows, self.biases, self.scales, strict=True):
            shapes[weight] = (self.n_experts, n_rows, self.n_columns - self.column_padding)
            if bias is not None:
                shapes[bias] = (self.n_experts, n_rows)
            if scale is not None:
                shapes[scale] = (self.n_experts,)
        return shapes


@dataclass(frozen=True, kw_only=True)
class ExpertSum(Op):
    """[add +] factor * (the sum of a row's n_slots results (T, n_slots * width), each times its weight).

    routes: the weights; is_weighed = False: all are 1. shared: the result of the shared expert (T, width), added with
    the weight that `routes` has for it.
    """

    kind: ClassVar[Kind] = "expert_sum"
    n_slots: int
    routes: str
    is_weighed: bool = True
    shared: str | None = None
    add: str | None = None
    factor: float = 1.0
