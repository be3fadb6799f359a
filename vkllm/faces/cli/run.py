"""`vkllm run`: loads a model and answers one prompt, or hands over to the chat.

It knows in which order things happen; not where prompts come from or how answers are made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vkllm import InvalidParameter, VkllmError
from vkllm.faces.cli.checks import check_form, check_room, messages_of
from vkllm.faces.cli.line_chat import chat_by_line
from vkllm.faces.cli.opening import RunOptions, open_model, tell_of_device
from vkllm.faces.prompt import whole_prompt
from vkllm.faces.sampling import FORMS
from vkllm.faces.terminal import complain, counted, print_load_times, print_stats, show
from vkllm.store import look_up


def run_model(options: RunOptions, sampling: dict[str, Any]) -> bool:
    """Answers the prompt, or chats if there is none and a person is there; False if Ctrl-C cut the answer.

    sampling: fields of SamplingParams by name, checked (vkllm.faces.sampling). Raises any VkllmError, also for an
    answer that ends before it has the form asked for.
    """
    if options.is_raw and options.system:
        raise InvalidParameter(
            "a system prompt (-sys) needs the chat template, which --raw leaves out; give one of them"
        )
    model = look_up(options.model)  # a name that stands for nothing is told before a prompt is read
    check_form(sampling)
    prompt = whole_prompt(options.prompt, options.files)
    if prompt is None:
        chat_by_line(replace(options, model=model), sampling)
        return True
    model = check_room(model, options.loading.get("n_ctx"), prompt, options.system, sampling, is_raw=options.is_raw)
    with open_model(model, options.loading) as llm:
        if options.system and not llm.has_chat_template:
            complain("warning", f"{llm.name} has no chat template, so the system prompt (-sys) has no effect")
        if options.is_raw or not llm.has_chat_template:
            answer = llm.stream(prompt, **sampling)
        else:
            answer = llm.chat(messages_of(prompt, options.system), stream=True, **sampling)
        tell_of_device(llm)  # after the request was taken: an error is one line alone
        is_complete = show(answer, options.thoughts)
        generation = answer.result()
        if options.wants_stats:
            print_stats(llm, generation.stats)
            print_load_times(llm)
        if generation.finish_reason == "length" and FORMS & sampling.keys():
            length = counted(len(generation.token_ids), "token")
            raise VkllmError(
                f"the answer was cut after {length}, before the form asked for was complete; give it more with -n or -c"
            )
        return is_complete
