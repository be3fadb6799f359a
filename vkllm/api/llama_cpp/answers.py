"""Answers in the shape of llama.cpp's own API: chunks, whole answers, timings and the settings that they tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vkllm.api.answer import Generation, Logprob, Piece
from vkllm.api.llama_cpp.probabilities import probabilities, sampled_probabilities
from vkllm.api.llama_cpp.requests import CompletionRequest
from vkllm.engine.events import PromptProgress, RunStats
from vkllm.engine.params import RANDOM_SEED, SamplingParams
from vkllm.engine.requests import Request
from vkllm.text.tokenizer import Tokenizer

_RANDOM = 2**32 - 1


class RunningTimes:
    """Counts and speeds of an answer that comes piece by piece. n_prompt: tokens of its prompt. start_s: when it was
    asked for (time.monotonic)."""

    def __init__(self, n_prompt: int, start_s: float) -> None:
        self.n_generated = 0
        self._n_prompt = n_prompt
        self._start_s = start_s
        self._first_s: float | None = None

    def count(self, piece: Piece) -> None:
        """Takes note of a piece that has come."""
        if self._first_s is None:
            self._first_s = time.monotonic()
        self.n_generated += len(piece.token_ids)

    def after(self, piece: Piece) -> dict[str, Any]:
        """The timings once a piece has come."""
        self.count(piece)
        assert self._first_s is not None
        prompt_s, generate_s = self._first_s - self._start_s, time.monotonic() - self._first_s
        return timings(RunStats(self._n_prompt, 0, self.n_generated, prompt_s, prompt_s, generate_s))


@dataclass
class CompletionAnswer:
    """One answer. index: among the answers of its request. request: as it was sent to the engine. start_s: when it was
    asked for (time.monotonic)."""

    asked: CompletionRequest
    index: int
    request: Request
    model: str
    tokenizer: Tokenizer
    n_ctx: int
    start_s: float = field(default_factory=time.monotonic)
    _times: RunningTimes = field(init=False)

    def __post_init__(self) -> None:
        self._times = RunningTimes(len(self.request.prompt_token_ids), self.start_s)

    def progress(self, progress: PromptProgress) -> dict[str, Any]:
        """A chunk that says how many tokens of the prompt were read."""
        return self._chunk("", []) | progress_fields(progress)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A part of the text."""
        added: dict[str, Any] = {}
        if piece.logprobs:
            added["completion_probabilities"] = self._probabilities(piece.logprobs)
        if self.asked.times_tokens:
            added["timings"] = self._times.after(piece)
        else:
            self._times.count(piece)
        return self._chunk(str(piece), piece.token_ids) | added

    def whole(self, generation: Generation, *, is_last_chunk: bool = False) -> dict[str, Any]:
        """The whole answer, or without its text the last chunk of a stream."""
        stats, n_prompt = generation.stats, len(self.request.prompt_token_ids)
        stop_type = "limit" if generation.finish_reason == "length" else "eos"
        is_full = n_prompt + stats.n_generated >= self.n_ctx and stop_type == "limit"
        made: dict[str, Any] = {
            "index": self.index,
            "content": "" if is_last_chunk else generation.text,
            "tokens": generation.token_ids if self.asked.returns_tokens and not is_last_chunk else [],
            "id_slot": max(self.asked.slot, 0),
            "stop": True,
            "model": self.model,
            "tokens_predicted": stats.n_generated,
            "tokens_evaluated": n_prompt,
            "generation_settings": generation_settings(
                self.request.params, self.asked.is_stream, self.tokenizer.stop_ids
            ),
            "prompt": self.tokenizer.decode(list(self.request.prompt_token_ids), skip_special=False),
            "has_new_line": "\n" in generation.text,
            "truncated": is_full or stats.n_shifts > 0,
            "stop_type": "word" if generation.stop_string is not None else stop_type,
            "stopping_word": generation.stop_string or "",
            "tokens_cached": n_prompt + max(stats.n_generated - 1, 0),
            "timings": timings(stats),
        }
        if generation.logprobs and not is_last_chunk:
            made["completion_probabilities"] = self._probabilities(generation.logprobs)
        return _only(made, self.asked.fields) if self.asked.fields else made

    def _probabilities(self, logprobs: Sequence[Logprob]) -> list[dict[str, Any]]:
        if self.asked.n_sampled is not None:
            return sampled_probabilities(logprobs, self.tokenizer, self.request.params, self.asked.n_sampled)
        return probabilities(logprobs, self.tokenizer)

    def _chunk(self, text: str, token_ids: Sequence[int]) -> dict[str, Any]:
        return {
            "index": self.index,
            "content": text,
            "tokens": list(token_ids),
            "stop": False,
            "id_slot": max(self.asked.slot, 0),
            "tokens_predicted": self._times.n_generated,
            "tokens_evaluated": len(self.request.prompt_token_ids),
        }


def progress_fields(progress: PromptProgress) -> dict[str, Any]:
    """What chunks of any kind say of the progress of a prompt."""
    run_s = progress.run_s if progress.n_processed > progress.n_cached else 0.0
    counts = {"total": progress.n_prompt, "cache": progress.n_cached, "processed": progress.n_processed}
    stats = RunStats(progress.n_processed, progress.n_cached, 0, run_s, 0.0, 0.0)
    return {"prompt_progress": {**counts, "time_ms": round(run_s * 1000)}, "timings": timings(stats)}


def timings(stats: RunStats) -> dict[str, Any]:
    """Counts and speeds. The first token comes with the prompt, so speed counts those after it."""
    n_prompt, n_steps = stats.n_prompt - stats.n_cached, max(stats.n_generated - 1, 0)
    prompt_ms, generate_ms = stats.prompt_s * 1000, stats.generate_s * 1000
    return {
        "cache_n": stats.n_cached,
        "prompt_n": n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(n_prompt, 1),
        "prompt_per_second": n_prompt / prompt_ms * 1000 if prompt_ms else 0.0,
        "predicted_n": stats.n_generated,
        "predicted_ms": generate_ms,
        "predicted_per_token_ms": generate_ms / n_steps if n_steps else 0.0,
        "predicted_per_second": n_steps / generate_ms * 1000 if generate_ms else 0.0,
    }


def generation_settings(
    params: SamplingParams, is_stream: bool = False, ends: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """The parameters of an answer under llama.cpp's names; samplers that vkllm has not are off. ends: end tokens."""
    seed = _RANDOM if params.seed in (None, RANDOM_SEED) else params.seed
    n_predict = -1 if params.max_tokens is None else params.max_tokens
    biases: list[dict[str, Any]] = [{"token": token, "bias": bias} for token, bias in params.biases.items()]
    if params.ignore_eos:
        biases += [{"token": token, "bias": None} for token in sorted(ends)]
    return {
        "seed": seed,
        "temperature": params.temperature,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "typical_p": 1.0,
        "repeat_last_n": params.penalty_window,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "dry_sequence_breakers": [],
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "stop": list(params.stop),
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": params.ignore_eos,
        "stream": is_stream,
        "logit_bias": biases,
        "n_probs": params.logprobs or 0,
        "min_keep": 0,
        "grammar": params.grammar or "",
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "speculative.types": "none",
        "timings_per_token": False,
        "post_sampling_probs": False,
        "backend_sampling": True,
        "lora": [],
    }


def _only(made: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The fields that are wanted; "generation_settings/n_predict" is a field of a field."""
    kept: dict[str, Any] = {}
    for path in fields:
        found: Any = made
        for name in path.split("/"):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None:
            kept[path] = found
    return kept
