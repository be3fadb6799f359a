"""Every Python snippet of README.md and docs/ runs, a page's in their order and in one namespace, with the real engine.

Lines that begin with `#> ` are what a block prints, all of it.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pages
import pytest
from machine import TIME_LIMIT_S, Machine
from pages import PAGES, ROOT, Snippet

pytestmark = [pytest.mark.gpu, pytest.mark.weights]
BOUNDS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def snippets(path: Path) -> list[Snippet]:
    return [each for each in pages.read(path).snippets if each.language == "python" and not each.not_run]


@pytest.mark.parametrize("path", [path for path in PAGES if snippets(path)], ids=lambda path: path.name)
def test_every_snippet_of_a_page_runs(path: Path, machine: Machine) -> None:
    process = subprocess.Popen(
        [sys.executable, __file__, path],
        env=machine.environment("real"),
        cwd=machine.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        timer = threading.Timer(4 * TIME_LIMIT_S, process.kill)
        timer.start()
        output, _ = process.communicate()
        timer.cancel()
    assert process.returncode == 0, output


def run(snippet: Snippet, namespace: dict[str, object]) -> None:
    """Raises what the snippet raises, and AssertionError where it prints something else than it says."""
    code = compile("\n" * (snippet.line - 1) + snippet.code, snippet.page, "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    wanted = "".join(re.findall(r"^#> (.*\n)", snippet.code, re.MULTILINE))
    if wanted:
        is_shown = doctest.OutputChecker().check_output(wanted, printed.getvalue(), BOUNDS)
        assert is_shown, f"{snippet.where} prints {printed.getvalue()!r}"


def test_a_snippet_that_raises_or_prints_something_else_is_found() -> None:
    def block(code: str) -> Snippet:
        return Snippet(ROOT / "README.md", 1, "python", code, None, None)

    run(block("one = 1\nprint(one)\n#> 1\n"), {})
    with pytest.raises(AssertionError, match="prints"):
        run(block("print(1)\n#> 2\n"), {})
    with pytest.raises(NameError):
        run(block("print(one)\n"), {})


def main(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets(path):
        start = time.monotonic()
        try:
            run(snippet, namespace)
            print(f"{snippet.where}: {time.monotonic() - start:.1f} s", flush=True)
        except BaseException:
            traceback.print_exc()
            sys.exit(f"{snippet.where} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
