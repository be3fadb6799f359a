"""What a plan says of the memory for what passes between devices is what is allocated for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_specs import TINY_SPEC
from random_model import engine_config, write_random_model
from split_models import N_CTX, program

from vkllm.engine.requests import EngineConfig
from vkllm.errors import OutOfDeviceMemory
from vkllm.formats import tensor_bytes
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.program import Program
from vkllm.model.memory.limits import DeviceLimits
from vkllm.model.memory.needs import Needs
from vkllm.model.memory.plan import PlanOptions
from vkllm.model.memory.ranks import divide
from vkllm.model.memory.sequences import Room
from vkllm.model.memory.split_plan import Member

pytestmark = pytest.mark.gpu


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return engine_config(write_random_model(tmp_path / "model.gguf", TINY_SPEC, {}), TINY_SPEC, N_CTX)


def planned_besides(rank: Program) -> int:
    """Bytes that a rank's plan has beyond what it would need as a model that is not one of several."""
    plan = rank.plan
    room = Room(plan.n_ctx, plan.n_sequences, plan.n_blocks, plan.n_window_blocks, plan.n_state_slots)
    needs = Needs(rank.spec, rank.tensors, MAX_ROWS, HEAD_ROWS, "f16", "f16")
    return plan.arena_bytes - needs.arena_bytes(room)


@pytest.mark.parametrize("n_devices", [2, 3])
def test_memory_of_exchanges_is_planned_once_for_all(device: Device, config: EngineConfig, n_devices: int) -> None:
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    with program(device, config, n_devices, "tensor") as several:
        shares = [rank.share for rank in several.ranks]
        n_shared = {share.exchange._exchange.memory.n_bytes for share in shares if share is not None}
        n_gathered = [4 * rank._results._candidates.n_words for rank in several.ranks if rank._results]
        planned = [planned_besides(rank) for rank in several.ranks]
    assert len(n_shared) == 1 and len(n_gathered) == n_devices
    allocated = sum(n_shared) + sum(n_gathered)
    assert allocated <= sum(planned) < allocated + n_devices


def test_ranks_read_the_file_once(device: Device, config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, whose attn_output and ffn_down are cut by columns, so that rows have parts of all."""
    if "external_memory_host" not in device.info.features:
        pytest.skip("the driver imports no memory")
    read_range, n_read = tensor_bytes.read_range, []

    def counted(path: Path, name: str, file: int, offset: int, target: np.ndarray) -> None:
        n_read.append((name, len(target)))
        read_range(path, name, file, offset, target)

    monkeypatch.setattr(tensor_bytes, "read_range", counted)
    with program(device, config, 3, "tensor") as several:
        kept = {rank.share.reads for rank in several.ranks if rank.share}
        assert len(kept) == 1 and not any(reads._kept for reads in kept if reads)
    sizes = {name: info.n_bytes for name, info in config.tensors.items() if len(info.shape) == 2}
    for name in ("token_embd.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"):
        assert sum(n for other, n in n_read if other == name) == sizes[name], name
    assert sum(n for _, n in n_read) < 1.3 * sum(sizes.values()), "three ranks share two key/value heads"


def test_rows_that_pass_between_layers_are_planned(device: Device, config: EngineConfig) -> None:
    with program(device, config, 2, "layer") as several:
        for rank in several.ranks:
            held = [buffer for buffer in (rank._buffers.received, rank._buffers.sent) if buffer is not None]
            assert len(held) == 1 and planned_besides(rank) == 4 * held[0].n_words
        planned = [rank.plan.total_bytes for rank in several.ranks]
        used = [sum(heap.used_bytes for heap in rank.device.memory()) for rank in several.ranks]
    assert all(0.75 < n / bound < 1 for n, bound in zip(used, planned, strict=True))


def test_memory_that_a_device_cannot_bind_is_refused_before_anything_is_loaded(config: EngineConfig) -> None:
    limits = DeviceLimits(2**31, 700_000, kind="cpu")
    members = [Member(f"Card {i}", limits, str(i)) for i in range(2)]
    with pytest.raises(OutOfDeviceMemory, match=r"-sm tensor needs .* that 2 devices share, and Card 0 can bind 68"):
        divide(config.spec, config.tensors, members, N_CTX, MAX_ROWS, HEAD_ROWS, PlanOptions(split_mode="tensor"))
