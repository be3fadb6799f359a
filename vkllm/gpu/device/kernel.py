"""What a kernel is: the buffers and constants of one shader, and its compiled variants.

The kernels themselves are in `gpu/program/kernels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from vkllm.errors import DeviceError
from vkllm.formats.quants import FORMATS

QUANTIZED_FORMATS = tuple(fmt.name for fmt in FORMATS.values() if fmt.is_quantized)
"""Formats whose blocks have scales, so that kernels use integer arithmetic."""


@dataclass(frozen=True)
class KernelSpec:
    """One shader. All constants and push constants are uint32; floats travel as their bits.

    bindings: buffers by binding number. constants: specialisation constants by id; the first is the local size.
    push: push constants in order. formats: weight formats it is compiled for (none: one variant).
    uses_dot4: whether the quantized formats use integer dot products and so have a `_soft` variant too.
    subgroup: kinds of subgroup operations that it uses; a kernel that uses any needs full subgroups of a known size.
    has_plain: whether it has `_plain` variants too, which use no subgroups.
    surplus: what happens to workgroups along x beyond the device's limit. "z": they run along z; "loops": the others do
    their work too; "none": DeviceError.
    chains: whether it can wait in the shader for the dispatch before it, and so has a `_memory_model` variant too, but
    for `_soft` modules: GPUs that chain have integer dot products.
    """

    name: str
    bindings: tuple[str, ...]
    constants: tuple[str, ...]
    push: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    uses_dot4: bool = False
    subgroup: tuple[str, ...] = ()
    has_plain: bool = False
    surplus: Literal["z", "loops", "none"] = "none"
    chains: bool = False

    @property
    def uses_matrices(self) -> bool:
        """Whether only devices with cooperative matrices can run it."""
        return "matrix_m" in self.constants

    def module(
        self,
        weight_format: str | None = None,
        *,
        is_soft: bool = False,
        is_plain: bool = False,
        has_memory_model: bool = False,
    ) -> str:
        """Name of the compiled module of a variant, without its extension."""
        assert (weight_format in self.formats) if self.formats else weight_format is None
        soft = "_soft" if is_soft and self.uses_dot4 and weight_format in QUANTIZED_FORMATS else ""
        plain = "_plain" if is_plain and self.has_plain else ""
        model = "_memory_model" if has_memory_model and self.chains and not soft and not plain else ""
        return self.name + (f"_{weight_format.lower()}" if weight_format else "") + soft + plain + model

    def workgroups(self, x: int, y: int, most: tuple[int, int, int]) -> tuple[int, int, int]:
        """Arranges x by y workgroups as the x, y and z that a device allows. most: its limits along x, y and z.

        Raises DeviceError.
        """
        z = 1
        if x > most[0] and self.surplus == "z":
            z = -(-x // most[0])
            x = -(-x // z)
        elif self.surplus == "loops":
            x = min(x, most[0])
        if x > most[0] or y > most[1] or z > most[2]:
            raise DeviceError(
                f"{self.name} needs {x} x {y} x {z} workgroups, and the device allows {' x '.join(map(str, most))}; "
                "use a smaller model or another device"
            )
        return x, y, z

    def modules(self) -> dict[str, tuple[str, ...]]:
        """Every compiled module of this kernel and the preprocessor symbols that it is compiled with."""
        variants: dict[str, tuple[str, ...]] = {}
        both = (False, True)
        for fmt, is_plain, is_soft, has_model in product(self.formats or (None,), both, both, both):
            symbols = ((fmt,) if fmt else ()) + ("SOFT_DOT",) * is_soft + ("PLAIN",) * is_plain
            module = self.module(fmt, is_soft=is_soft, is_plain=is_plain, has_memory_model=has_model)
            variants.setdefault(module, symbols + ("MEMORY_MODEL",) * has_model)
        return variants


def float_bits(value: float | np.float32) -> int:
    """A float32 as a constant of a kernel."""
    return int(np.float32(value).view(np.uint32))
