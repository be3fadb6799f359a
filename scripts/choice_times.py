"""How long a device takes to choose tokens, by the rows of a step: python scripts/choice_times.py [VOCABULARY]

Times what follows the vocabulary projection, with random logits, and the beginning of a step. No model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from vkllm.gpu.device.kompute import Device, Dispatch
from vkllm.gpu.measure.timing import pass_s
from vkllm.gpu.program.choices import tuning
from vkllm.gpu.program.kernels import KERNELS, LINK_WORDS, MAX_NARROW
from vkllm.gpu.program.results import HEAD_WIDTHS, Kinds, Results
from vkllm.gpu.program.step import KEEP_ALL, Draw, Part, Result, StepSlots

N_VOCAB = 128_256
N_BLOCKS = 128
"""Blocks of each sequence, for 4,096 tokens."""

CHAIN_WORDS = 300 * LINK_WORDS


def main(n_vocab: int) -> None:
    """Prints a line for each number of rows."""
    device = Device()
    local_size = tuning(device.info).local_size
    slots = StepSlots(device, 1, MAX_NARROW * N_BLOCKS)
    logits = device.buffer(MAX_NARROW * n_vocab)
    values = device.buffer(MAX_NARROW * n_vocab, is_host=True)
    assert values.words is not None
    rng = np.random.default_rng(0)
    values.words[: MAX_NARROW * n_vocab] = rng.normal(0, 3, MAX_NARROW * n_vocab).astype(np.float32).view(np.uint32)
    fill = device.dispatch(
        KERNELS["copy_words"], (values, logits), constants=(64,), groups=(1024, 1), push=(MAX_NARROW * n_vocab, 0, 0)
    )
    device.run([fill])
    results = Results(device, logits, n_vocab, MAX_NARROW, 1, slots.on_device)
    begin = device.dispatch(
        KERNELS["begin_step"],
        (slots.buffer, results.next_token, slots.on_device, device.buffer(CHAIN_WORDS), device.buffer(1)),
        constants=(4 * local_size, CHAIN_WORDS),
        push=(0,),
    )
    kinds = {
        "greedy": Result(),
        "drawn": Result(Draw(40, KEEP_ALL, 0, 1e8, 1 << 31)),
        "masked, greedy": Result(mask=np.full(-(-n_vocab // 32), 0xFFFFFFFF, np.uint32)),
        "logits to the host": Result(wants_logits=True),
    }
    print(f"{device.info.name}, {n_vocab:,} tokens, us\n{'rows':>4} {'begin':>8}" + "".join(f"{k:>20}" for k in kinds))
    for n in HEAD_WIDTHS:
        line = ""
        for result in kinds.values():
            made: Sequence[Result] = [result] * n
            place = results.take(0, made)
            slots.write(0, [Part(i, [1], 0, range(N_BLOCKS), results=[result]) for i in range(n)])
            results.write_masks(place)
            of_kinds = Kinds.of(made)
            assert of_kinds is not None
            begin_us = 1e6 * pass_s(device, [begin])
            dispatches: list[Dispatch] = results.dispatches(of_kinds, local_size)
            line += f"{1e6 * pass_s(device, dispatches):20.1f}"
        print(f"{n:4} {begin_us:8.1f}{line}", flush=True)
    device.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else N_VOCAB)
