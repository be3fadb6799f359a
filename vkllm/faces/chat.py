"""A chat in the terminal: on the whole screen (vkllm.faces.tui) where there is one, else line by line, here.

The plain chat knows the conversation so far and a few commands.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from vkllm import LLM, DeviceLost, DeviceTimeout, RequestError, SamplingParams
from vkllm.faces.terminal import complain, print_stats, show

_HELP = """\
/clear   forget the conversation
/help    show this
/bye     leave (so does Ctrl-D)
\"\"\"      begin and end a message of several lines
Ctrl-C   stop the answer"""


def has_screen() -> bool:
    """Whether a person sits at a terminal that can be drawn on."""
    is_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return is_terminal and os.environ.get("TERM", "dumb") != "dumb"


def start_chat(
    model: str | None = None,
    *,
    sampling: dict[str, Any],
    loading: dict[str, Any] | None = None,
    system: str | None = None,
    is_plain: bool = False,
) -> bool:
    """Chats until the user leaves; False if Ctrl-C cut an answer to piped input.

    Without a model, the last one or the user's choice on a screen, the default model elsewhere. sampling: fields of
    SamplingParams by name. loading: arguments of LLM (vkllm.faces.loading).
    """
    loading = dict(loading or {})
    SamplingParams(**sampling)  # a value out of its range is told before the screen is taken
    if has_screen() and not is_plain:
        from vkllm.faces.tui.app import ChatOptions, run_chat

        run_chat(ChatOptions(model, system, loading.pop("n_ctx", None), loading.pop("device", None), sampling), loading)
        return True
    from vkllm.faces.run import RunOptions, run_model

    return run_model(RunOptions(model or "smollm2", None, system, loading, False, False), sampling)


def chat(llm: LLM, sampling: dict[str, Any], *, system: str | None, wants_stats: bool) -> None:
    """Reads messages and answers them until the user leaves. sampling: fields of SamplingParams by name."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    print(f"{llm.path.stem} on {llm.device_name}. /help lists the commands.")
    while True:
        try:
            text = _read_message()
        except KeyboardInterrupt:
            print("\nPress Ctrl-D or type /bye to leave.")
            continue
        except EOFError:
            print()
            return
        match text.strip():
            case "":
                continue
            case "/bye":
                return
            case "/clear":
                messages = list(start)
                print("The conversation is forgotten.")
                continue
            case "/help" | "/?":
                print(_HELP)
                continue
        messages.append({"role": "user", "content": text})
        try:
            answer = llm.chat(messages, stream=True, **sampling)
            show(answer)
            generation = answer.result()
        except (RequestError, DeviceLost, DeviceTimeout) as error:
            # The conversation goes on without the message that could not be answered.
            messages.pop()
            complain("error", error)
            continue
        messages.append({"role": "assistant", "content": generation.text})
        if wants_stats:
            print_stats(llm, generation.stats)


def _read_message() -> str:
    text = input(">>> ")
    if not text.startswith('"""'):
        return text
    lines = [text[3:]]
    while not lines[-1].endswith('"""'):
        lines.append(input("... "))
    return "\n".join(lines)[:-3].strip("\n")
