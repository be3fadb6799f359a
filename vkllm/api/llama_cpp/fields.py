"""Fields that llama.cpp's server takes in requests of any kind, OpenAI's too, and what becomes of them here.

What they ask for is done, or refused by name; those that change no answer, such as id_slot, are taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.parameters import truth, whole_number

_OWN_SAMPLERS: dict[str, dict[str, float]] = {
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "temperature": {"temperature": 1.0},
}
"""vkllm's samplers in their order, and the values with which each does nothing."""
_OTHER_SAMPLERS = ("dry", "top_n_sigma", "typ_p", "xtc", "infill", "adaptive_p")
_LETTERS = {"e": "penalties", "k": "top_k", "p": "top_p", "m": "min_p", "t": "temperature", "d": "dry", "y": "typ_p",
            "s": "top_n_sigma", "x": "xtc", "i": "infill", "a": "adaptive_p"}  # fmt: skip
_SAMPLERS = f"vkllm's samplers are {', '.join(_OWN_SAMPLERS)}, in this order"

_IS_OFF: dict[str, Callable[[float], bool]] = {
    "mirostat": lambda value: value == 0,
    "dry_multiplier": lambda value: value <= 0,
    "xtc_probability": lambda value: value <= 0,
    "typical_p": lambda value: value >= 1,
    "typ_p": lambda value: value >= 1,
    "top_n_sigma": lambda value: value <= 0,
    "dynatemp_range": lambda value: value <= 0,
    "adaptive_target": lambda value: value < 0,
}
"""Fields that switch a sampler on which vkllm has not, and the values with which they do not."""

_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


def refuse_what_is_not_here(body: Mapping[str, Any]) -> None:
    """Raises InvalidParameter for samplers that vkllm has not, and for adapters."""
    for name, is_off in _IS_OFF.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter(f"{name} must be a number, not {value!r:.60}")
        if not is_off(value):
            raise InvalidParameter(f"{name} is not in vkllm: leave it out; {_SAMPLERS}")
    adapters = body.get("lora")
    if adapters is None:
        return
    if not isinstance(adapters, list) or not all(isinstance(each, Mapping) for each in adapters):
        raise InvalidParameter("lora must be a list of objects with id and scale")
    if any(each.get("scale") != 0 for each in adapters):
        raise InvalidParameter("lora is not in vkllm: take a model that the adapter is merged into")


def samplers_left_out(body: Mapping[str, Any]) -> dict[str, float]:
    """Our options that switch off what a request's list of samplers leaves out. Raises InvalidParameter."""
    given = body.get("samplers")
    if given is None:
        return {}
    names = [_LETTERS.get(letter, letter) for letter in given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidParameter("samplers must be a list of names")
    for name in names:
        if name not in _OWN_SAMPLERS and name not in _OTHER_SAMPLERS:
            raise InvalidParameter(f"samplers must be names that vkllm knows, not {name!r:.40}; {_SAMPLERS}")
    own = [name for name in names if name in _OWN_SAMPLERS]
    if own != [name for name in _OWN_SAMPLERS if name in own]:
        raise InvalidParameter(f"samplers must keep their order; {_SAMPLERS}")
    return {field: value for name in _OWN_SAMPLERS if name not in own for field, value in _OWN_SAMPLERS[name].items()}


def uncached_origin(body: Mapping[str, Any]) -> str | None:
    """An origin of which nothing is cached, where a request wants all of its prompt to be read. Raises
    InvalidParameter."""
    is_cached = body.get("cache_prompt")
    return None if is_cached is None or truth("cache_prompt", is_cached) else f"uncached {uuid.uuid4().hex}"


def tokens_to_predict(n_predict: Any) -> int:
    """The limit of an answer's tokens that n_predict sets; -1: none. Its 0 is 1 here. Raises InvalidParameter."""
    return whole_number("n_predict", n_predict, -1, 2**31, also=", or -1 for no limit") or 1


def openai_fields(body: Mapping[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """A body of OpenAI's with llama.cpp's fields as what vkllm calls the same. Raises InvalidParameter.

    A list of biases stays one, for it may name texts, which only a tokenizer knows.
    """
    refuse_what_is_not_here(body)
    if body.get("post_sampling_probs"):
        raise InvalidParameter("post_sampling_probs is for /completion; leave it out here")
    whole_number("id_slot", body.get("id_slot") or 0, -1)
    left_out = samplers_left_out(body)
    made = {**body, **left_out}
    if "repetition_penalty" in left_out:
        made.pop("repeat_penalty", None)  # its other name
    if body.get("n_predict") is not None:
        made["max_tokens"] = tokens_to_predict(body["n_predict"])
        made.pop("max_completion_tokens", None)
    if body.get("repeat_last_n") is not None:
        made["penalty_window"] = whole_number("repeat_last_n", body["repeat_last_n"], -1, 2**31)
    if body.get("n_probs"):
        n_probs = whole_number("n_probs", body["n_probs"], 0, 1000)
        made |= {"logprobs": True, "top_logprobs": n_probs} if is_chat else {"logprobs": n_probs}
    if (origin := uncached_origin(body)) is not None:
        made["origin"] = origin
    return made


def thinks_in_content(body: Mapping[str, Any], *, is_stream: bool) -> bool:
    """Whether the reasoning of a chat is to stay in the content, in tags. Raises InvalidParameter."""
    given = body.get("reasoning_format")
    if given is not None and given not in _REASONING_FORMATS:
        raise InvalidParameter(f"reasoning_format must be one of {', '.join(_REASONING_FORMATS)}, not {given!r:.40}")
    return given == "none" or (given == "deepseek-legacy" and is_stream)


def thinking_variables(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a budget of tokens for reasoning tells the chat template: with none there is no thinking; how long it is
    otherwise is the model's own affair. Raises InvalidParameter."""
    budgets = [
        whole_number(name, body[name], -1, 2**31)
        for name in ("thinking_budget_tokens", "reasoning_budget_tokens")
        if body.get(name) is not None
    ]
    return {"enable_thinking": False} if 0 in budgets else {}
