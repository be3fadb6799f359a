"""`vkllm run --server URL`: asks a server that runs already, so that no model is loaded here.

It knows the terminal; the answer comes from `vkllm.faces.remote`.
"""

from __future__ import annotations

import sys
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.checks import check_form, messages_of
from vkllm.faces.cli.opening import RunOptions
from vkllm.faces.prompt import whole_prompt
from vkllm.faces.remote import RemoteAnswer, Server
from vkllm.faces.terminal import counted, show, visible


def run_on_server(server: Server, options: RunOptions, sampling: dict[str, Any]) -> bool:
    """Prints the answer to a prompt; False if Ctrl-C cut it. Raises VkllmError.

    sampling: fields of SamplingParams by name, checked (vkllm.faces.sampling).
    """
    if options.is_raw and options.system:
        raise InvalidParameter("a system prompt (-sys) needs a chat template, which --raw leaves out; give one of them")
    check_form(sampling)
    prompt = whole_prompt(options.prompt, options.files)
    if prompt is None:
        raise InvalidParameter("--server answers a prompt; give one, or chat with `vkllm chat --server`")
    body: dict[str, Any] = {**sampling, **({"model": str(options.model)} if options.model else {})}
    body |= {"prompt": prompt} if options.is_raw else {"messages": messages_of(prompt, options.system)}
    answer = RemoteAnswer(server, body).begin()
    is_complete = show(answer, options.thoughts)
    if options.wants_stats and sys.stderr is not None:
        for title, text in _stats(server, answer).items():
            print(visible(f"{title:8}{text}"), file=sys.stderr)
    return is_complete


def _stats(server: Server, answer: RemoteAnswer) -> dict[str, str]:
    """Counts and speeds of an answer, as far as the server tells them."""
    n_cached = (answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    prompt = f"{counted(answer.usage.get('prompt_tokens', 0), 'token')} ({n_cached} cached)"
    generated = counted(answer.usage.get("completion_tokens", 0), "token")
    return {
        "server": server.url,
        "model": answer.model,
        "prompt": prompt + _speed(answer.timings.get("prompt_per_second")),
        "answer": generated + _speed(answer.timings.get("predicted_per_second")),
    }


def _speed(per_s: Any) -> str:
    return f", {per_s:.2f} tok/s" if isinstance(per_s, int | float) and per_s > 0 else ""
