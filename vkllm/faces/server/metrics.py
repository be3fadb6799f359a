"""What the server counts, and `/metrics` in the form that Prometheus reads.

Names that llama.cpp's server has are kept beside vkllm's own. It knows counts and texts, not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vkllm.engine.events import EngineStats
from vkllm.faces.server.counts import BUCKETS_S, Counts, Histogram
from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.models import Models, ServedModel, sum_of


async def metrics(request: Request) -> Response:
    """All counts as text."""
    state = request.app.state
    if not state.settings.has_metrics:
        raise HttpError(501, "this server has no metrics; start it with --metrics")
    answer = Response(text_of(state.counts, state.models), media_type="text/plain; version=0.0.4; charset=utf-8")
    answer.raw_headers.append((b"Process-Start-Time-Unix", str(state.counts.started_s).encode()))  # as llama.cpp has it
    return answer


def text_of(counts: Counts, models: Models) -> str:
    """The text that Prometheus reads."""
    lines: list[str] = []
    served = list(models.served)
    answers = [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(counts.answers.items())]
    _metric(lines, "vkllm_http_requests_total", "counter", "Requests that were answered.", answers)
    _metric(lines, "vkllm_http_requests_open", "gauge", "Requests that are being answered.", [({}, counts.n_open)])
    _histogram(lines, "vkllm_http_request_seconds", "Seconds from a request to the end of its answer.", counts.answer_s)
    _histogram(
        lines,
        "vkllm_first_token_seconds",
        "Seconds from a request to the first token of its answer.",
        counts.first_token_s,
    )
    for name, kind, what, value in _OF_MODELS:
        _metric(lines, name, kind, what, [({"model": model.name}, value(model)) for model in served])
    memory = [
        ({"model": model.name, "tier": str(tier.tier)}, tier.used_bytes)
        for model in served
        if model.is_loaded
        for tier in model.llm.llm.plan.tiers
    ]
    _metric(lines, "vkllm_memory_bytes", "gauge", "Bytes that a model takes, by where they lie.", memory)
    total = reduce(sum_of, (model.stats for model in served), EngineStats())
    for name, kind, what, of_stats in _OF_LLAMA_CPP:
        _metric(lines, f"llamacpp:{name}", kind, what, [({}, of_stats(total))])
    told, counts.told = counts.told, total
    for name, what, n_tokens, seconds in _SPEEDS:
        speed = _per(n_tokens(total) - n_tokens(told), seconds(total) - seconds(told))
        _metric(lines, f"llamacpp:{name}", "gauge", f"{what} since this was last asked for.", [({}, speed)])
    n_running = sum(min(model.n_users, model.n_parallel) for model in served)
    n_waiting = sum(max(model.n_users - model.n_parallel, 0) for model in served)
    _metric(lines, "llamacpp:requests_processing", "gauge", "Requests that run.", [({}, n_running)])
    _metric(lines, "llamacpp:requests_deferred", "gauge", "Requests that wait.", [({}, n_waiting)])
    return "\n".join(lines) + "\n"


def _per(n: float, whole: float) -> float:
    return n / whole if whole > 0 else 0.0


_OF_MODELS: tuple[tuple[str, str, str, Callable[[ServedModel], float]], ...] = (
    ("vkllm_model_loaded", "gauge", "Whether a model is loaded.", lambda model: int(model.is_loaded)),
    ("vkllm_model_requests", "gauge", "Requests that use a model or wait for it.", lambda model: model.n_users),
    ("vkllm_requests_total", "counter", "Prompts that were answered.", lambda model: model.stats.n_requests),
    ("vkllm_prompt_tokens_total", "counter", "Tokens of prompts.", lambda model: model.stats.n_prompt),
    (
        "vkllm_cached_tokens_total",
        "counter",
        "Tokens of prompts that were cached.",
        lambda model: model.stats.n_cached,
    ),
    ("vkllm_generated_tokens_total", "counter", "Tokens of answers.", lambda model: model.stats.n_generated),
    ("vkllm_prompt_seconds_total", "counter", "Seconds spent on prompts.", lambda model: model.stats.prompt_s),
    ("vkllm_generate_seconds_total", "counter", "Seconds spent on answers.", lambda model: model.stats.generate_s),
)
_OF_LLAMA_CPP: tuple[tuple[str, str, str, Callable[[EngineStats], float]], ...] = (
    ("prompt_tokens_total", "counter", "Tokens of prompts.", lambda stats: stats.n_prompt - stats.n_cached),
    ("prompt_tokens_cached_total", "counter", "Tokens of prompts that were cached.", lambda stats: stats.n_cached),
    ("prompt_seconds_total", "counter", "Seconds spent on prompts.", lambda stats: stats.prompt_s),
    ("tokens_predicted_total", "counter", "Tokens of answers.", lambda stats: stats.n_generated),
    ("tokens_predicted_seconds_total", "counter", "Seconds spent on answers.", lambda stats: stats.generate_s),
    ("n_decode_total", "counter", "Steps of the models.", lambda stats: round(stats.step_share)),
    (
        "n_busy_slots_per_decode",
        "gauge",
        "Requests in a step of a model.",
        lambda stats: _per(stats.n_steps, stats.step_share),
    ),
    ("n_tokens_max", "counter", "Tokens of the longest prompt with its answer.", lambda stats: stats.n_longest),
    ("spec_decode_num_drafts_total", "counter", "Drafts.", lambda stats: stats.n_drafts),
    ("spec_decode_num_draft_tokens_total", "counter", "Tokens that were drafted.", lambda stats: stats.n_drafted),
    (
        "spec_decode_num_accepted_tokens_total",
        "counter",
        "Tokens that were drafted and became part of answers.",
        lambda stats: stats.n_accepted,
    ),
)
_SPEEDS: tuple[tuple[str, str, Callable[[EngineStats], float], Callable[[EngineStats], float]], ...] = (
    (
        "prompt_tokens_seconds",
        "Tokens of prompts a second",
        lambda stats: stats.n_prompt - stats.n_cached,
        lambda stats: stats.prompt_s,
    ),
    (
        "predicted_tokens_seconds",
        "Tokens of answers a second",
        lambda stats: stats.n_generated,
        lambda stats: stats.generate_s,
    ),
)


def _metric(lines: list[str], name: str, kind: str, what: str, values: Iterable[tuple[dict[str, str], float]]) -> None:
    lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{_labels(labels)} {value}" for labels, value in values]


def _histogram(lines: list[str], name: str, what: str, histogram: Histogram) -> None:
    lines += [f"# HELP {name} {what}", f"# TYPE {name} histogram"]
    bounds = [f"{bound:g}" for bound in BUCKETS_S]
    lines += [f'{name}_bucket{{le="{bound}"}} {n}' for bound, n in zip(bounds, histogram.counts, strict=True)]
    lines.append(f'{name}_bucket{{le="+Inf"}} {histogram.n}')
    lines += [f"{name}_sum {histogram.sum_s:.6f}", f"{name}_count {histogram.n}"]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


ROUTES = [Route("/metrics", metrics)]
