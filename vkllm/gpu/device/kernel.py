"""What a kernel is: the buffers and constants of one shader, and its compiled variants.

The kernels themselves are in `gpu/program/kernels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

QUANTIZED_FORMATS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True)
class KernelSpec:
    """One shader. All constants and push constants are uint32; floats travel as their bits.

    bindings: buffers by binding number. constants: specialisation constants by id; the first is the local size.
    push: push constants in order. formats: weight formats it is compiled for (none: one variant).
    uses_dot4: whether the quantized formats use integer dot products and so have a `_soft` variant too.
    """

    name: str
    bindings: tuple[str, ...]
    constants: tuple[str, ...]
    push: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    uses_dot4: bool = False

    @property
    def uses_matrices(self) -> bool:
        """Whether only devices with cooperative matrices can run it."""
        return "matrix_m" in self.constants

    def module(self, weight_format: str | None = None, *, is_soft: bool = False) -> str:
        """Name of the compiled module of a variant, without its extension."""
        assert (weight_format in self.formats) if self.formats else weight_format is None
        soft = "_soft" if is_soft and self.uses_dot4 and weight_format in QUANTIZED_FORMATS else ""
        return self.name + (f"_{weight_format.lower()}" if weight_format else "") + soft

    def modules(self) -> dict[str, tuple[str, ...]]:
        """Every compiled module of this kernel and the preprocessor symbols that it is compiled with."""
        variants: dict[str, tuple[str, ...]] = {}
        for fmt in self.formats or (None,):
            symbols = (fmt,) if fmt else ()
            variants[self.module(fmt)] = symbols
            variants.setdefault(self.module(fmt, is_soft=True), (*symbols, "SOFT_DOT"))
        return variants
