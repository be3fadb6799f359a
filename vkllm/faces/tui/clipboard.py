"""Text into the clipboard, by programs that say whether they could. The terminal itself (OSC 52) never says.

It knows environments and programs, not the screen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

_TIMEOUT_S = 3.0
_MOST_OF_A_TERMINAL = 74_000  # bytes that xterm takes; others take more


def copy_by_program(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a program took it: tmux, which passes it on to its own terminal, or on this machine the desktop's."""
    for name, *arguments in _programs(environment):
        if (program := shutil.which(name, path=environment.get("PATH"))) is None:
            continue
        try:
            subprocess.run(
                [program, *arguments],
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return True
    return False


def terminal_doubt(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Why the terminal may not have taken the text, "" if there is no reason to think so."""
    if environment.get("TERM") == "linux":
        return "This terminal has no clipboard"
    if environment.get("TERM_PROGRAM") == "Apple_Terminal" or "VTE_VERSION" in environment:
        return "This terminal may not take what programs copy"
    if "TMUX" in environment:
        return "tmux may not pass on what programs copy (set -g set-clipboard on)"
    if len(text.encode()) > _MOST_OF_A_TERMINAL:
        return "Terminals may not take so much at once"
    return ""


def _programs(environment: Mapping[str, str]) -> list[list[str]]:
    """Those that reach the person's clipboard; a desktop's does not if the person sits at the other end of ssh."""
    programs = []
    if "TMUX" in environment:
        programs.append(["tmux", "load-buffer", "-w", "-"])
    if "SSH_CONNECTION" not in environment and "SSH_TTY" not in environment:
        if sys.platform == "darwin":
            programs.append(["pbcopy"])
        elif sys.platform == "win32":
            programs.append(["clip"])
        if "WAYLAND_DISPLAY" in environment:
            programs.append(["wl-copy"])
        if "DISPLAY" in environment:
            programs += [["xclip", "-selection", "clipboard"], ["xsel", "-ib"]]
    return programs
