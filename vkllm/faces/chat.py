"""A chat in the terminal: on the whole screen (vkllm.faces.tui) where there is one, else line by line, here.

The plain chat reads messages and shows answers; its commands are in vkllm.faces.chat_commands.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from vkllm import VkllmError
from vkllm.faces.chat_commands import Session, is_command, run_command
from vkllm.faces.run import RunOptions, run_model, tell_of_device
from vkllm.faces.terminal import complain, is_terminal, print_stats, show

_QUOTES = '"""'


def has_screen() -> bool:
    """Whether a person sits at a terminal that can be drawn on."""
    return all(map(is_terminal, (sys.stdin, sys.stdout, sys.stderr))) and os.environ.get("TERM", "dumb") != "dumb"


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
    SamplingParams by name, checked (vkllm.faces.sampling). loading: arguments of LLM (vkllm.faces.loading).
    """
    loading = dict(loading or {})
    if has_screen() and not is_plain:
        from vkllm.faces.tui.app import ChatOptions, run_chat

        run_chat(ChatOptions(model, system, loading.pop("n_ctx", None), loading.pop("device", None), sampling), loading)
        return True
    return run_model(RunOptions(model or "smollm2", system=system, loading=loading), sampling)


def chat(options: RunOptions, sampling: dict[str, Any]) -> None:
    """Reads messages and answers them until the user leaves. sampling: fields of SamplingParams by name."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    with contextlib.closing(Session(options, sampling)) as session:
        tell_of_device(session.llm)
        print(f"{session.llm.path.stem} on {session.llm.device_name}. /help lists the commands.")
        while True:
            try:
                text = _read_message()
                if not text.strip():
                    continue
                if not is_command(text):
                    _answer(session, text)
                elif not run_command(session, text):
                    return
            except KeyboardInterrupt:
                print("\nPress Ctrl-D or type /bye to leave.")
            except EOFError:
                print()
                return
            except VkllmError as error:
                complain("error", error)


def _answer(session: Session, text: str) -> None:
    """Answers a message. Where that fails, the conversation is as if it had not been sent. Raises any VkllmError."""
    session.messages.append({"role": "user", "content": text})
    try:
        answer = session.llm.chat(session.prompt_messages, stream=True, **session.sampling)
        show(answer)
        generation = answer.result()
    except (VkllmError, KeyboardInterrupt):
        session.messages.pop()
        raise
    session.messages.append({"role": "assistant", "content": generation.text})
    if session.wants_stats:
        print_stats(session.llm, generation.stats)


def _read_message() -> str:
    """A line, or the lines between two \"""; a command may come before them, as in /set system \"""..."""
    text = input(">>> ")
    head, quotes, rest = text.partition(_QUOTES)
    if not quotes or (head.strip() and not is_command(head)):
        return text
    lines = [rest]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(input("... "))
    return head + "\n".join(lines).rstrip().removesuffix(_QUOTES).strip("\n")
