"""Random queries of several sequences, their cache on the device, and what `attention` makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from kernel_case import Scores, cache_words, cached, constants, filled, floats, poisoned, step_of, words, write_cache

from vkllm.formats.quants import dequantize_q16
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.attention_operations import lanes_of_key
from vkllm.gpu.program.kernels import KERNELS, KV_BLOCK
from vkllm.gpu.program.step import Part
from vkllm.model.reference import attention
from vkllm.model.reference_states import sigmoid

Floats = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
"""Heads of queries, of keys, and their dimensions."""


class AttentionCase:
    """Queries at the last positions of each sequence. wanted: of each sequence, results (T, H, D) of the reference."""

    def __init__(
        self, device: Device, shape: Shape, sequences: Sequence[Sequence[int]], formats: tuple[str, str], s: Scores
    ) -> None:
        n_heads, n_kv_heads, head_dim = shape
        self._device, self._shape, self._formats, self._scores = device, shape, formats, s
        self._sequences = sequences
        rng = np.random.default_rng(sequences[-1][-1])
        n_rows = sum(map(len, sequences))
        sinks, gates = s.sinks(n_heads), s.gates(n_rows, n_heads, head_dim)
        lengths = [positions[-1] + 1 for positions in sequences]
        blocks = iter(rng.permutation(sum(-(-n // KV_BLOCK) for n in lengths)))
        self._tables = [[int(next(blocks)) for _ in range(-(-n // KV_BLOCK))] for n in lengths]
        if s.n_window_blocks:  # what is behind the window may be another's
            n = s.n_window_blocks
            self._tables = [[n * i + j % n for j in range(len(t))] for i, t in enumerate(self._tables)]
        n_blocks = max(map(max, self._tables)) + 2
        self._caches = [poisoned(device, cache_words(fmt, n_blocks, n_kv_heads, head_dim)) for fmt in formats]
        self._sinks, self._q, self._gates, self.wanted = sinks, [], [], []
        for positions, table, n in zip(sequences, self._tables, lengths, strict=True):
            q = rng.normal(0, 2, (len(positions), n_heads, head_dim)).astype(np.float32)
            k, v = (rng.normal(0, 1, (n, n_kv_heads, head_dim)).astype(np.float32) for _ in range(2))
            for cache, x, fmt in zip(self._caches, (k, v), formats, strict=True):
                write_cache(cache.words, x, table, fmt)
            keys, values = cached(k, formats[0]), cached(v, formats[1])
            if s.latent_dim:
                values = keys[..., : s.latent_dim]
            of_scores = (s.scale, s.softcap, s.window, s.ahead, s.chunk, sinks)
            wanted = attention(q, keys, values, np.array(positions), *of_scores)
            own_gates = None
            if gates is not None:
                own_gates, gates = gates[: len(positions)], gates[len(positions) :]
                wanted = wanted * sigmoid(own_gates[:, :n_heads, 1])
            self._q.append(q)
            self._gates.append(own_gates)
            self.wanted.append(wanted)

    def run(
        self, heads: int, n_rows: Sequence[int] | None = None, n_sharing: int = 1, part_keys: int = 0
    ) -> tuple[list[Floats], list[Floats] | None]:
        """Results (T, H, D) of the last n_rows positions of each sequence (None: of all): as float32, and as q16.

        n_sharing: workgroups that share the keys of a token. part_keys: of the first parts, 0: as few as there may be.
        """
        device, scores, (n_heads, n_kv_heads, head_dim) = self._device, self._scores, self._shape
        n_rows = n_rows or [len(positions) for positions in self._sequences]
        used = [(i, n) for i, n in enumerate(n_rows) if n]
        q = np.concatenate([self._q[i][-n:] for i, n in used])
        gates = np.concatenate([self._gates[i][-n:] for i, n in used]) if scores.has_gates else None
        parts = [self._part(i, n) for i, n in used]
        value_dim = scores.latent_dim or head_dim
        y_shape, size = (len(q), n_heads, value_dim), len(q) * n_heads * value_dim
        outputs = [poisoned(device, n) for n in (size, size // 2, size // 16 + 1)]
        # scores need room in the _plain modules, and what large heads unroll takes long to compile
        local_size, keys_at_once = (32, 2) if device.is_plain else (64, 6 if head_dim <= 64 else 2)
        sizes = dict(local_size=local_size, keys_at_once=keys_at_once)
        quantizes = heads * value_dim % 32 == 0
        tokens = 2 if len(used) == n_sharing == 1 else 1
        lanes = lanes_of_key(head_dim, device.info.subgroup_size)
        part_keys = part_keys or sizes["local_size"] // lanes * sizes["keys_at_once"]
        most_parts = 2 + max(positions[-1] for positions in self._sequences) // part_keys
        partials = poisoned(device, 4 * (1 + len(q) * n_heads * most_parts * (1 + value_dim // 4)))
        arrived = device.buffer(len(q) * n_heads // heads, is_host=True)
        caches = (self._caches[0], self._caches[0]) if scores.latent_dim else self._caches
        dispatch = device.dispatch(
            KERNELS["attention"],
            (
                *(filled(device, q), *caches, *outputs, step_of(device, parts)),
                *(outputs[0] if x is None else filled(device, x) for x in (self._sinks, gates)),
                *(partials, arrived),
            ),
            constants=constants(
                "attention",
                **sizes,
                **dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, lanes=lanes),
                **dict(heads_per_workgroup=heads, tokens_per_workgroup=tokens),
                **dict(k_q8_0=self._formats[0] == "q8_0", v_q8_0=self._formats[1] == "q8_0"),
                **scores.constants(n_heads, head_dim),
                **dict(latent_dim=scores.latent_dim, quantizes=quantizes),
                **dict(part_keys=part_keys, log2_parts=31 if scores.window or scores.chunk else 1),
                **dict(n_sharing=n_sharing, most_parts=most_parts, first_partial=1),
            ),
            groups=(n_heads // heads * n_sharing, -(-len(q) // tokens)),
        )
        device.run([dispatch] * 2)  # counts of workgroups are cleared for the next time
        cuts = np.cumsum([n for _, n in used])[:-1]
        y, y_q16, y_scales = outputs
        results = np.split(floats(y, y_shape), cuts)
        if not quantizes:
            assert (words(y_q16, (y_q16.n_words,)) == 0x7FC00000).all()
            return results, None
        n_blocks = n_heads * value_dim // 32
        q16 = dequantize_q16(words(y_q16, (len(q), 4, n_blocks, 4)), floats(y_scales, (len(q), n_blocks, 2)))
        return results, np.split(q16.reshape(y_shape), cuts)

    def _part(self, i: int, n_rows: int) -> Part:
        positions, table = self._sequences[i], self._tables[i]
        tokens, first = [0] * n_rows, positions[-n_rows]
        if self._scores.n_window_blocks:
            return Part(i, tokens, first, [999] * len(table), table)
        return Part(i, tokens, first, table)


def one_sequence(
    device: Device,
    shape: Shape,
    positions: Sequence[int],
    formats: tuple[str, str] = ("f16", "f16"),
    scores: Scores | None = None,
) -> AttentionCase:
    return AttentionCase(device, shape, [positions], formats, scores or Scores(shape[2] ** -0.5))
