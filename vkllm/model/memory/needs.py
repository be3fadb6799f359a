"""What a model needs memory for, in bytes: weights, key/value cache and working memory.

Knows how large each buffer is and how often a token reads it, not where it lies (`plan.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from vkllm.errors import InvalidParameter
from vkllm.formats.gguf import TensorInfo
from vkllm.formats.quants import BLOCK, weight_format
from vkllm.model.expert_ops import ExpertMatvec
from vkllm.model.graph import expected_shapes, loaded, widths
from vkllm.model.memory.exchange_memory import NO_EXCHANGE, ExchangeShare
from vkllm.model.memory.kernel_sizes import ATTENTION_PIECE, KV_BLOCK, MAX_NARROW, MAX_PARTS, N_SLOTS
from vkllm.model.memory.sequences import Room, room_for_one
from vkllm.model.memory.states import n_state_slots, slot_bytes, slot_words
from vkllm.model.ops import Embed, Matvec
from vkllm.model.segments import carried
from vkllm.model.spec import LayerSpec, ModelSpec

CACHE_TYPES = {"f16": 64, "q8_0": 36}
"""Bytes of 32 cached values (shaders/lib/kvcache.glsl)."""

Q16_BYTES = 72
"""Bytes of 32 activations in 16-bit integers: two planes of bytes and two scales."""

ALIGNMENT = 256
"""Buffers lie at multiples of it; no driver asks for more (minStorageBufferOffsetAlignment)."""


@dataclass(frozen=True)
class Stack:
    """Tensors of one format and width, stacked into one matrix. is_whole: it cannot be cut, as those of experts."""

    tensors: tuple[str, ...]
    format: str
    n_rows: int
    n_columns: int
    is_whole: bool = False

    def plane_bytes(self, n_rows: int) -> tuple[int, int]:
        """Bytes of the planes of quants and of scales of n_rows rows."""
        quants, scales = weight_format(self.format).plane_words(n_rows * self.n_columns)
        return 4 * quants, 4 * scales

    def n_bytes(self, n_rows: int) -> int:
        """Bytes of device memory that n_rows rows take."""
        return sum(aligned(plane) for plane in self.plane_bytes(n_rows))


def stacks(names: Iterable[str], tensors: Mapping[str, TensorInfo]) -> list[Stack]:
    """Stacks neighbours that can be one matrix: same format and width, each beginning at a whole unit."""
    groups: list[Stack] = []
    for name in names:
        n_rows, n_columns, is_whole = tensors[name].n_rows, tensors[name].n_columns, len(tensors[name].shape) > 2
        fmt = weight_format(tensors[name].format)
        if groups:
            before = groups[-1]
            is_alike = (before.format, before.n_columns, before.is_whole) == (fmt.name, n_columns, is_whole)
            if is_alike and before.n_rows * n_columns % fmt.unit == 0:
                groups[-1] = Stack((*before.tensors, name), fmt.name, before.n_rows + n_rows, n_columns, is_whole)
                continue
        groups.append(Stack((name,), fmt.name, n_rows, n_columns, is_whole))
    return groups


@dataclass(frozen=True)
class Needs:
    """The buffers of a model. max_rows: rows of a step. head_rows: rows whose logits the device holds at once.
    type_k, type_v: keys of CACHE_TYPES. exchange: what it needs as one of several ranks that compute together."""

    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    max_rows: int
    head_rows: int
    type_k: str
    type_v: str
    exchange: ExchangeShare = NO_EXCHANGE

    def matrices(self) -> list[tuple[str, ...]]:
        """All matrices, by the weights of their operation; those that gain most from fast memory come first.

        The vocabulary projection, the layers from the last to the first, their experts in the same order, of which a
        token reads a part, and tables of embeddings.
        """
        shares = self._read_shares
        wholes = [weights for weights, share in shares.items() if share == 1]
        parts = [weights for weights, share in shares.items() if 0 < share < 1]
        tables = [weights for weights, share in shares.items() if share == 0]
        return [*reversed(wholes), *reversed(parts), *tables]

    def read_share(self, weights: tuple[str, ...]) -> float:
        """The share of a matrix that a token reads: all of it, the chosen experts, or a row, which is next to none."""
        return self._read_shares[weights]

    def room_for_one(self, n_ctx: int) -> Room:
        """What one sequence of n_ctx tokens needs of caches and states."""
        return room_for_one(self.spec, n_ctx, self.max_rows, self._n_state_slots)

    def by_part(self, room: Room) -> dict[str, int]:
        """Bytes of everything that is allocated, by purpose."""
        states = sum(self.layer_states_bytes(room, layer) for layer in self.spec.all_layers)
        moved = self.moved_bytes
        return {
            "weights": self.matrices_bytes + self.vectors_bytes(),
            "cache": sum(self.layer_cache_bytes(room, layer) for layer in self.spec.all_layers),
            **({"states": states} if states else {}),
            "working memory": self.arena_bytes(room),
            **({"what passes between devices": moved} if moved else {}),
        }

    @property
    def moved_bytes(self) -> int:
        """Bytes of system memory for what passes between devices: rows before and behind a part of the layers, in every
        slot, and a rank's share of the memory of exchanges."""
        rows = aligned(4 * N_SLOTS * self.max_rows * self.spec.d_model)
        return (self.spec.receives + self.spec.sends) * rows + self.exchange.host_bytes

    @cached_property
    def matrices_bytes(self) -> int:
        """Bytes of the matrices."""
        matrices = (stack for weights in self.matrices() for stack in stacks(weights, self.tensors))
        return sum(stack.n_bytes(stack.n_rows) for stack in matrices)

    @cached_property
    def _read_shares(self) -> dict[tuple[str, ...], float]:
        return read_shares(self.spec)

    @cached_property
    def _n_state_slots(self) -> int:
        """Slots of one sequence's states (`states.py`); 0 if no layer has a state."""
        return n_state_slots(self.spec, self.matrices_bytes) if slot_bytes(self.spec) else 0

    def layer_states_bytes(self, room: Room, layer: LayerSpec) -> int:
        """Bytes of the states of a layer, in all slots; they do not grow with the context."""
        return aligned(4 * slot_words(layer)[1] * room.n_state_slots)

    def vectors_bytes(self) -> int:
        """Bytes of the weights that are no matrices: norms and biases."""
        n_bytes = 0
        for op in loaded(self.spec):
            vectors = (shape for name, shape in op.tensors().items() if name not in op.matrices)
            n_bytes += sum(aligned(4 * math.prod(shape)) for shape in vectors)
        return n_bytes

    def layer_cache_bytes(self, room: Room, layer: LayerSpec) -> int:
        """Bytes of the keys and values of a layer."""
        return sum(aligned(n_bytes) for n_bytes in self._cache_buffers(room, layer))

    def arena_bytes(self, room: Room) -> int:
        """Bytes of activations, as float32 and at most in 16-bit integers, of a row of logits on the host, of what
        grows with the context, and of the rows of each sequence that a head for further tokens reads again."""
        spec = self.spec
        values = {
            name: width * (self.head_rows if name in ("final", "logits") else self.max_rows)
            for name, width in widths(spec).items()
        }
        if lends_to_logits(spec, self.max_rows, self.head_rows):
            del values["logits"]
        floats = [4 * n for n in (*values.values(), 0 if spec.sends else spec.n_vocab)]
        integers = [Q16_BYTES * -(-n // BLOCK) for name, n in values.items() if name != "logits"]
        kept = 4 * room.n_sequences * MAX_NARROW * spec.d_model if spec.predictors else 0
        buffers = *floats, *integers, kept, self.exchange.device_bytes, *self._context_buffers(room.n_ctx).values()
        return sum(aligned(n_bytes) for n_bytes in buffers)

    def largest_buffers(self, room: Room) -> dict[str, int]:
        """Bytes of the largest buffers that cannot be cut, by name."""
        activation = max(width for name, width in widths(self.spec).items() if name != "logits")
        caches = [n_bytes for layer in set(self.spec.all_layers) for n_bytes in self._cache_buffers(room, layer)]
        return {
            "the cache of a layer": max(caches, default=0),
            "the states of a layer": max(self.layer_states_bytes(room, layer) for layer in self.spec.all_layers),
            "an activation": 4 * max(self.max_rows * activation, self.head_rows * self.spec.n_vocab),
            **self._context_buffers(room.n_ctx),
        }

    def _cache_buffers(self, room: Room, layer: LayerSpec) -> list[int]:
        n_tokens = KV_BLOCK * (room.n_window_blocks if layer.window else room.n_blocks)
        return _cached_bytes(layer, (self.type_k, self.type_v), n_tokens)

    def _context_buffers(self, n_ctx: int) -> dict[str, int]:
        spec = self.spec
        n_pieces = min(-(-n_ctx // ATTENTION_PIECE), MAX_PARTS)
        return {
            **{
                f"the table of rotations {number}": 4 * whole_blocks(n_ctx) * rope.dims
                for number, rope in enumerate(spec.ropes)
            },
            **{
                f"the factors of queries {number}": 4 * whole_blocks(n_ctx)
                for number in range(len({layer.query_temperature for layer in spec.layers} - {None}))
            },
            "the working memory of attention": 4 * spec.n_heads * n_pieces * (spec.head_dim + 4),
            **{
                f"{name} of all steps of a text": n_bytes
                for name, n_bytes in kept_bytes(spec, n_ctx, self.max_rows).items()
            },
        }


def kept_bytes(spec: ModelSpec, n_ctx: int, max_rows: int) -> dict[str, int]:
    """Bytes of what is kept between the layers where a text is of several steps that go through them together, by
    activation: as float32, and behind that, if a product reads it, in 16-bit integers."""
    n_rows = n_text_steps(spec, n_ctx, max_rows) * max_rows
    columns, multiplied = widths(spec), products_inputs(spec)
    return {
        name: n_rows * (4 * columns[name] + (Q16_BYTES * columns[name] // BLOCK if name in multiplied else 0))
        for name in (carried(spec) if n_rows else ())
    }


def n_text_steps(spec: ModelSpec, n_ctx: int, max_rows: int) -> int:
    """Of how many steps texts may be that go through the layers together, because each token sees all others; 0 if
    there are none."""
    is_wide = not spec.is_causal and n_ctx > max_rows and not (spec.receives or spec.sends)
    return -(-n_ctx // max_rows) if is_wide else 0


def products_inputs(spec: ModelSpec) -> frozenset[str]:
    """The activations that are multiplied with matrices."""
    return frozenset(op.input for op in loaded(spec) if isinstance(op, Matvec | ExpertMatvec))


@lru_cache(maxsize=8)
def read_shares(spec: ModelSpec) -> dict[tuple[str, ...], float]:
    """Of each matrix, by the weights of its operation in reading order, the share that a token reads.

    The last one that is read whole is the vocabulary projection, where there is one.
    """
    shares: dict[tuple[str, ...], float] = {}
    for op in loaded(spec):
        match op:
            case Embed():
                shares[op.weights] = 0.0
            case Matvec():
                shares.pop(op.weights, None)  # a table of embeddings that is the vocabulary projection too
                shares[op.weights] = 1.0
            case ExpertMatvec():
                shares[op.weights] = op.n_slots / op.n_experts
    return shares


def widest_of_layers(spec: ModelSpec) -> str:
    """The widest activation that nothing reads behind the layers."""
    inner = {name: width for name, width in widths(spec).items() if name not in ("logits", "final", "x")}
    return max(inner, key=lambda name: inner[name])


def lends_to_logits(spec: ModelSpec, max_rows: int, head_rows: int) -> bool:
    """Whether logits lie where the widest activation of the layers does, which is large enough."""
    return not spec.sends and max_rows * widths(spec)[widest_of_layers(spec)] >= head_rows * spec.n_vocab


def aligned(n_bytes: int) -> int:
    """Bytes that a buffer of n_bytes takes."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def whole_blocks(n_tokens: int) -> int:
    """Tokens that the cache holds for a context of n_tokens."""
    return -(-n_tokens // KV_BLOCK) * KV_BLOCK


def tensor_bytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor's planes."""
    return 4 * sum(weight_format(tensor.format).plane_words(math.prod(tensor.shape)))


def check_cache(spec: ModelSpec, type_k: str, type_v: str) -> None:
    """Raises InvalidParameter for heads whose keys or values are no whole blocks of these types."""
    for name, option, cache_type, place in (("type_k", "-ctk", type_k, 0), ("type_v", "-ctv", type_v, 1)):
        sizes = {layer.head_dim for layer in spec.all_layers if layer.cached_widths[place:]}
        odd = min((size for size in sizes if size % BLOCK), default=0)
        if cache_type == "q8_0" and odd:
            raise InvalidParameter(
                f"{name} ({option}) q8_0 needs heads of a multiple of {BLOCK} numbers, and this model has heads of "
                f"{odd}; choose f16"
            )


def cache_bytes(spec: ModelSpec, n_past: float, type_k: str = "f16", type_v: str = "f16") -> float:
    """Bytes of the keys and values that a token sees behind n_past tokens: of all of them, or of a layer's window."""
    return sum(
        min(n_past, layer.window or n_past) * sum(_cached_bytes(layer, (type_k, type_v), 1)) for layer in spec.layers
    )


def decode_bytes(
    spec: ModelSpec, tensors: Mapping[str, TensorInfo], n_past: float, type_k: str = "f16", type_v: str = "f16"
) -> float:
    """Bytes that a device reads for a step of one token: each weight once, of experts the chosen ones, and
    what it sees of n_past tokens, and states."""
    shares = {name: share for weights, share in read_shares(spec).items() for name in weights}
    read = sum(shares.get(name, 1.0) * tensor_bytes(tensors[name]) for name in expected_shapes(spec))
    return read + cache_bytes(spec, n_past, type_k, type_v) + slot_bytes(spec)


def active_parameters(spec: ModelSpec) -> int:
    """Numbers that a token is computed with: of experts the chosen ones, of tables of embeddings none."""
    shares = {name: share for weights, share in read_shares(spec).items() for name in weights}
    return round(sum(shares.get(name, 1.0) * math.prod(shape) for name, shape in expected_shapes(spec).items()))


def _cached_bytes(layer: LayerSpec, types: tuple[str, str], n_tokens: int) -> list[int]:
    """Bytes of a layer's keys and of its values, as far as it caches them, of n_tokens."""
    widths = zip(layer.cached_widths, types, strict=False)
    return [n_tokens * width * CACHE_TYPES[cache_type] // BLOCK for width, cache_type in widths]
