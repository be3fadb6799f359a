"""How far programs are from the numpy reference: behind each chunk of a prompt, and behind each token after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernel_case import nmse

from vkllm.gpu.program.program import Program
from vkllm.gpu.program.step import LOGITS, Part


def logit_errors(program: Program, tokens: Sequence[int], wanted: np.ndarray, cuts: Sequence[int]) -> list[float]:
    """Of the logits behind each chunk of a prompt, and behind each token that follows it, from wanted (T, V).

    cuts: lengths of the chunks. Blocks of the cache are used from the last to the first.
    """
    table, found, start = list(reversed(range(program.n_blocks))), [], 0
    for n in cuts:
        step = program.submit([Part(0, tokens[start : start + n], start, table, results=LOGITS)], is_prompt=True)
        start += n
        found.append(nmse(program.logits(step), wanted[start - 1]))
    for position in range(start, len(tokens)):
        step = program.submit([Part(0, [tokens[position]], position, table, results=LOGITS)])
        found.append(nmse(program.logits(step), wanted[position]))
    return found
