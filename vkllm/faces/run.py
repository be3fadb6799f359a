"""`vkllm run`: loads a model and answers one prompt, or hands over to the chat.

It knows where the prompt comes from and in which order things happen; not how answers are made.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from vkllm import LLM, InvalidParameter, SamplingParams
from vkllm.faces.loading import tell_of_memory
from vkllm.faces.models import ensure_here
from vkllm.faces.terminal import complain, loading_bar, print_stats, show


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, besides sampling. loading: arguments of LLM (vkllm.faces.loading)."""

    model: str
    prompt: str | None
    system: str | None
    loading: dict[str, Any]
    wants_stats: bool
    is_raw: bool


def run_model(options: RunOptions, sampling: dict[str, Any]) -> bool:
    """Answers the prompt, or chats if there is none and a person is there; False if Ctrl-C cut the answer.

    sampling: fields of SamplingParams by name.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end the answer
            stream.reconfigure(errors="replace")
    SamplingParams(**sampling)  # a value out of its range is told before anything is loaded
    prompt = _whole_prompt(options.prompt)
    ensure_here(options.model)
    with loading_bar() as on_progress:
        llm = LLM(options.model, **options.loading, on_progress=on_progress)
    with llm:
        if prompt is None:
            from vkllm.faces.chat import chat

            _tell_of_device(llm)
            chat(llm, sampling, system=options.system, wants_stats=options.wants_stats)
            return True
        if options.is_raw or not llm.has_chat_template:
            answer = llm.stream(prompt, **sampling)
        else:
            system = [{"role": "system", "content": options.system}] if options.system else []
            answer = llm.chat([*system, {"role": "user", "content": prompt}], stream=True, **sampling)
        _tell_of_device(llm)  # after the request was taken: an error is one line alone
        is_complete = show(answer)
        if options.wants_stats:
            print_stats(llm, answer.result().stats)
        return is_complete


def _tell_of_device(llm: LLM) -> None:
    tell_of_memory(llm)
    if llm.is_cpu_device:
        complain("warning", f"{llm.device_name} is a Vulkan driver on the CPU, which is slow")


def _whole_prompt(prompt: str | None) -> str | None:
    """The prompt with piped standard input after it; None if there is neither."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    piped = sys.stdin.buffer.read().decode(errors="replace").strip()
    parts = [part for part in (prompt, piped) if part]
    if not parts:
        raise InvalidParameter("there is no prompt: give one as an argument or on standard input")
    return "\n\n".join(parts)
