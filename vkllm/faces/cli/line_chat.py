"""A chat in the terminal, line by line: reads messages and shows answers. Its commands are in `line_commands.py`."""

from __future__ import annotations

import contextlib
from typing import Any

from vkllm import VkllmError
from vkllm.faces.cli.line_commands import is_command, run_command
from vkllm.faces.cli.line_local import LineChat
from vkllm.faces.cli.line_state import PlainChat
from vkllm.faces.cli.opening import RunOptions, tell_of_device
from vkllm.faces.terminal import complain, say

_QUOTES = '"""'


def chat_by_line(options: RunOptions, sampling: dict[str, Any]) -> None:
    """Reads messages and answers them until the user leaves. sampling: fields of SamplingParams by name."""
    with contextlib.closing(LineChat(options, sampling)) as chat:
        tell_of_device(chat.llm)
        talk(chat)


def talk(chat: PlainChat) -> None:
    """Reads messages and answers them until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    say(f"{chat.title}. /help lists the commands.")
    while True:
        try:
            text = _read_message()
            if not text.strip():
                continue
            if not is_command(text):
                _answer(chat, text)
            elif not run_command(chat, text):
                return
        except KeyboardInterrupt:
            print("\nPress Ctrl-D or type /bye to leave.")
        except EOFError:
            print()
            return
        except VkllmError as error:
            complain("error", error)


def _answer(chat: PlainChat, text: str) -> None:
    """Answers a message. Where that fails, the conversation is as if it had not been sent. Raises any VkllmError."""
    chat.messages.append({"role": "user", "content": text})
    try:
        content = chat.answer()
    except (VkllmError, KeyboardInterrupt):
        chat.messages.pop()
        raise
    chat.messages.append({"role": "assistant", "content": content})


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
