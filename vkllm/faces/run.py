"""`vkllm run`: loads a model and answers one prompt, or hands over to the chat.

It knows in which order things happen; not where prompts come from or how answers are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vkllm import LLM, InvalidParameter, VkllmError
from vkllm.faces.loading import tell_of_memory
from vkllm.faces.models import ensure_here
from vkllm.faces.prompt import whole_prompt
from vkllm.faces.sampling import FORMS
from vkllm.faces.terminal import complain, loading_bar, print_stats, show
from vkllm.store import local_model


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, besides sampling. loading: arguments of LLM (vkllm.faces.loading)."""

    model: str
    prompt: str | None = None
    files: Sequence[Path] = ()
    system: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    wants_stats: bool = False
    is_raw: bool = False


def run_model(options: RunOptions, sampling: dict[str, Any]) -> bool:
    """Answers the prompt, or chats if there is none and a person is there; False if Ctrl-C cut the answer.

    sampling: fields of SamplingParams by name, checked (vkllm.faces.sampling). Raises any VkllmError, also for an
    answer that ends before it has the form asked for.
    """
    if options.is_raw and options.system:
        raise InvalidParameter(
            "a system prompt (-sys) needs the chat template, which --raw leaves out; give one of them"
        )
    local_model(options.model)  # a name that stands for nothing is told before a prompt is read
    prompt = whole_prompt(options.prompt, options.files)
    if prompt is None:
        from vkllm.faces.chat import chat

        chat(options, sampling)
        return True
    with open_model(options.model, options.loading) as llm:
        if options.system and not llm.has_chat_template:
            complain("warning", f"{llm.name} has no chat template, so the system prompt (-sys) has no effect")
        if options.is_raw or not llm.has_chat_template:
            answer = llm.stream(prompt, **sampling)
        else:
            system = [{"role": "system", "content": options.system}] if options.system else []
            answer = llm.chat([*system, {"role": "user", "content": prompt}], stream=True, **sampling)
        tell_of_device(llm)  # after the request was taken: an error is one line alone
        is_complete = show(answer)
        generation = answer.result()
        if options.wants_stats:
            print_stats(llm, generation.stats)
        if generation.finish_reason == "length" and FORMS & sampling.keys():
            raise VkllmError(
                f"the answer was cut after {len(generation.token_ids)} tokens, before the form asked for was complete; "
                "give it more with -n or -c"
            )
        return is_complete


def open_model(name: str, loading: dict[str, Any]) -> LLM:
    """Loads a model with a progress bar, after asking whether to fetch one that is not here. Raises any VkllmError."""
    ensure_here(name)
    with loading_bar() as on_progress:
        return LLM(name, **loading, on_progress=on_progress)


def tell_of_device(llm: LLM) -> None:
    """Says on standard error what makes this model slow on this device, if anything does."""
    tell_of_memory(llm)
    if llm.is_cpu_device:
        complain("warning", f"{llm.device_name} is a Vulkan driver on the CPU, which is slow")
