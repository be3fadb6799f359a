"""Programs that are run to be measured, each in a process of its own, and the tables of what they found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def output(command: Sequence[str], left_s: float, folder: Path, **environment: str) -> tuple[str, str | None]:
    """Standard output of a program that runs in a folder for left_s seconds at most, and what went wrong: None, or the
    last line of its complaint. environment: what differs from this process's."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(left_s, 1), env=os.environ | environment, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return "", f"did not end within {left_s:.0f} s"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return done.stdout, None


def found_by(command: Sequence[str], left_s: float, folder: Path, **environment: str) -> dict[str, Any]:
    """The object that is a program's last line, as JSON; {"error": ...} where it failed."""
    printed, error = output(command, left_s, folder, **environment)
    found: dict[str, Any] = {"error": error} if error else json.loads(printed.splitlines()[-1])
    return found


def keep(path: Path | None, row: Mapping[str, Any]) -> None:
    """Appends a row to a file, if there is one, as a line of JSON."""
    if path is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
