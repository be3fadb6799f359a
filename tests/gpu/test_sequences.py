"""Steps of several sequences: each row is what it is in a step of its own sequence alone, whatever lies beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_case import nmse
from model_specs import LAYER, STATE, of_layers
from random_model import engine_config, reference, write_random_model

from vkllm.engine.sampler import masked, pick, slope
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import KEEP_ALL, LIKELIEST, LOGITS, Draw, Part, Result
from vkllm.model.mixers import DeltaNet, Mamba2, ShortConvolution

pytestmark = pytest.mark.gpu

BOUND = 4e-6  # keys and values rounded to float16, see test_program.py
WIDTH = 8

STATES = of_layers(
    replace(STATE, mixer=DeltaNet(2, 6, 16, 4)),
    LAYER,
    replace(STATE, mixer=Mamba2(6, 16, 16, 2, 4)),
    replace(STATE, mixer=ShortConvolution(3, 96)),
)
SPECS = {"attention": of_layers(LAYER, LAYER), "states": STATES}
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "in_proj", "out_proj")

LENGTHS = 41, 3, 9
"""Tokens of three sequences before the steps that they share."""


class Sequences:
    """Three sequences of a program, each with blocks of its own, and two slots of states that take turns."""

    def __init__(self, program: Program, path: Path) -> None:
        self.program = program
        rng = np.random.default_rng(1)
        self.tokens = [[int(t) for t in rng.integers(0, program.spec.n_vocab, n + 20)] for n in LENGTHS]
        self.blocks = [5, 2], [0], [7]
        config = engine_config(path, program.spec)
        self.wanted = [reference(config).run(tokens) for tokens in self.tokens]

    def part(self, i: int, first: int, n: int, results: tuple[Result, ...] = (), *, is_second: bool = False) -> Part:
        """Rows of a sequence, behind states in its first or its second slot, stored in the other one."""
        has_states = bool(self.program.states)
        slots = (2 * i + 1, 2 * i) if is_second else (2 * i, 2 * i + 1)
        return Part(
            2 * i + 1,
            self.tokens[i][first : first + n],
            first,
            self.blocks[i],
            state_slot=slots[0] if has_states and first else None,
            stored={n - 1: slots[1]} if has_states else {},
            results=results,
        )

    def begin(self) -> None:
        """Runs the first tokens of all, each behind zeros; their states lie in the first slots."""
        for i, n in enumerate(LENGTHS):
            self.program.submit([self.part(i, 0, n, is_second=True)], is_prompt=True)


@pytest.fixture(params=SPECS)
def sequences(
    request: pytest.FixtureRequest, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Sequences:
    spec = SPECS[request.param]
    path = write_random_model(tmp_path / "model.gguf", spec, dict.fromkeys(MATRICES, "Q4_0"))
    step_width = program_module.step_width
    monkeypatch.setattr(
        program_module, "step_width", lambda n, *, is_prompt: step_width(max(n, WIDTH), is_prompt=is_prompt)
    )
    return Sequences(Program(device, spec, path, engine_config(path, spec).tensors, 256), path)


def test_rows_of_several_sequences_are_those_of_each_alone_and_the_reference_s(sequences: Sequences) -> None:
    program = sequences.program
    sequences.begin()
    rows = {0: (41, 1), 1: (3, 4), 2: (9, 3)}  # a token of an answer, a prompt's end, rows to be verified
    everything = LOGITS * 3
    alone = []
    for i, (first, n) in rows.items():
        step = program.submit([sequences.part(i, first, n, everything[:n])])
        alone += [program.logits(step, k) for k in range(min(n, 3))]
    together = program.submit([sequences.part(i, first, n, everything[:n]) for i, (first, n) in rows.items()])
    got = [program.logits(together, k) for k in range(7)]
    wanted = [sequences.wanted[i][first + n - k] for i, (first, n) in rows.items() for k in range(min(n, 3), 0, -1)]
    assert all(np.array_equal(one, other) for one, other in zip(got, alone, strict=True))
    bound = (4 if program.tuning.has_matmul else 1) * BOUND  # weights and activations rounded to float16
    assert max(nmse(one, other) for one, other in zip(got, wanted, strict=True)) < bound
    # and once more, in another order, from the states that this step has stored
    order = [2, 0, 1]
    parts = [sequences.part(i, sum(rows[i]), 2, LOGITS, is_second=True) for i in order]
    step = program.submit(parts)
    for k, i in enumerate(order):
        assert nmse(program.logits(step, k), sequences.wanted[i][sum(rows[i]) + 1]) < BOUND


def test_each_row_is_masked_drawn_or_read_by_itself_and_feeds_its_own_sequence(sequences: Sequences) -> None:
    program = sequences.program
    sequences.begin()
    mask = np.packbits(np.arange(32 * -(-program.spec.n_vocab // 32)) % 7 == 3, bitorder="little").view(np.uint32)
    drawn = Result(Draw(40, KEEP_ALL, 0, slope(3.0), 0x9ABCDEF0))
    results = [drawn], [Result(mask=mask), Result(drawn.draw, mask)], [Result(), *LOGITS]
    logits: list[np.ndarray] = []
    for i, n in enumerate(LENGTHS):
        step = program.submit([sequences.part(i, n, 2, LOGITS * 2)])
        logits += [program.logits(step, k) for k in range(2)]
    chosen = program.submit([sequences.part(i, n, 2, tuple(results[i])) for i, n in enumerate(LENGTHS)])
    draw = drawn.draw
    assert draw is not None
    tokens = [
        pick(logits[1], draw),
        int(np.argmax(masked(logits[2], mask))),
        pick(masked(logits[3], mask), draw),
        int(np.argmax(logits[4])),
        -1,
    ]
    assert program.tokens(chosen) == tokens and np.array_equal(program.logits(chosen, 4), logits[5])
    # the next tokens are those that the first two sequences have chosen
    after = [sequences.part(i, LENGTHS[i] + 2, 1, LIKELIEST, is_second=True) for i in (1, 0)]
    ahead = [replace(part, tokens=[None], stored={}) for part in after]
    known = [replace(part, tokens=[token]) for part, token in zip(ahead, (tokens[2], tokens[0]), strict=True)]
    wanted = program.tokens(program.submit(known))
    again = program.submit([sequences.part(i, n, 2, tuple(results[i])) for i, n in enumerate(LENGTHS)])
    assert program.tokens(program.submit(ahead)) == wanted and program.tokens(again) == tokens


def test_a_state_is_kept_behind_every_row_of_each_sequence(sequences: Sequences) -> None:
    program = sequences.program
    if not program.states:
        pytest.skip("there are no states")
    assert program.plan.n_state_slots >= 6
    table = sequences.blocks
    texts = sequences.tokens[1], sequences.tokens[2]
    parts = [Part(i, text[:3], 0, table[i], stored={k: 3 * i + k for k in range(3)}) for i, text in enumerate(texts)]
    program.submit(parts)
    for n in (1, 2):  # only the first n tokens are accepted
        parts = [
            Part(i, text[n:4], n, table[i], state_slot=3 * i + n - 1, results=LOGITS) for i, text in enumerate(texts)
        ]
        step = program.submit(parts)
        for i in range(2):
            assert nmse(program.logits(step, i), sequences.wanted[i + 1][3]) < BOUND
