"""How fast a loaded model answers one request, and many at once. What `LLM`'s methods of these names call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from vkllm.api.prompts import Prompts
from vkllm.engine.events import Event, Failed, Finished, RunStats, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request
from vkllm.errors import ContextOverflow, InvalidParameter, counted
from vkllm.parameters import whole_number


@dataclass(frozen=True)
class BatchTimes:
    """How fast requests that came at once were answered.

    n_prompt, n_cached, n_generated: tokens of all requests. first_token_s: of each request, from sending to its first
    token. total_s: until the last token of all. n_together, together_s: tokens, and seconds, from the last first token
    until the first request ended, while all were generating; 0 where they never did.

    >>> times = llm.benchmark_batch([[1, 2, 3], [4, 5, 6]], 8)
    >>> times.n_generated
    16
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    first_token_s: tuple[float, ...]
    total_s: float
    n_together: int
    together_s: float

    @property
    def prompt_s(self) -> float:
        """Seconds until every request had its first token."""
        return max(self.first_token_s)

    @property
    def generate_per_s(self) -> float:
        """Tokens a second of all requests while all of them generated; where they never did, over the whole time."""
        return self.n_together / self.together_s if self.together_s > 0 else self.n_generated / self.total_s


def generate(engine: EngineProcess, prompts: Prompts, prompt: str | Sequence[int], length: int) -> RunStats:
    """As `LLM.benchmark_generate`."""
    (request,) = _requests(prompts, [prompt], length)
    stats, _ = _answered(engine, [request])
    return stats[0]


def generate_batch(
    engine: EngineProcess, prompts: Prompts, batch: Sequence[str | Sequence[int]], length: int
) -> BatchTimes:
    """As `LLM.benchmark_batch`."""
    if not batch:
        raise InvalidParameter("there is nothing to measure; give at least one prompt")
    requests = _requests(prompts, batch, length)
    stats, seconds = _answered(engine, requests)
    first, last = max(each[0] for each in seconds), min(each[-1] for each in seconds)
    return BatchTimes(
        n_prompt=sum(each.n_prompt for each in stats),
        n_cached=sum(each.n_cached for each in stats),
        n_generated=sum(each.n_generated for each in stats),
        first_token_s=tuple(each[0] for each in seconds),
        total_s=max(each[-1] for each in seconds),
        n_together=sum(first < at <= last for each in seconds for at in each),
        together_s=max(last - first, 0.0),
    )


def _requests(prompts: Prompts, batch: Sequence[str | Sequence[int]], length: int) -> list[Request]:
    """Greedy requests for exactly so many tokens. Raises InvalidParameter, ContextOverflow."""
    length = whole_number("generate_length", length, 1, 2**31)
    requests = []
    for prompt in batch:
        token_ids = prompts.tokenizer.encode(prompt) if isinstance(prompt, str) else prompts.checked_tokens(prompt)
        if len(token_ids) + length > prompts.n_ctx:
            tokens = f"{counted(len(token_ids), 'prompt token')} and {length} more"
            raise ContextOverflow(f"{tokens} do not fit into the context of {prompts.n_ctx}; load with a larger one")
        params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
        requests.append(prompts.of_text(token_ids, params, {}).request)
    return requests


def _answered(engine: EngineProcess, requests: Sequence[Request]) -> tuple[list[RunStats], list[list[float]]]:
    """Of each request its counts, and the seconds from sending until each of its tokens came."""
    arrived: SimpleQueue[tuple[float, Event]] = SimpleQueue()
    sent_s = time.perf_counter()
    for request in requests:
        engine.send(request, lambda event: arrived.put((time.perf_counter() - sent_s, event)))
    seconds: dict[int, list[float]] = {request.id: [] for request in requests}
    stats: dict[int, RunStats] = {}
    try:
        while len(stats) < len(requests):
            at, event = arrived.get()
            match event:
                case Token(request_id):
                    seconds[request_id].append(at)
                case Finished(request_id, _, counts):
                    stats[request_id] = counts
                case Failed(_, error):
                    raise error
    except BaseException:  # Ctrl-C, too
        for request in requests:
            engine.cancel(request.id)
        raise
    return [stats[request.id] for request in requests], [seconds[request.id] for request in requests]
