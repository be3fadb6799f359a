"""What the commands print: streamed answers, errors, statistics, the progress bar.

It knows standard output, standard error and whether they are a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from vkllm.errors import VkllmError

if TYPE_CHECKING:
    from vkllm import LLM, RunStats, Stream


def complain(kind: str, message: object) -> None:
    """Writes one line to standard error. kind: "error", "warning" or "note"."""
    print(f"vkllm: {kind}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def show(answer: Stream) -> bool:
    """Prints an answer as it comes; Ctrl-C cancels it and makes this False."""
    is_complete = True
    with answer:
        try:
            for piece in answer:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            is_complete = False
        except VkllmError:
            print(flush=True)  # the error gets a line of its own
            raise
    print(flush=True)
    return is_complete


def print_stats(llm: LLM, stats: RunStats) -> None:
    """Counts and speeds of an answer, on standard error."""
    lines = {
        "device": llm.device_name,
        "model": f"{llm.path.name} ({llm.spec.architecture}, {llm.quantization}, context {llm.n_ctx})",
        "prompt": f"{stats.n_prompt} tokens ({stats.n_cached} cached), {stats.prompt_per_s:.2f} tok/s",
        "answer": f"{stats.n_generated} tokens, {stats.generate_per_s:.2f} tok/s, "
        f"the first after {stats.first_token_s:.2f} s",
    }
    if stats.n_shifts:
        lines["context"] = f"full {stats.n_shifts} time{'s' if stats.n_shifts > 1 else ''}, its middle dropped"
    for name, text in lines.items():
        print(f"{name:8}{text}", file=sys.stderr)


@contextmanager
def loading_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error while a model is fetched and loaded; nothing if that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening", total=None)

        def on_progress(what: str, done_bytes: int, total_bytes: int) -> None:
            if progress.tasks[0].description != what:
                progress.reset(task, description=what)
            progress.update(task, completed=done_bytes, total=total_bytes)

        yield on_progress


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends a command without a traceback, and a terminal that cannot show a character does not end it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    except KeyboardInterrupt:
        print(flush=True)
        raise typer.Exit(130) from None


def size(n_bytes: int, step: int = 1000) -> str:
    """A size for people: decimal for files, binary (step 1024) for memory."""
    units = ("B", "kB", "MB", "GB", "TB") if step == 1000 else ("B", "KiB", "MiB", "GiB", "TiB")
    amount, unit = float(n_bytes), 0
    while amount >= step and unit < len(units) - 1:
        amount, unit = amount / step, unit + 1
    return f"{amount:.1f} {units[unit]}" if unit and amount < 100 else f"{amount:.0f} {units[unit]}"


def print_json(value: object) -> None:
    """Prints a value as JSON for people and programs."""
    from json import dumps

    print(dumps(value, indent=2))
