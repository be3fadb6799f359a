"""Runs the graphs of all ranks in numpy, one after the other from sum to sum: the reference of divided models."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np

from vkllm.model.graph import decoder, head
from vkllm.model.memory.kernel_sizes import MAX_NARROW
from vkllm.model.ops import AllReduce
from vkllm.model.reference import Floats, Reference
from vkllm.model.shards.many_rows import of_many_rows
from vkllm.model.shards.rank_model import RankModel
from vkllm.model.shards.shared_exponent import rounded

Exchange = Generator[Floats, Floats, Floats]


class LockstepReference:
    """One sequence. weights: of each rank, its tensors by name as float32."""

    def __init__(self, models: Sequence[RankModel], weights: Sequence[Callable[[str], Floats]], n_ctx: int) -> None:
        self._models = models
        self._ranks = [_Rank(model.spec, of, n_ctx) for model, of in zip(models, weights, strict=True)]

    def run(self, token_ids: list[int]) -> Floats:
        """Appends tokens (T,) to the sequence and returns their logits (T, V), of all ranks."""
        ranks = [rank.exchanging(token_ids) for rank in self._ranks]
        logits: list[Floats] = []
        total: Floats | None = None
        while not logits:
            parts: list[Floats] = []
            for rank in ranks:
                try:
                    parts.append(next(rank) if total is None else rank.send(total))
                except StopIteration as end:
                    logits.append(end.value)
            assert not (parts and logits), "all ranks have the same sums"
            if parts:
                total = np.asarray(sum(parts[1:], parts[0]))
        n_vocab = max(model.vocabulary.stop for model in self._models)
        is_divided = len(self._models[0].vocabulary) < n_vocab
        return np.concatenate(logits, axis=1) if is_divided else logits[0]


class _Rank(Reference):
    def exchanging(self, token_ids: list[int]) -> Exchange:
        """Yields what it has of each sum over ranks, and receives the sum; returns its logits."""
        values: dict[str, Floats] = {}
        positions = np.arange(self.n_past, self.n_past + len(token_ids))
        ops = decoder(self.spec)
        for op in (*(of_many_rows(ops) if len(token_ids) > MAX_NARROW else ops), *head(self.spec)):
            if isinstance(op, AllReduce):
                part = values[op.input]
                total = yield rounded(part) if op.is_packed else part
                values[op.output] = total if op.add is None else values[op.add] + total
            else:
                values[op.output] = self._run_op(op, values, token_ids, positions)
        self.n_past += len(token_ids)
        return values["logits"]
