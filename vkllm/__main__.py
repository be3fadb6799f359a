"""`python -m vkllm` is the command `vkllm`, and this is where both begin.

Python prints a traceback if Ctrl-C comes while it imports, which takes most of the time of a short command. So until
the command line is there, Ctrl-C ends the process at once, with the exit code that it has everywhere.
"""

import _signal  # type: ignore[import-not-found]  # `signal` itself takes milliseconds to import
import os
import sys

_INTERRUPTED = 130

_NO_ENGINE = frozenset(("-h", "--help", "--server"))
"""Options with which `vkllm run` loads no model."""


def main() -> None:
    """Runs the command line; it ends the process."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where a shell has it ignored
        _signal.signal(_signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))
    if sys.argv[1:2] == ["run"] and _NO_ENGINE.isdisjoint(option.partition("=")[0] for option in sys.argv):
        from vkllm.engine.process.child import start_ahead

        start_ahead()
    from vkllm.faces.cli.app import main as run

    run()


if __name__ == "__main__":
    # Python has put the current folder first, and a json.py beside a downloaded model would run; the command `vkllm`
    # and `python -P -m vkllm` do not have it there at all.
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    main()
