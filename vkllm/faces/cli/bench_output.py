"""What `vkllm bench` prints: llama-bench's table, CSV, JSON and JSON lines.

Each function turns results into lines as they come. It knows the names and widths of columns, not how anything was
measured.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from vkllm.faces.cli.bench import Measured

# Title, width, whether text stands at the right. llama-bench's, then ours.
_COLUMNS = {
    "model": (30, False),
    "size": (10, True),
    "params": (10, True),
    "backend": (10, False),
    "ngl": (3, True),
    "n_cpu_moe": (10, True),
    "type_k": (10, False),
    "type_v": (10, False),
    "dev": (12, False),
    "ot": (10, False),
    "test": (15, True),
    "t/s": (20, True),
    "GB/s": (8, True),
    "% of read bandwidth": (19, True),
    "accepted": (13, True),
}


_OPTIONAL = {"n_cpu_moe", "type_k", "type_v", "dev", "ot", "accepted"}
"""Columns of parameters that have one only where they are not the default, as llama-bench has it."""


def markdown(results: Iterable[Measured], shown: Collection[str] = ()) -> Iterator[str]:
    """A table, then a line for each device. shown: those of the optional columns that it has: "n_cpu_moe", "type_k",
    "type_v", "dev", "ot" and "accepted"."""
    titles = [title for title in _COLUMNS if title not in _OPTIONAL or title in shown]
    yield _row(titles, titles)
    yield "|" + "|".join(f" {'-' * (_COLUMNS[title][0] - 1)}{':-'[not _COLUMNS[title][1]]} " for title in titles) + "|"
    devices: dict[str, None] = {}
    for fields, device in results:
        yield _row(titles, [_cell(title, fields) for title in titles])
        devices[device] = None
    yield ""
    yield from (f"device: {device}" for device in devices)


def case_name(fields: dict[str, Any]) -> str:
    """Such as pp512, tg128, pp512+tg128 or pp512 @ d4096."""
    parts = [f"{name}{fields[key]}" for name, key in (("pp", "n_prompt"), ("tg", "n_gen")) if fields[key]]
    return "+".join(parts) + (f" @ d{fields['n_depth']}" if fields["n_depth"] else "")


def _row(titles: list[str], cells: list[str]) -> str:
    padded = []
    for title, cell in zip(titles, cells, strict=True):
        width, is_right = _COLUMNS[title]
        padded.append(cell.rjust(width) if is_right else cell.ljust(width))
    return "| " + " | ".join(padded) + " |"


def _cell(title: str, fields: dict[str, Any]) -> str:
    match title:
        case "model":
            return str(fields["model_type"])
        case "size":
            mib = fields["model_size"] / 2**20
            return f"{mib:.2f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"
        case "params":
            millions = fields["model_n_params"] / 1e6
            return f"{millions:.2f} M" if millions < 1000 else f"{millions / 1000:.2f} B"
        case "backend":
            return str(fields["backends"])
        case "ngl":
            return str(fields["n_gpu_layers"])
        case "n_cpu_moe" | "type_k" | "type_v":
            return str(fields[title])
        case "ot":
            return str(fields["tensor_buft_overrides"])
        case "dev":
            return str(fields["devices"])
        case "test":
            return case_name(fields)
        case "t/s":
            return f"{fields['avg_ts']:.2f} ± {fields['stddev_ts']:.2f}"
        case "accepted":
            return f"{fields['n_accepted']}/{fields['n_drafted']}"
        case "GB/s":
            return "" if fields["gb_per_s"] is None else f"{fields['gb_per_s']:.2f}"
    return "" if fields["bandwidth_share"] is None else f"{100 * fields['bandwidth_share']:.1f}"


def comma_separated(results: Iterable[Measured]) -> Iterator[str]:
    """CSV with a header; like llama-bench's it has every field but the single samples, and quotes each value."""
    for i, (fields, _) in enumerate(results):
        plain = {name: value for name, value in fields.items() if not isinstance(value, list)}
        if i == 0:
            yield ",".join(plain)
        line = io.StringIO()
        values = [int(value) if isinstance(value, bool) else value for value in plain.values()]
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(values)
        yield line.getvalue()


def json_array(results: Iterable[Measured]) -> Iterator[str]:
    """One array of objects, each printed when it is there."""
    yield "["
    for i, (fields, _) in enumerate(results):
        text = json.dumps(fields, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        yield (", " if i else "  ") + text
    yield "]"


def json_lines(results: Iterable[Measured]) -> Iterator[str]:
    """One object a line."""
    for fields, _ in results:
        yield json.dumps(fields, ensure_ascii=False)


FORMATS: dict[str, Callable[[Iterable[Measured]], Iterator[str]]] = {
    "csv": comma_separated,
    "json": json_array,
    "jsonl": json_lines,
}
