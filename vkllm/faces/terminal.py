"""What the commands print: streamed answers, errors, statistics, the progress bar; and how they end.

It knows standard output, standard error and whether they are a terminal. Standard output has what was asked for and
nothing else; colours and progress are for terminals, and NO_COLOR turns the colours off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import typer

from vkllm.errors import VkllmError
from vkllm.faces.thoughts import KeptText, Thoughts
from vkllm.sizes import size as size

if TYPE_CHECKING:
    from vkllm import LLM, RunStats, Stream
    from vkllm.faces.remote import RemoteAnswer

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""
NOBODY_READS = 141
"""The exit code where standard output was closed, as by `head`: 128 and the number of SIGPIPE."""
_VISIBLE = (
    {n: f"^{chr(n ^ 0x40)}" for n in (*range(0x20), 0x7F) if chr(n) not in "\n\t"}
    | {n: f"<{n:02X}>" for n in range(0x80, 0xA0)}
    | {n: f"<U+{n:04X}>" for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
)
"""Control characters -> how they are shown: those of ASCII, the eight-bit ones, and those that change the direction."""
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sees it; a stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def has_colours(stream: TextIO | None) -> bool:
    """Whether it is a terminal that shows colours, and nobody asked for none (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def visible(text: str) -> str:
    """The text as a terminal can show it without obeying it: ^[ for an escape character, and the like.

    A model's answer, its file or a name may hold sequences that clear the screen, write the clipboard or turn the text
    around. Line ends and tabs stay. Each character stands for itself, so a text may come in pieces.
    """
    return text.translate(_VISIBLE)


def say(text: str = "", end: str = "\n") -> None:
    """Prints to standard output text that is not all vkllm's own: made visible on a terminal, as it is in a pipe."""
    print(visible(text) if is_terminal(sys.stdout) else text, end=end, flush=True)


def complain(kind: str, message: object) -> None:
    """Writes one line to standard error. kind: "error", "warning" or "note"."""
    if sys.stderr is not None:
        head = f"vkllm: {kind}:"
        if has_colours(sys.stderr):
            head = typer.style(head, fg=_COLOURS[kind], bold=True)
        print(f"{head} {visible(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def show(answer: Stream | RemoteAnswer, thoughts: Thoughts = "on a terminal") -> bool:
    """Prints an answer as it comes; Ctrl-C cancels it and makes this False."""
    is_complete = True
    is_thinking = False
    is_shown = thoughts == "on a terminal" and is_terminal(sys.stdout)
    whole = KeptText() if thoughts == "printed" else None
    with answer:
        try:
            for piece in answer:
                if whole is not None:
                    say(whole.add(piece.reasoning, piece), end="")
                    continue
                if piece.reasoning and is_shown:
                    _show_reasoning(piece.reasoning, is_first=not is_thinking)
                    is_thinking = True
                if piece:
                    say("\n\n" * is_thinking + piece, end="")
                    is_thinking = False
        except KeyboardInterrupt:
            is_complete = False
        except VkllmError:
            print(flush=True)  # the error gets a line of its own
            raise
    print(flush=True)
    return is_complete


def _show_reasoning(text: str, *, is_first: bool) -> None:
    """Prints some of the model's reasoning to the terminal."""
    text = visible("Thinking…\n" * is_first + text)
    print(typer.style(text, dim=True) if has_colours(sys.stdout) else text, end="", flush=True)


def file_title(llm: LLM) -> str:
    """The name of a model's file; the model's own where the file is called by its sha256, as ollama's are."""
    return llm.path.name if llm.path.suffix == ".gguf" else llm.name


def print_load_times(llm: LLM) -> None:
    """Where the seconds of loading went, on standard error."""
    if sys.stderr is None:
        return
    seconds = llm.load_times
    text_s = seconds.pop("text")
    parts = ", ".join(f"{part} {spent:.2f}" for part, spent in seconds.items())
    print(f"loading {sum(seconds.values()):.2f} s ({parts}; text meanwhile {text_s:.2f})", file=sys.stderr)


def print_stats(llm: LLM, stats: RunStats) -> None:
    """Counts and speeds of an answer, on standard error."""
    if sys.stderr is None:
        return
    lines = {
        "device": llm.device_name,
        "model": f"{file_title(llm)} ({llm.spec.architecture}, {llm.quantization}, context {llm.n_ctx})",
        "prompt": f"{counted(stats.n_prompt, 'token')} ({stats.n_cached} cached){_speed(stats.prompt_per_s)}",
        "answer": f"{counted(stats.n_generated, 'token')}{_speed(stats.generate_per_s)}",
    }
    if stats.n_generated:
        lines["answer"] += f", the first after {stats.first_token_s:.2f} s"
    if stats.n_drafted:
        lines["drafts"] = f"{stats.n_accepted} of {counted(stats.n_drafted, 'token')} accepted"
    if stats.n_shifts:
        lines["context"] = f"full {counted(stats.n_shifts, 'time')}, its middle dropped"
    for name, text in lines.items():
        print(visible(f"{name:8}{text}"), file=sys.stderr)


def _speed(per_s: float) -> str:
    """A speed at the end of a line; nothing where none was measured."""
    return f", {per_s:.2f} tok/s" if per_s else ""


@contextmanager
def loading_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error while a model is fetched and loaded; nothing if that is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(DownloadColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.total else Text()  # and not 0 of ? bytes

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Amount(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening", total=None)

        def on_progress(what: str, done_bytes: int, total_bytes: int) -> None:
            what = visible(what)
            if progress.tasks[0].description != what:
                progress.reset(task, description=what)
            progress.update(task, completed=done_bytes, total=total_bytes or None)

        yield on_progress


@contextmanager
def ending() -> Iterator[None]:
    """Ends a command without a traceback after Ctrl-C, and where nobody reads its output any more.

    A terminal that cannot show a character does not end it either.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here, so that it is not too late for the next lines
    except KeyboardInterrupt:
        if is_terminal(sys.stderr):
            print(file=sys.stderr, flush=True)  # behind the ^C
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        write_nowhere(sys.stdout, sys.stderr)
        raise typer.Exit(NOBODY_READS) from None


def write_nowhere(*streams: TextIO | None) -> None:
    """What is still in the buffers goes nowhere, instead of failing again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            os.dup2(nowhere, stream.fileno())


def counted(n: int, word: str) -> str:
    """A number with its word: "1 token", "2 tokens"."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def enumerated(words: Sequence[str]) -> str:
    """Words as in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def print_json(value: object) -> None:
    """Prints a value as JSON for people and programs."""
    from json import dumps

    print(dumps(value, indent=2))
