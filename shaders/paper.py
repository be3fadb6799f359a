"""A device on paper: it notes what a Program asks of it, and runs nothing."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

SHADERS = Path(__file__).parent
sys.path.insert(0, str(SHADERS.parent))

from vkllm.formats.gguf import TensorInfo  # noqa: E402
from vkllm.formats.quants import weight_format  # noqa: E402
from vkllm.gpu.device.kernel import KernelSpec  # noqa: E402
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch, Recording  # noqa: E402
from vkllm.gpu.device.probe import DeviceInfo, Heap  # noqa: E402
from vkllm.gpu.device.requirements import prepared  # noqa: E402
from vkllm.gpu.layer.memory import LayerTier, Placement  # noqa: E402
from vkllm.gpu.program.kernels import KERNELS  # noqa: E402
from vkllm.gpu.program.program import Program  # noqa: E402
from vkllm.model.graph import decoder, expected_shapes, head  # noqa: E402
from vkllm.model.spec import ModelSpec  # noqa: E402

FAST_DOT = frozenset({"integer_dot_product", "fast_integer_dot"})
"""What a device reports whose programs take the modules with integer dot products, not the `_soft` ones."""


@dataclass(frozen=True)
class Use:
    """A module with specialisation constants and, where it comes from a step, its workgroups and push constants."""

    kernel: str
    module: str
    constants: tuple[int, ...]
    groups: tuple[int, int, int] = (1, 1, 1)
    push: tuple[int, ...] = ()

    def constant(self, name: str) -> int:
        """The value of a constant that was given."""
        return self.constants[KERNELS[self.kernel].constants.index(name)]


class PaperDevice(Device):
    """Takes what a Program asks of a device, and notes it; nothing is allocated on a GPU or run."""

    def __init__(self, info: DeviceInfo) -> None:
        # Mesa's null device has no memory
        self.info = prepared(replace(info, heaps=(Heap(1 << 40, None, True),)))
        self.has_integer_dot = info.features >= FAST_DOT
        self.has_memory_model = False  # these devices chain nothing
        self.steps: list[tuple[Use, ...]] = []

    def buffer(self, n_words: int, *, tier: LayerTier = "local", is_host: bool = False) -> Buffer:
        buffer = Buffer(None, n_words, Placement(0, 0, 0, 4 * n_words, 0))
        if is_host or tier != "local":
            buffer.words = np.zeros(n_words, np.uint32)
        return buffer

    def dispatch(
        self,
        kernel: KernelSpec,
        buffers: Sequence[Buffer],
        *,
        constants: Sequence[int],
        groups: tuple[int, int] = (1, 1),
        push: Sequence[int] = (),
        weight_format: str | None = None,
        is_independent: bool = False,
        is_chained: bool = False,
    ) -> Dispatch:
        module = kernel.module(weight_format, is_soft=not self.has_integer_dot, is_plain=self.is_plain)
        x_y_z = kernel.workgroups(*groups, self.info.max_groups)
        use = Use(kernel.name, module, tuple(map(int, constants)), x_y_z, tuple(map(int, push)))
        pushed = np.array(push, np.uint32)
        return Dispatch(kernel, weight_format, tuple(constants), x_y_z, use, pushed, is_independent)

    def record(self, dispatches: Iterable[Dispatch]) -> Recording:
        return Recording(tuple(dispatch.algorithm for dispatch in dispatches))

    def submit(self, recording: Recording) -> int:
        self.steps.append(recording.sequence)
        return 0

    def wait(self, ticket: int) -> None:
        pass


def paper_program(device: PaperDevice, spec: ModelSpec, fmt: str) -> Program:
    """A model whose matrices have one format, but routers F32, loaded on such a device."""
    # the file has zeros enough for a vector; matrices are not read, since what they hold changes no dispatch
    with (
        tempfile.NamedTemporaryFile() as file,
        patch("vkllm.formats.tensor_bytes.read_range"),
        patch("vkllm.gpu.device.limits.available_host_bytes", return_value=1 << 40),
    ):
        tensors = {}
        matrices = {name for op in (*decoder(spec), *head(spec)) for name in op.matrices if "gate_inp" not in name}
        for name, shape in expected_shapes(spec).items():
            n_bytes = weight_format(fmt).unit_bytes if name in matrices else 4 * math.prod(shape)
            tensors[name] = TensorInfo(name, shape, fmt if name in matrices else "F32", 0, n_bytes)
        file.truncate(max(info.n_bytes for info in tensors.values()))
        return Program(device, spec, Path(file.name), tensors, spec.n_ctx_train)
