"""Results of one step, each with its own draw, mask and wish, against numpy: choices, ties, logits, slots."""

import numpy as np
import pytest
from kernel_case import filled, words
from test_sample import random_draw

from vkllm.engine.sampler import masked, pick
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, MAX_NARROW
from vkllm.gpu.program.results import Kinds, Results
from vkllm.gpu.program.step import Part, Result, StepSlots

pytestmark = pytest.mark.gpu

N_VOCAB, N_SLOTS, N_SEQUENCES = 2100, 3, 40
N_MASK = -(-N_VOCAB // 32)


def random_result(rng: np.random.Generator, kinds: str) -> Result:
    """A result of one of the kinds that the letters name: drawn, greedy or with logits; some have a mask."""
    mask = np.packbits(rng.random(32 * N_MASK) < 0.1, bitorder="little").view(np.uint32)
    mask = mask if "m" in kinds and rng.random() < 0.5 else None
    match rng.choice([kind for kind in kinds if kind != "m"]):
        case "d":
            return Result(random_draw(rng), mask)
        case "g":
            return Result(mask=mask)
    return Result(wants_logits=True)


@pytest.mark.parametrize(
    ("n_results", "kinds"),
    [(1, "gm"), (1, "dm"), (1, "l"), (2, "g"), (3, "d"), (5, "l"), (7, "dgm"), (13, "dglm"), (MAX_NARROW, "dglm")],
)
def test_each_result_of_a_step_is_what_numpy_makes_of_its_logits(device: Device, n_results: int, kinds: str) -> None:
    rng = np.random.default_rng(n_results)
    # rounded, so that there are ties
    logits = np.round(rng.normal(0, 3, (MAX_NARROW, N_VOCAB)), 1).astype(np.float32)
    wanted_logits, buffer = logits.copy(), filled(device, logits)
    slots = StepSlots(device, N_SLOTS, 1)
    results = Results(device, buffer, N_VOCAB, N_SEQUENCES, N_SLOTS, slots.on_device)
    chain, failure = device.buffer(8), device.buffer(1)
    submitted, expected = [], {}
    for slot in (2, 0):
        made = [random_result(rng, kinds) for _ in range(n_results)]
        sequences = rng.permutation(N_SEQUENCES)[: -(-n_results // 2)].tolist()  # with one or two results
        parts = [Part(s, [1, 2], 0, [], results=made[2 * i : 2 * i + 2]) for i, s in enumerate(sequences)]
        place = results.take(slot, made)
        slots.write(slot, parts)
        results.write_masks(place)
        begin = device.dispatch(
            KERNELS["begin_step"],
            (slots.buffer, results.next_token, slots.on_device, chain, failure),
            constants=(64, 8),
            push=(slot * slots.slot_words,),
        )
        of_kinds = Kinds.of(made)
        assert of_kinds is not None
        dispatches = results.dispatches(of_kinds, 64)
        assert (KERNELS["read_logits"] in [d.kernel for d in dispatches]) == any(r.wants_logits for r in made)
        device.run([begin, *dispatches])
        rows = [row if r.mask is None else masked(row, r.mask) for row, r in zip(wanted_logits, made, strict=False)]
        chosen = [
            -1 if r.wants_logits else int(np.argmax(row)) if r.draw is None else pick(row, r.draw)
            for row, r in zip(rows, made, strict=True)
        ]
        expected |= {s: chosen[min(2 * i + 1, n_results - 1)] for i, s in enumerate(sequences)}
        submitted.append((place, chosen, made))
        assert buffer.words is not None
        buffer.words[: logits.size] = logits.reshape(-1).view(np.uint32)
    for place, chosen, made in submitted:  # a slot keeps what other slots do not overwrite
        assert results.tokens(place) == chosen
        for i, result in enumerate(made):
            if result.wants_logits:
                assert np.array_equal(results.logits(place, i), logits[i])
    host = device.buffer(N_SEQUENCES, is_host=True)
    copy = device.dispatch(KERNELS["copy_words"], (results.next_token, host), constants=(64,), push=(N_SEQUENCES, 0, 0))
    device.run([copy])
    for sequence, token in expected.items():
        assert token == -1 or words(host, (N_SEQUENCES,))[sequence] == token, "the last result of a part"
