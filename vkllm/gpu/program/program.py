"""A model on a device: its operations recorded once, replayed for every step.

Keeps recordings of the dispatches that `operations.py` makes of the graph: for every step width of the layers, and for
every kind of results of the head and what follows it. What changes from token to token is in the step buffer
(`step.py`) and in masks, so no Python runs per layer and token. Knows nothing of requests, grammars or sampling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vkllm.formats.gguf import TensorInfo
from vkllm.gpu.device.kompute import Buffer, Device, Dispatch, Recording
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.program.buffers import HEAD_ROWS, ModelBuffers
from vkllm.gpu.program.chains import can_chain
from vkllm.gpu.program.choices import Tuning, tuning
from vkllm.gpu.program.decode import Decode
from vkllm.gpu.program.exchange import Share
from vkllm.gpu.program.fitting import fitted_to_layers
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK, MAX_NARROW, MAX_ROWS
from vkllm.gpu.program.operations import Operations
from vkllm.gpu.program.predictions import Predictions, kept_rows
from vkllm.gpu.program.recordings import Ready, Recordings, Submitted
from vkllm.gpu.program.results import HEAD_WIDTHS, Floats, Gathering, Kinds, Place, Results
from vkllm.gpu.program.step import LIKELIEST, N_SLOTS, WIDTHS, Draw, Part, Result, StepSlots, step_width
from vkllm.model.graph import decoder, head
from vkllm.model.layers.prediction import with_predictors
from vkllm.model.memory.needs import n_text_steps
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, plan
from vkllm.model.memory.sequences import longest_window
from vkllm.model.ops import AllReduce
from vkllm.model.shards.many_rows import of_many_rows
from vkllm.model.spec import ModelSpec


class Program:
    """A loaded model. tensors: the file's tensor table. on_bytes: called with bytes loaded since the last call."""

    longest_text: int | None = None  # tokens of a text that is read in both directions, at most; None: it is not

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
        planned: MemoryPlan | None = None,
        share: Share | None = None,
    ) -> None:
        """n_ctx: tokens of context, or 0 for the longest that costs no speed. choices: for this device; the table's by
        default. planned: where parts lie, if known. share: of one rank of several that compute every step together.

        Raises OutOfDeviceMemory before anything is loaded, DeviceError or ModelFileError while loading.
        """
        info, options = device.info, options or PlanOptions()
        self.plan = planned or plan(spec, tensors, device_limits(info), n_ctx, MAX_ROWS, HEAD_ROWS, options)
        self.device = device
        self.spec = spec = with_predictors(spec, self.plan.n_predictors)
        self.share = share
        self._n_exchanges = 0  # of all steps so far
        self._n_sums = sum(isinstance(op, AllReduce) for op in decoder(spec))
        self.tensors = tensors
        self._buffers = ModelBuffers(device, spec, path, tensors, self.plan, options, on_bytes, share and share.reads)
        self.moved_bytes = self._buffers.moved_bytes
        self.n_blocks = self.plan.n_blocks
        n_table = self.n_sequences * -(-self.plan.n_ctx // KV_BLOCK)
        n_slots = N_SLOTS + n_text_steps(spec, self.plan.n_ctx, MAX_ROWS)
        self._slots = StepSlots(device, n_slots, max(n_table, self.n_blocks), has_windows=self.window > 0)
        self._results: Results | None = None
        if not spec.sends:
            logits = self._buffers.activations["logits"].values
            sizes = spec.n_vocab, self.n_sequences, N_SLOTS
            self._results = Results(device, logits, *sizes, self._slots.on_device, self._gathering())
        self._next_token = self._results.next_token if self._results else device.buffer(1)
        self._kept = kept_rows(device, spec, self.n_sequences)
        self._recordings = Recordings(device, self.plan.n_ctx, share.exchange.half_lines if share else 0)
        self._last_state_slot: int | None = None
        self._slot_tickets = [0] * N_SLOTS
        self._turn = 0
        self.use(fitted_to_layers(choices or tuning(info), info, spec.all_layers))

    def use(self, choices: Tuning) -> None:
        """Uses these choices for later steps; waits for steps in flight. Raises DeviceError."""
        for ticket in self._slot_tickets:
            self.device.wait(ticket)
        if choices.decode.is_chained and not self._may_chain:
            choices = replace(choices, decode=replace(choices.decode, is_chained=False))
        self._recordings.begin_again()
        self.tuning = choices
        step, exchange = self._slots.on_device, self.share.exchange if self.share else None
        self.operations = Operations(self.device, self._buffers, step, choices, exchange)
        self.rows_apart = self.operations.attention.rows_apart(decoder(self.spec))
        self._decode = Decode(self.device, self.spec, self._buffers, step, choices.decode, self.operations)
        made = self.spec, self._buffers, self.operations, self._kept, self.tuning.local_size
        self.predictions = Predictions(*made) if self.spec.predictors else None

    def submit(
        self,
        parts: Sequence[Part],
        *,
        is_prompt: bool = False,
        n_submits: int = 1,
        is_read: bool = False,
        received: Floats | None = None,
    ) -> Submitted:
        """Submits a step and returns at once: of up to MAX_NARROW rows of any sequences, or of more of one, or without
        results of several, which begin at multiples of rows_apart. At most N_SLOTS are in flight; one more waits.

        is_prompt: rows of a prompt, computed alike however they are cut into steps. n_submits: pieces of about as many
        layers that a prompt's step is cut into. is_read: whether the head for further tokens reads the rows too, behind
        the results. received: what the part of the model before this one has sent, (rows, d_model). A step of one part
        without slots of states goes on from the last such step, unless its first row has position 0; parts without
        window blocks have blocks_in_turn. Raises DeviceError.
        """
        return self.send(self.ready(parts, is_prompt, n_submits, is_read, received))

    def ready(
        self, parts: Sequence[Part], is_prompt: bool, n_submits: int, is_read: bool, received: Floats | None
    ) -> Ready:
        """Does all that `submit` does before the device has to; the step must be the next that is sent."""
        width = step_width(sum(part.n_rows for part in parts), is_prompt=is_prompt)
        if self.states and len(parts) == 1 and parts[0].state_slot is None and not parts[0].stored:
            parts = [self._continued(parts[0])]
        reading: list[Recording] = []
        if (predictions := self.predictions) is not None:
            predictions.note(parts, is_read=is_read)
        if is_read and predictions is not None:
            least = max(width, WIDTHS[1])
            reading = self._recordings.of((least, "read"), lambda: predictions.reading(least))
        return self._ready(
            parts, lambda kinds, slot: self._recorded_step(width, kinds, slot, n_submits), reading, received
        )

    def predict(self, part: Part, *, goes_on: bool = False) -> Submitted:
        """Submits a guess of the head for further tokens and returns at once.

        part: one token, with a result: the guess of the token behind it. The sequence's last step, a narrow one or the
        end of a prompt, has run its row_before with is_read; that row decides the guess. goes_on: the guess before
        does, which was the last thing that was submitted. Raises DeviceError.
        """
        predictions = self.predictions
        assert predictions is not None and len(part.tokens) == len(part.results) == 1

        def recordings(kinds: Kinds | None, slot: int) -> list[Recording]:
            assert kinds is not None
            begin = self._recordings.of(slot, lambda: [self._begin_step(slot)])
            return [*begin, *self._recorded_guess(predictions, kinds, goes_on=goes_on)]

        return self.send(self._ready([part], recordings))

    def _recorded_guess(self, predictions: Predictions, kinds: Kinds, *, goes_on: bool) -> list[Recording]:
        results = self._results
        assert results is not None

        def dispatches() -> list[Dispatch]:
            guess = predictions.guess(self._head_width(kinds), goes_on=goes_on)
            return [*guess, *results.dispatches(kinds, self.tuning.local_size)]

        return self._recordings.of(("guess", goes_on, kinds, self._n_places(kinds)), dispatches)

    def _ready(
        self,
        parts: Sequence[Part],
        recordings_of: Callable[[Kinds | None, int], list[Recording]],
        reading: Sequence[Recording] = (),
        received: Floats | None = None,
    ) -> Ready:
        """A step of what is recorded for kinds of results and a slot."""
        results = [result for part in parts for result in part.results]
        slot, self._turn = self._turn, (self._turn + 1) % N_SLOTS
        assert self._results is not None or not results
        place = self._results.take(slot, results) if self._results else Place((), slot)
        kinds, n_made = Kinds.of(results), self._recordings.n_made
        recordings = recordings_of(kinds, slot)
        self._wait(self._slot_tickets[slot])
        self._slots.write(slot, [self._in_window(part) for part in parts], self._n_exchanges)
        self._n_exchanges += self._n_sums
        if self._results is not None:
            self._results.write_masks(place)
            self._n_exchanges += self._results.n_exchanges(kinds) if kinds else 0
        n_rows = sum(part.n_rows for part in parts)
        if received is not None:
            assert self._buffers.received is not None
            self._rows(self._buffers.received, slot, n_rows)[:] = received
        return Ready(recordings, reading, place, n_rows, self._recordings.n_made > n_made)

    def send(self, ready: Ready) -> Submitted:
        """Submits a step that is ready and returns at once. Raises DeviceError."""
        submitted_s = time.perf_counter()
        for recording in ready.recordings:
            ticket = self.send_piece(ready, recording)
        for recording in ready.reading:
            self.send_piece(ready, recording)
        return Submitted(ticket, ready.place, submitted_s, ready.n_rows, ready.is_new)

    def send_piece(self, ready: Ready, recording: Recording) -> int:
        """Submits one of the recordings of a step, the next one, and returns its ticket. Raises DeviceError."""
        ticket = self._slot_tickets[ready.place.slot] = self.device.submit(recording)
        return ticket

    def sent(self, submitted: Submitted) -> Floats:
        """Waits for a step and returns a copy of what it sends on to the next part of the model, (rows, d_model)."""
        self._wait(submitted.ticket)
        assert self._buffers.sent is not None
        return self._rows(self._buffers.sent, submitted.place.slot, submitted.n_rows).copy()

    def _rows(self, host: Buffer, slot: int, n_rows: int) -> Floats:
        """The first rows of a slot, (n_rows, d_model)."""
        assert host.words is not None
        shape = (N_SLOTS, MAX_ROWS, self.spec.d_model)
        return host.words[: math.prod(shape)].view(np.float32).reshape(shape)[slot, :n_rows]

    def _in_window(self, part: Part) -> Part:
        """The part, with blocks for layers with a window if there are such layers."""
        has_all = part.window_blocks or not self.window
        return part if has_all else replace(part, window_blocks=self.blocks_in_turn(len(part.blocks)))

    def _continued(self, part: Part) -> Part:
        """The part, its states stored in one of two slots in turn, and read from where the last one has stored them."""
        before = self._last_state_slot if part.position else None
        self._last_state_slot = 1 if self._last_state_slot == 0 else 0
        return replace(part, state_slot=before, stored={len(part.tokens) - 1: self._last_state_slot})

    def blocks_in_turn(self, n: int) -> list[int]:
        """The first n blocks of a single sequence in layers with a window: all that there are, again and again."""
        return [i % self.plan.n_window_blocks for i in range(n)]

    def forget_states(self) -> None:
        """The next step that names no slots begins with states of zeros, whatever its position."""
        self._last_state_slot = None

    def wait(self, submitted: Submitted) -> None:
        """Waits for a step. Raises DeviceLost or DeviceTimeout, as all that wait do."""
        self._wait(submitted.ticket)

    def tokens(self, submitted: Submitted) -> list[int]:
        """Waits for a step and returns what its results have chosen, -1 for those that want logits."""
        self._wait(submitted.ticket)
        return self._results.tokens(submitted.place) if self._results else []

    def logits(self, submitted: Submitted, i: int = 0) -> Floats:
        """Waits for a step and returns a copy of the logits (V,) of its result i, which wanted them."""
        self._wait(submitted.ticket)
        assert self._results is not None
        return self._results.logits(submitted.place, i)

    def head_of(self, first_row: int) -> tuple[list[Dispatch], Buffer]:
        """Dispatches that make the logits of HEAD_ROWS rows of the last step, from first_row on; (HEAD_ROWS, V)."""
        norm, *projection = (d for op in head(self.spec) for d in self.operations.of(op, HEAD_ROWS))
        return [norm.with_push(first_row, 0, 0), *projection], self._buffers.activations["logits"].values

    def final_norm_of(self, first_row: int) -> tuple[Dispatch, Buffer]:
        """The dispatch that makes the normed hidden states of HEAD_ROWS rows of the last step, from first_row on;
        (HEAD_ROWS, d_model)."""
        (norm,) = self.operations.of(head(self.spec)[0], HEAD_ROWS)
        return norm.with_push(first_row, 0, 0), self._buffers.activations["final"].values

    def settle(self) -> None:
        """Waits until all steps that were submitted have run. Raises DeviceError."""
        for ticket in self._slot_tickets:
            self._wait(ticket)

    @property
    def ranks(self) -> list[Program]:
        """The programs that it consists of, and those that compute logits: itself."""
        return [self]

    heads = ranks

    @property
    def n_in_turn(self) -> int:
        """Steps that run at the same time, each on another device."""
        return 1

    @property
    def n_sequences(self) -> int:
        """How many sequences steps may be of."""
        return self.plan.n_sequences

    @property
    def caches(self) -> list[tuple[Buffer, ...]]:
        """Keys and values of each layer, if any, and of a loaded head, as shaders/lib/kvcache.glsl lays them out."""
        return self._buffers.caches

    @property
    def window(self) -> int:
        """The longest window of its layers; 0 if they see the whole context."""
        return longest_window(self.spec)

    @property
    def ring_tokens(self) -> int:
        """How many tokens of a single sequence the layers with a window cache; 0 if there are none."""
        return KV_BLOCK * self.plan.n_window_blocks

    @property
    def states(self) -> dict[int, Buffer]:
        """The states of each layer that has one, in plan.n_state_slots slots (`model/memory/states.py`)."""
        return self._buffers.states

    @property
    def cache_types(self) -> tuple[str, str]:
        """How keys and values are cached: "f16" or "q8_0" each."""
        return self._buffers.type_k, self._buffers.type_v

    def dispatches(self, width: int, results: Sequence[Result] = (), slot: int = 0) -> list[Dispatch]:
        """All dispatches of a step with such results, in order. width: one of WIDTHS."""
        return self._whole_step(width, Kinds.of(results), slot)

    def _whole_step(self, width: int, kinds: Kinds | None, slot: int) -> list[Dispatch]:
        layers = self._decode_layers(kinds) if width == 1 else self._layers(width)
        return [self._begin_step(slot), *layers, *self._end(kinds, has_head=width > 1)]

    def prepare(self, width: int, n_results: int = 1) -> None:
        """Records steps of a width for every slot, with the dispatches that choose n_results tokens, so that the first
        answers do not wait for that. width: one of WIDTHS. With those of one row it also records what guesses take."""
        drawn = Result(Draw(1, 0, 0, 0.0, 0))
        for slot in range(N_SLOTS):
            for results in (LIKELIEST * n_results, (drawn,) * n_results) if self._results else ((),):
                self._recorded_step(width, Kinds.of(results), slot, n_submits=1)
        if width > 1:
            return
        if (predictions := self.predictions) is not None and (kinds := Kinds.of(LIKELIEST)) is not None:
            self._recordings.of((WIDTHS[1], "read"), lambda: predictions.reading(WIDTHS[1]))
            for goes_on in (False, True):
                self._recorded_guess(predictions, kinds, goes_on=goes_on)

    @cached_property
    def _may_chain(self) -> bool:
        """Whether the device can chain, tried once."""
        return can_chain(self.device)

    def _wait(self, ticket: int) -> None:
        self.device.wait(ticket)
        self._decode.check()

    def _recorded_step(self, width: int, kinds: Kinds | None, slot: int, n_submits: int) -> list[Recording]:
        """A narrow step is one submit, a step of one row always. Others are several: all slots and results share the
        layers of a width, and all widths and slots what follows for a kind of results."""
        if width == 1 or (width <= MAX_NARROW and n_submits == 1):
            key = (width, slot, kinds, self._n_places(kinds))
            return self._recordings.of(key, lambda: self._whole_step(width, kinds, slot))
        begin = self._recordings.of(slot, lambda: [self._begin_step(slot)])
        layers = self._recordings.of((width, n_submits), lambda: self._layers(width), n_submits)
        if kinds is None:
            return [*begin, *layers]
        end = self._recordings.of(
            (kinds, self._n_places(kinds)), lambda: self._end(kinds, has_head=True), first_exchange=self._n_sums + 1
        )
        return [*begin, *layers, *end]

    def _n_places(self, kinds: Kinds | None) -> int:
        return self._results.n_places if self._results and kinds and kinds.wants_logits else 0

    def _layers(self, width: int) -> list[Dispatch]:
        ops = decoder(self.spec)
        return self.operations.of_all(of_many_rows(ops) if width > MAX_NARROW else ops, width)

    def _decode_layers(self, kinds: Kinds | None) -> list[Dispatch]:
        """The layers of a step of one row, and its head if it has a result."""
        ops = decoder(self.spec) if kinds is None else (*decoder(self.spec), *head(self.spec))
        return self._decode.dispatches(ops)

    def _end(self, kinds: Kinds | None, *, has_head: bool) -> list[Dispatch]:
        """What is made of results. has_head: with the head, for as many rows as they need."""
        if kinds is None:
            return []
        ops = head(self.spec) if has_head else ()
        projection = [d for op in ops for d in self.operations.of(op, self._head_width(kinds))]
        assert self._results is not None
        return [*projection, *self._results.dispatches(kinds, self.tuning.local_size)]

    def _gathering(self) -> Gathering | None:
        """How tokens are chosen where ranks have parts of the vocabulary: by the last exchange of a step."""
        share = self.share
        return Gathering(share.exchange, share.vocabulary) if share and share.vocabulary else None

    def _head_width(self, kinds: Kinds) -> int:
        # matrices round otherwise, so a row alone takes them too
        return max(kinds.width, HEAD_WIDTHS[1]) if self.tuning.has_matmul else kinds.width

    def _begin_step(self, slot: int) -> Dispatch:
        slots, decode = self._slots, self._decode
        return self.device.dispatch(
            KERNELS["begin_step"],
            (slots.buffer, self._next_token, slots.on_device, decode.chain, decode.failure),
            constants=(4 * self.tuning.local_size, decode.chain.n_words),
            push=(slot * slots.slot_words,),
        )
