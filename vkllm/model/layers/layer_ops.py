"""What the operations of all kinds of layers are made with."""

from __future__ import annotations

from dataclasses import replace

from vkllm.formats.quants import BLOCK
from vkllm.model.expert_ops import ExpertSum
from vkllm.model.ops import AllReduce, Matvec, Norm, Op
from vkllm.model.spec import LayerSpec, ModelSpec


def padded(n_columns: int) -> int:
    """Columns in whole blocks of activations."""
    return -(-n_columns // BLOCK) * BLOCK


def copied(source: str, output: str, width: int, layer: int = -1) -> Norm:
    """The same values in whole blocks, in a buffer that has them quantized too."""
    is_odd = width % BLOCK > 0
    return Norm(
        output=output,
        width=padded(width),
        input=source,
        input_width=width if is_odd else 0,
        group=width if is_odd else 0,
        layer=layer,
        form="none",
        eps=0.0,
    )


class LayerOps:
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

    def norm(self, name: str, source: str, output: str, width: int = 0) -> Norm:
        """A norm that products read, in whole blocks: of d_model columns or, if the input has whole blocks too, of
        another width."""
        n_columns = width or self.spec.d_model
        is_odd = n_columns % BLOCK > 0
        return replace(
            self.norm_behind(name, source, output),
            width=padded(n_columns),
            group=n_columns if is_odd else 0,
            input_width=n_columns if is_odd and not width else 0,
        )

    def norm_behind(self, name: str, source: str, output: str, add: str | None = None) -> Norm:
        """A norm of d_model columns, whose result is added to others."""
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
        return copied(source, output, width, self.number)

    def matvec(
        self,
        names: dict[str, int],
        source: str,
        n_columns: int,
        output: str,
        add: str | None = None,
        *,
        pads_rows: bool = False,
        n_parts: int = 1,
    ) -> Matvec:
        """A product with stacked matrices. names: with their numbers of rows. Columns that are no whole blocks of
        activations are padded; with pads_rows, the rows of each matrix too, because another product reads them.
        n_parts: matrices in each tensor."""
        row_padding = max(padded(n // n_parts) - n // n_parts for n in names.values()) if pads_rows else 0
        return Matvec(
            output=output,
            width=sum(names.values()) + row_padding * n_parts * len(names),
            input=source,
            layer=self.number,
            weights=tuple(map(self.tensor, names)),
            n_rows=tuple(names.values()),
            n_columns=padded(n_columns),
            row_padding=row_padding,
            column_padding=padded(n_columns) - n_columns,
            n_parts=n_parts,
            biases=tuple(map(self.bias, names)),
            add=add,
            factor=1.0 if add is None else self.layer.residual_scale,
        )

    def ending(self, name: str, source: str, n_columns: int, norm: str | None, *, copies: bool = False) -> list[Op]:
        """The last product of attention or feed-forward layer, added to the residual stream, through a norm if any.
        copies: what writes the source does not write it in whole blocks, or not quantized."""
        names = {name: self.spec.d_model}
        before: list[Op] = []
        if copies:
            before, source = [self.copy(source, "rounded", n_columns)], "rounded"
        if norm is None:
            return before + self.summed(self.matvec(names, source, n_columns, "x", add="x"), name)
        product = self.matvec(names, source, n_columns, "added")
        return [*before, *self.summed(product, name), self.norm_behind(norm, "added", "x", add="x")]

    def summed(self, op: Matvec | ExpertSum, name: str) -> list[Op]:
        """The operation that multiplies by the matrix `name`, with the sum over devices where each has a part of it."""
        if name not in self.layer.parts:
            return [op]
        part = f"{op.output}_part"
        add = op.add if self.layer.adds_residual else None
        total = AllReduce(output=op.output, width=op.width, input=part, layer=self.number, residual=op.add)
        return [replace(op, output=part, add=add), total]
