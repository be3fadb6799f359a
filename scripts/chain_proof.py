"""Decodes tokens twice, by chained dispatches and by dispatches behind barriers, and compares all logits bit for bit.

    python scripts/chain_proof.py --steps 1000000 --seconds 540

Both programs run on one device in turn, some steps a submit, while another process keeps that device busy, so that it
changes between the two in the middle of waits. Each step's input is the token that the step before it chose, now and
then a random one, and its context is all tokens since position 0: a wrong number anywhere shows in what follows. The
model has random weights and is made here. Exit code 0: all bits are the same; 1: they are not; 2: the device chains
nothing, or a wait was given up.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_model import engine_config, write_random_model  # noqa: E402

from vkllm.engine.requests import EngineConfig  # noqa: E402
from vkllm.errors import DeviceError  # noqa: E402
from vkllm.gpu.device.kompute import Device, Dispatch, Recording  # noqa: E402
from vkllm.gpu.program import program as program_module  # noqa: E402
from vkllm.gpu.program.choices import tuning  # noqa: E402
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK  # noqa: E402
from vkllm.gpu.program.program import Program  # noqa: E402
from vkllm.gpu.program.recordings import Submitted  # noqa: E402
from vkllm.gpu.program.results import Place  # noqa: E402
from vkllm.gpu.program.step import LIKELIEST, Part  # noqa: E402
from vkllm.model.architectures.llama import llama_spec  # noqa: E402

SPEC = llama_spec(
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=64,
    d_model=512,
    d_ff=1536,
    n_vocab=1024,
    n_ctx_train=1024,
)
FORMATS = {
    **dict.fromkeys(("token_embd", "attn_q", "attn_k", "attn_v", "attn_output"), "Q4_0"),
    **{"ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K", "output": "Q6_K"},
}

BATCH = 32
"""Steps of a submit."""

N_CTX = SPEC.n_ctx_train
"""Positions until the context begins anew; so many that attention works in several parts."""

Floats = npt.NDArray[np.float32]


class Decoder:
    """A program whose steps of one token run BATCH at a time, in two halves that take turns.

    has_barriers: has a barrier before each dispatch, in a chain or not.
    """

    def __init__(self, device: Device, config: EngineConfig, *, is_chained: bool, has_barriers: bool) -> None:
        choices = tuning(device.info)
        choices = replace(choices, decode=replace(choices.decode, is_chained=is_chained))
        self._program = Program(device, SPEC, config.path, config.tensors, N_CTX, choices=choices)
        self.is_chained = self._program.tuning.decode.is_chained
        self._device = device
        _, logits = self._program.head_of(0)
        self._logits = device.buffer(2 * BATCH * SPEC.n_vocab, is_host=True)
        copy = device.dispatch(
            KERNELS["copy_words"], (logits, self._logits), constants=(64,), groups=(16, 1), push=(SPEC.n_vocab, 0, 0)
        )
        self._halves: list[Recording] = []
        for first in (0, BATCH):
            dispatches = []
            for slot in range(first, first + BATCH):
                step = self._program.dispatches(1, LIKELIEST, slot)
                dispatches += [alone(dispatch) for dispatch in step] if has_barriers else step
                dispatches.append(copy.with_push(SPEC.n_vocab, slot * SPEC.n_vocab, 0))
            self._halves.append(device.record(dispatches))
        self._submitted = [Submitted(0, Place(), 0.0)] * 2

    def submit(self, batch: int, token_id: int) -> None:
        """Submits a batch of steps, the first with a token, each other with what the one before it chose."""
        half, start = batch % 2, batch * BATCH % N_CTX
        for i in range(BATCH):
            table = range((start + i) // KV_BLOCK + 1)
            part = Part(0, [None if i else token_id], start + i, table, results=LIKELIEST)
            self._program._slots.write(half * BATCH + i, [part])
        self._submitted[half] = Submitted(self._device.submit(self._halves[half]), Place(), time.perf_counter())

    def read(self, batch: int) -> Floats:
        """Waits for a batch: its logits (BATCH, V), until the next but one is submitted. Raises DeviceError."""
        self._program.wait(self._submitted[batch % 2])
        words = self._logits.words
        assert words is not None
        return words[: 2 * BATCH * SPEC.n_vocab].view(np.float32).reshape(2, BATCH, SPEC.n_vocab)[batch % 2]


def alone(dispatch: Dispatch) -> Dispatch:
    """The same dispatch behind a barrier, which waits for none."""
    push = [0 if name == "n_awaited" else dispatch.values[name] for name in dispatch.kernel.push]
    return replace(dispatch.with_push(*push) if push else dispatch, is_independent=False)


def difference(chained: Floats, ordered: Floats, first_step: int) -> str | None:
    """What differs between logits (T, V) of steps from first_step on; None if no bit does."""
    is_other = chained.view(np.uint32) != ordered.view(np.uint32)
    if not is_other.any():
        return None
    step = int(np.argmax(is_other.any(axis=1)))
    largest = float(np.abs(chained[step] - ordered[step]).max())
    return (
        f"step {first_step + step}, position {(first_step + step) % N_CTX}: {is_other[step].sum()} of "
        f"{is_other.shape[1]} logits differ, the most by {largest:g}"
    )


def prove(device: Device, n_batches: int, seconds: float, *, same_modules: bool) -> int:
    """Compares batch by batch, for so long at most; the exit code."""
    program_module.N_SLOTS = 2 * BATCH
    with tempfile.TemporaryDirectory() as folder:
        config = engine_config(write_random_model(Path(folder) / "model.gguf", SPEC, FORMATS), SPEC, N_CTX)
        decoders = [
            Decoder(device, config, is_chained=is_chained, has_barriers=has_barriers)
            for is_chained, has_barriers in ((True, False), (same_modules, True))
        ]
    if not decoders[0].is_chained:
        print("This device does not start dispatches in order, or VKLLM_CHAINS=off: nothing is chained.")
        return 2
    model = "the Vulkan memory model" if device.has_memory_model else "fences of all invocations"
    print(f"{device.info.name}, {device.info.driver_name} {device.info.driver_version}: chained by {model}", flush=True)
    rng = np.random.default_rng(0)
    start_s = told_s = time.perf_counter()
    for batch in range(n_batches + 2):
        n_done = (batch - 2) * BATCH
        if batch >= 2:
            found = difference(decoders[0].read(batch - 2), decoders[1].read(batch - 2), n_done)
            if found is not None:
                print(f"NOT THE SAME: {found}")
                return 1
        if (now_s := time.perf_counter()) > told_s + 20:
            told_s = now_s
            print(f"{n_done:,} steps the same after {now_s - start_s:.0f} s", flush=True)
        if now_s - start_s > seconds:
            n_batches = batch - 1  # which was the last that was compared
            break
        if batch < n_batches:
            token_id = int(rng.integers(SPEC.n_vocab))
            for decoder in decoders:
                decoder.submit(batch, token_id)
    took_s, n_steps = time.perf_counter() - start_s, n_batches * BATCH
    print(
        f"THE SAME: all {SPEC.n_vocab} logits of {n_steps:,} steps, chained and behind barriers, bit for bit "
        f"({took_s:.0f} s, {1e6 * took_s / max(n_steps, 1):.0f} us for a step of both)"
    )
    return 0


def keep_busy(device: Device) -> None:
    """Reads memory over and over until standard input ends; then says how often."""
    n_dispatches, n_words = (2, 2**20) if device.info.type == "cpu" else (256, 2**24)
    source, sums = device.buffer(n_words), device.buffer(256 * 2048)
    reading = device.dispatch(
        KERNELS["read_bandwidth"], (source, sums), constants=(256,), groups=(2048, 1), push=(n_words // 4,)
    )
    recordings = [device.record([reading] * n_dispatches) for _ in range(2)]
    tickets, n_submits = [0, 0], 0
    print("busy", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        device.wait(tickets[n_submits % 2])
        tickets[n_submits % 2] = device.submit(recordings[n_submits % 2])
        n_submits += 1
    for ticket in tickets:
        device.wait(ticket)
    print(f"the other process read {n_submits * n_dispatches * 4 * n_words / 1e9:,.0f} GB meanwhile")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="decode steps of each kind")
    parser.add_argument("--seconds", type=float, default=540, help="stop after so long and tell how many it was")
    parser.add_argument("--device", help="index or part of the name")
    parser.add_argument(
        "--same-modules", action="store_true", help="behind barriers, run the modules of chains, not those without"
    )
    parser.add_argument("--alone", action="store_true", help="without another process that keeps the device busy")
    parser.add_argument("--keep-busy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = Device(options.device)
    if options.keep_busy:
        keep_busy(device)
        device.close()
        return 0
    other = None
    if not options.alone:
        command = [sys.executable, __file__, "--keep-busy", "--device", str(device.info.index)]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        if other.stdout.readline() != "busy\n":
            print("The other process could not use the device.")
            return 2
    try:
        return prove(device, -(-options.steps // BATCH), options.seconds, same_modules=options.same_modules)
    except DeviceError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    finally:
        if other is not None:
            print(other.communicate()[0].strip())
        device.close()


if __name__ == "__main__":
    sys.exit(main())
