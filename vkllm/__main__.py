"""`python -m vkllm` is the command `vkllm`, and this is where both begin.

Python prints a traceback if Ctrl-C comes while it imports, which takes most of the time of a short command. So until
the command line is there, Ctrl-C ends the process at once, with the exit code that it has everywhere.
"""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line; it ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))
    from vkllm.faces.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
