"""`vkllm run --server URL`: asks a server that runs already, so that no model is loaded here.

It knows the terminal; the answer comes from `vkllm.faces.remote`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.checks import check_form, messages_of
from vkllm.faces.cli.line_chat import talk
from vkllm.faces.cli.line_remote import RemoteChat, print_remote_stats
from vkllm.faces.cli.opening import RunOptions
from vkllm.faces.prompt import whole_prompt
from vkllm.faces.remote import RemoteAnswer, Server
from vkllm.faces.terminal import show


def run_on_server(server: Server, options: RunOptions, sampling: dict[str, Any]) -> bool:
    """Answers the prompt, or chats if there is none and a person is there; False if Ctrl-C cut the answer.

    sampling: fields of SamplingParams by name, checked (vkllm.faces.sampling). Raises VkllmError.
    """
    if options.is_raw and options.system:
        raise InvalidParameter("a system prompt (-sys) needs a chat template, which --raw leaves out; give one of them")
    check_form(sampling)
    prompt = whole_prompt(options.prompt, options.files)
    if prompt is None:
        with contextlib.closing(RemoteChat(server, options, sampling)) as chat:
            talk(chat)
        return True
    body: dict[str, Any] = {**sampling, **({"model": str(options.model)} if options.model else {})}
    body |= {"prompt": prompt} if options.is_raw else {"messages": messages_of(prompt, options.system)}
    answer = RemoteAnswer(server, body).begin()
    is_complete = show(answer, options.thoughts)
    if options.wants_stats:
        print_remote_stats(server, answer)
    return is_complete
