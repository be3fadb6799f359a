"""A bare Kompute device under the layer, and how to run a scenario in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vkllm.gpu.layer import Layer

VALIDATION = "VK_LAYER_KHRONOS_validation"
Words = npt.NDArray[np.uint32]
SHADERS = Path(__file__).parents[1] / "shaders"


class Gpu:
    """A Kompute manager, asynchronous, and its number in the layer. Layer.activate has to come first."""

    def __init__(self, layer: Layer) -> None:
        import kp

        self.kp = kp
        self.layer = layer
        self.manager = kp.Manager(0)
        self.device = layer.open_device()
        layer.asynchronous(self.device, True)

    def tensor(self, words: Words, kind: str = "host") -> Any:
        return self.manager.tensor_t(words, getattr(self.kp.TensorTypes, kind))

    def algorithm(
        self, shader: str, tensors: Sequence[Any], n_groups: int, constants: Sequence[int] = (), n_push: int = 0
    ) -> Any:
        code = (SHADERS / f"{shader}.spv").read_bytes()
        specialisation = np.array(constants, np.uint32)
        return self.manager.algorithm(
            list(tensors), code, (n_groups, 1, 1), specialisation, np.zeros(n_push, np.uint32)
        )

    def dispatch(self, algorithm: Any, *push: int) -> Any:
        return self.kp.OpAlgoDispatch(algorithm, np.array(push, np.uint32))

    def run(self, sequence: Any, timeout_s: float = 60.0) -> None:
        sequence.eval()
        self.layer.wait(self.device, self.layer.ticket(self.device), timeout_s)

    def chain(self, words: Words, n_steps: int, kind: str = "host") -> tuple[Any, list[Any], list[Any]]:
        """A sequence of n_steps dependent dispatches (see chain.comp) on tensors that start with words; the result is
        in tensors[n_steps % 2]. Returns the sequence, the tensors and the algorithms."""
        tensors = [self.tensor(words, kind), self.tensor(np.zeros_like(words), kind)]
        algorithms = [self.algorithm("chain", tensors[::order], len(words) // 64, n_push=1) for order in (1, -1)]
        sequence = self.manager.sequence()
        for step in range(n_steps):
            sequence.record(self.dispatch(algorithms[step % 2], step))
        return sequence, tensors, algorithms

    def close(self) -> None:
        self.manager.destroy()


def chain_step(words: Words, step: int) -> Words:
    """What chain.comp computes."""
    return (np.uint32(3) * np.roll(words, -33) + np.uint32(step)).astype(np.uint32)


def chain_result(words: Words, n_steps: int) -> Words:
    for step in range(n_steps):
        words = chain_step(words, step)
    return words


def long_job(gpu: Gpu, at_least_s: float) -> tuple[Any, Any]:
    """A sequence that keeps the device busy for at least a time, and the tensor whose first word counts dispatches."""
    counter = gpu.tensor(np.zeros(64 * 64 + 1, np.uint32))
    algorithm = gpu.algorithm("spin", [counter], 64, n_push=1)
    gpu.run(gpu.manager.sequence().record(gpu.dispatch(algorithm, 1)))  # the driver may compile it now, which is no job
    n_dispatches = 1
    while True:
        sequence = gpu.manager.sequence()
        for _ in range(n_dispatches):
            sequence.record(gpu.dispatch(algorithm, 30_000))
        started = time.perf_counter()
        gpu.run(sequence)
        if time.perf_counter() - started >= at_least_s:
            return sequence, counter
        n_dispatches *= 2


def run_scenario(name: str, folder: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """Runs a scenario of layer_scenarios.py; returns what it saw and what else was printed."""
    done = start_scenario(name, folder, **environment)
    assert done.returncode == 0, done.stdout
    *messages, seen = done.stdout.strip().splitlines()
    return json.loads(seen), "\n".join(messages).strip()


def start_scenario(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VK_", "VKLLM_LAYER"))}
    inherited |= {key: os.environ[key] for key in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES") if key in os.environ}
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent / "layer_scenarios.py"), name],
        env=inherited | {"PYTHONPATH": str(root), "VKLLM_TEST_FOLDER": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def under_validation(name: str, folder: Path, **environment: str) -> tuple[dict[str, Any], str]:
    synchronization = "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT"
    return run_scenario(name, folder, VK_INSTANCE_LAYERS=VALIDATION, VK_LAYER_ENABLES=synchronization, **environment)
