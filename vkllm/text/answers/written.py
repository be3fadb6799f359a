"""Calls of tools as a model writes them, for chat templates that leave them out of a conversation.

The markers are the template's text, so they become control tokens; all else is content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vkllm.text.messages import arguments_as_mapping
from vkllm.text.templates import marked

Functions = Sequence[Mapping[str, Any]]
"""Names and arguments, these as mappings or as JSON text."""


def _in_json(function: Mapping[str, Any]) -> str:
    called = {"name": function.get("name"), "arguments": arguments_as_mapping(function.get("arguments") or {})}
    return json.dumps(called, ensure_ascii=False)


def _in_python(function: Mapping[str, Any]) -> str:
    arguments = arguments_as_mapping(function.get("arguments") or {})
    items = arguments.items() if isinstance(arguments, Mapping) else [("arguments", arguments)]
    return f"{function.get('name')}({', '.join(f'{name}={value!r}' for name, value in items)})"


def _lfm2(functions: Functions) -> str:
    listed = f"[{', '.join(map(_in_python, functions))}]"
    return marked.join(["<|tool_call_start|>", marked.content(listed), "<|tool_call_end|>"])


def _granite(functions: Functions) -> str:
    return marked.join(["<|tool_call|>", marked.content(f"[{', '.join(map(_in_json, functions))}]")])


WRITERS: dict[str, Callable[[Functions], str]] = {"<|tool_call_start|>": _lfm2, "<|tool_call|>": _granite}
"""First markers of forms whose templates leave out calls -> what writes them."""
