"""A model on a device: its operations recorded once, replayed for every step.

Keeps a recording for every step width, kind of result (masked or not) and slot, of the dispatches that
`operations.py` makes of the graph. What changes from token to token is in the step buffer (`step.py`) and in
masks, so no Python runs per layer and token. Knows nothing of requests, grammars or sampling.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch, Recording
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.program.buffers import HEAD_ROWS, ModelBuffers
from vkllm.gpu.program.chains import can_chain
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.program.decode import Decode
from vkllm.gpu.program.fitting import fitted_to_layers
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK, MAX_ROWS, TOP_K, TOP_LOGITS
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.rounds import check_rounds
from vkllm.gpu.program.step import Draw, Row, StepSlots
from vkllm.model.graph import decoder, head
from vkllm.model.memory.plan import PlanOptions, plan
from vkllm.model.spec import ModelSpec

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Result = Literal["none", "token", "sampled", "logits"]

WIDTHS = (1, 8, 64, 256, MAX_ROWS)
"""Numbers of rows that steps are recorded for; a step runs in the smallest that holds it."""

N_SLOTS = 3
"""Steps that may be in flight."""


def step_width(n_rows: int, *, is_prompt: bool) -> int:
    """The width of WIDTHS in which a step of n_rows runs."""
    # decode's own kernels may round differently, so prompts never use them
    least = max(n_rows, WIDTHS[1]) if is_prompt else n_rows
    return next(width for width in WIDTHS if width >= least)


@dataclass(frozen=True)
class Submitted:
    """A step on its way. submitted_s: when, by time.perf_counter, after it was recorded."""

    ticket: int
    slot: int
    submitted_s: float


class Program:
    """A loaded model. tensors: the file's tensor table. on_bytes: called with bytes loaded since the last call."""

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        n_ctx: int,
        on_bytes: Callable[[int], None] = lambda n_bytes: None,
        options: PlanOptions | None = None,
        choices: Tuning | None = None,
    ) -> None:
        """n_ctx: tokens of context, or 0 for the longest that costs no speed; `plan.n_ctx` says which. choices: for
        this device; the table's by default.

        Raises OutOfDeviceMemory before anything is loaded, DeviceError or ModelFileError while loading.
        """
        info, options = device.info, options or PlanOptions()
        self.plan = plan(spec, tensors, device_limits(info), n_ctx, MAX_ROWS, HEAD_ROWS, options)
        self.device = device
        self.spec = spec
        self.tensors = tensors
        self._slots = StepSlots(device, N_SLOTS, -(-self.plan.n_ctx // KV_BLOCK))
        self._next_token = device.buffer(1)
        self._chosen = device.buffer(N_SLOTS, is_host=True)
        self._n_lists = -(-spec.n_vocab // TOP_LOGITS)
        self._largest = device.buffer(2 * TOP_K * self._n_lists)
        self._host_logits = device.buffer(spec.n_vocab, is_host=True)
        self._mask_words = -(-spec.n_vocab // 32)
        self._masks = device.buffer(N_SLOTS * self._mask_words, is_host=True)
        self._buffers = ModelBuffers(device, spec, path, tensors, self.plan, options, on_bytes)
        self.moved_bytes = self._buffers.moved_bytes
        self.n_blocks = self._buffers.n_blocks
        self._logits = self._buffers.activations["logits"].values
        self._recordings: dict[Hashable, list[Recording]] = {}
        # what the last two choices recorded: choices that are tried in turn share the pipelines
        self._earlier: deque[dict[Hashable, list[Recording]]] = deque(maxlen=2)
        self._can_chain: bool | None = None
        self._last_state_slot: int | None = None
        self._slot_tickets = [0] * N_SLOTS
        self._turn = 0
        self.use(fitted_to_layers(choices or tuning(info), info, spec.layers))

    def use(self, choices: Tuning) -> None:
        """Uses these choices for later steps; waits for steps in flight. Raises DeviceError."""
        for ticket in self._slot_tickets:
            self.device.wait(ticket)
        if choices.decode.is_chained and not self._may_chain():
            choices = replace(choices, decode=replace(choices.decode, is_chained=False))
        self._earlier.append(dict(self._recordings))
        self._recordings.clear()
        self.tuning = choices
        self._local_size = choices.local_size
        step = self._slots.on_device
        self.operations = Operations(self.device, self._buffers, step, choices)
        self._decode = Decode(self.device, self.spec, self._buffers, step, choices.decode, self.operations)

    def submit(
        self,
        rows: Sequence[Row],
        block_table: Sequence[int],
        result: Result,
        *,
        is_prompt: bool = False,
        draw: Draw | None = None,
        mask: Words | None = None,
        n_submits: int = 1,
        state_slot: int | None = None,
    ) -> Submitted:
        """Submits a step of one sequence and returns at once.

        is_prompt: rows of a prompt, which are computed alike however they are cut into steps.
        result: what to make of the last row: "token" chooses the likeliest on the GPU, "sampled" draws one there
        as `draw` says, "logits" brings all to the host. mask: the tokens that may be chosen on the GPU, token t as bit
        t % 32 of word t // 32; None is all. n_submits: pieces of about as many layers that a prompt's step is cut
        into, each a submit. state_slot: where layers find their states before the first row, which must not be stored
        there too; None: zeros, as at the beginning of a sequence. Where neither it nor a row names a slot, states go
        on from the last such step, unless the first row has position 0. At most N_SLOTS steps are in flight; one more
        waits for the oldest.
        """
        assert (draw is not None and 0 < draw.top_k <= TOP_K) if result == "sampled" else draw is None
        assert mask is None or (result in ("token", "sampled") and len(mask) == self._mask_words)
        width = step_width(len(rows), is_prompt=is_prompt)
        slot, self._turn = self._turn, (self._turn + 1) % N_SLOTS
        recordings = self._recorded_step(width, result, slot, mask is not None, n_submits)
        self._wait(self._slot_tickets[slot])
        if self.states and state_slot is None and all(row.state_slot is None for row in rows):
            rows, state_slot = self._continued(rows)
        self._slots.write(slot, rows, block_table, draw, state_slot)
        if mask is not None:
            assert self._masks.words is not None
            self._masks.words[slot * self._mask_words : (slot + 1) * self._mask_words] = mask
        submitted_s = time.perf_counter()
        for recording in recordings:
            self._slot_tickets[slot] = self.device.submit(recording)
        return Submitted(self._slot_tickets[slot], slot, submitted_s)

    def _continued(self, rows: Sequence[Row]) -> tuple[list[Row], int | None]:
        """Rows that store their states in one of two slots in turn, and the slot of the states before them."""
        before = self._last_state_slot if rows[0].position else None
        self._last_state_slot = 1 if self._last_state_slot == 0 else 0
        return [*rows[:-1], replace(rows[-1], state_slot=self._last_state_slot)], before

    def forget_states(self) -> None:
        """The next step that names no slots begins with states of zeros, whatever its position."""
        self._last_state_slot = None

    def wait(self, submitted: Submitted) -> None:
        """Waits for a step. Raises DeviceLost or DeviceTimeout, as all that wait do."""
        self._wait(submitted.ticket)

    def token(self, submitted: Submitted) -> int:
        """Waits for a "token" or "sampled" step and returns what it chose."""
        self._wait(submitted.ticket)
        assert self._chosen.words is not None
        return int(self._chosen.words[submitted.slot])

    def logits(self, submitted: Submitted) -> Floats:
        """Waits for a "logits" step and returns a copy of its logits (V,)."""
        self._wait(submitted.ticket)
        assert self._host_logits.words is not None
        return self._host_logits.words[: self.spec.n_vocab].view(np.float32).copy()

    def head_of(self, first_row: int) -> tuple[list[Dispatch], Buffer]:
        """Dispatches that make the logits of HEAD_ROWS rows of the last step, from first_row on; (HEAD_ROWS, V)."""
        norm, *projection = (d for op in head(self.spec) for d in self.operations.of(op, HEAD_ROWS))
        return [norm.with_push(first_row, 0, 0), *projection], self._logits

    def final_norm_of(self, first_row: int) -> tuple[Dispatch, Buffer]:
        """The dispatch that makes the normed hidden states of HEAD_ROWS rows of the last step, from first_row on;
        (HEAD_ROWS, d_model)."""
        (norm,) = self.operations.of(head(self.spec)[0], HEAD_ROWS)
        return norm.with_push(first_row, 0, 0), self._buffers.activations["final"].values

    @property
    def caches(self) -> list[tuple[Buffer, ...]]:
        """Keys and values of each layer, as far as it has them, as shaders/lib/kvcache.glsl lays them out."""
        return self._buffers.caches

    @property
    def n_ring_blocks(self) -> list[int]:
        """How many blocks each layer uses in turn if it has a sliding window; 0 if it keeps the whole context."""
        return self._buffers.n_ring_blocks

    @property
    def window(self) -> int:
        """The longest window of its layers; 0 if they see the whole context."""
        return max((layer.window for layer in self.spec.layers), default=0)

    @property
    def ring_tokens(self) -> int:
        """How many tokens the layers with a window cache, the one with the fewest; 0 if there are none."""
        layers = zip(self.spec.layers, self.n_ring_blocks, strict=True)
        return KV_BLOCK * min((n or self.n_blocks for layer, n in layers if layer.window), default=0)

    @property
    def states(self) -> dict[int, Buffer]:
        """The states of each layer that has one, in plan.n_state_slots slots (`model/memory/states.py`)."""
        return self._buffers.states

    @property
    def cache_types(self) -> tuple[str, str]:
        """How keys and values are cached: "f16" or "q8_0" each."""
        return self._buffers.type_k, self._buffers.type_v

    def dispatches(self, width: int, result: Result, slot: int = 0, *, is_masked: bool = False) -> list[Dispatch]:
        """All dispatches of a step, in order. width: one of WIDTHS."""
        if width == 1:
            ops = decoder(self.spec) if result == "none" else (*decoder(self.spec), *head(self.spec))
            layers = self._decode.dispatches(ops)
        else:
            layers = self._layers(width) + ([] if result == "none" else self._head())
        end = [] if result == "none" else self._result(result, slot, is_masked=is_masked)
        return [self._begin_step(slot), *layers, *end]

    def prepare(self) -> None:
        """Records the dispatches that choose tokens, for every slot, so that the first answers do not wait for that."""
        for slot in range(N_SLOTS):
            for result in ("token", "sampled"):
                for width in WIDTHS[:2]:
                    self._recorded_step(width, result, slot, is_masked=False, n_submits=1)

    def _may_chain(self) -> bool:
        """Whether the device passes the test for chains, tried once, and has the modules for them."""
        if self.device.has_memory_model and not self.device.has_integer_dot:
            return False
        if self._can_chain is None:
            self._can_chain = can_chain(self.device)
        return self._can_chain

    def _wait(self, ticket: int) -> None:
        self.device.wait(ticket)
        self._decode.check()

    def _recorded_step(self, width: int, result: Result, slot: int, is_masked: bool, n_submits: int) -> list[Recording]:
        """A step of one token is one submit. A prompt's are several, and all slots and results share its layers."""
        if width == 1:
            return self._recorded(
                (width, result, is_masked, slot), lambda: self.dispatches(1, result, slot, is_masked=is_masked)
            )
        begin = self._recorded(slot, lambda: [self._begin_step(slot)])
        layers = self._recorded((width, n_submits), lambda: self._layers(width), n_submits)
        if result == "none":
            return [*begin, *layers]
        end = self._recorded(
            (result, is_masked, slot), lambda: self._head() + self._result(result, slot, is_masked=is_masked)
        )
        return [*begin, *layers, *end]

    def _recorded(self, key: Hashable, dispatches: Callable[[], list[Dispatch]], n_submits: int = 1) -> list[Recording]:
        """Dispatches in n_submits recordings, made once for a key. Raises DeviceError."""
        if key not in self._recordings:
            made = dispatches()
            for dispatch in made:
                check_rounds(dispatch, self.device.info, self.n_blocks * KV_BLOCK)
            cuts = [len(made) * i // n_submits for i in range(n_submits + 1)]
            self._recordings[key] = [self.device.record(made[i:j]) for i, j in pairwise(cuts)]
        return self._recordings[key]

    def _layers(self, width: int) -> list[Dispatch]:
        return [d for op in decoder(self.spec) for d in self.operations.of(op, width)]

    def _head(self) -> list[Dispatch]:
        return [d for op in head(self.spec) for d in self.operations.of(op, 1)]

    def _begin_step(self, slot: int) -> Dispatch:
        return self.device.dispatch(
            KERNELS["begin_step"],
            (self._slots.buffer, self._next_token, self._slots.on_device, self._decode.chain, self._decode.failure),
            constants=(4 * self._local_size, self._decode.chain.n_words),
            push=(slot * self._slots.slot_words,),
        )

    def _result(self, result: Literal["token", "sampled", "logits"], slot: int, *, is_masked: bool) -> list[Dispatch]:
        masking = [self._mask_logits(slot)] if is_masked else []
        match result:
            case "token":
                return [*masking, self._argmax(slot)]
            case "sampled":
                return [*masking, *self._sample(slot)]
            case "logits":
                return [*masking, self._read_logits()]

    def _mask_logits(self, slot: int) -> Dispatch:
        return self.device.dispatch(
            KERNELS["mask_logits"],
            (self._logits, self._masks),
            constants=(self._local_size, self.spec.n_vocab),
            groups=(min(1024, -(-self.spec.n_vocab // self._local_size)), 1),
            push=(slot * self._mask_words,),
        )

    def _sample(self, slot: int) -> list[Dispatch]:
        constants = (4 * self._local_size, self.spec.n_vocab)
        top_logits = self.device.dispatch(
            KERNELS["top_logits"],
            (self._logits, self._largest),
            constants=constants,
            groups=(self._n_lists, 1),
        )
        sample = self.device.dispatch(
            KERNELS["sample"],
            (self._largest, self._next_token, self._chosen, self._slots.on_device),
            constants=constants,
            push=(slot,),
        )
        return [top_logits, sample]

    def _argmax(self, slot: int) -> Dispatch:
        most = min(16 * self._local_size, self.device.info.max_workgroup_invocations)
        return self.device.dispatch(
            KERNELS["argmax"],
            (self._logits, self._next_token, self._chosen),
            constants=(1 << most.bit_length() - 1, self.spec.n_vocab),
            push=(slot,),
        )

    def _read_logits(self) -> Dispatch:
        return self.device.dispatch(
            KERNELS["copy_words"],
            (self._logits, self._host_logits),
            constants=(self._local_size,),
            groups=(min(1024, -(-self.spec.n_vocab // self._local_size)), 1),
            push=(self.spec.n_vocab, 0, 0),
        )
