"""Which tools a model may call, and whether it has to call one: `tool_choice` in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vkllm.errors import InvalidParameter


@dataclass(frozen=True)
class ToolChoice:
    """is_forced: the answer must be a call. names: only these tools; None is all. most: calls in an answer at most."""

    is_forced: bool = False
    names: tuple[str, ...] | None = None
    most: int | None = None

    def of(self, tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the tools that may be called. Raises InvalidParameter for a name of none, and for no tool at all
        where one has to be called."""
        by_name = {str((tool.get("function") or tool).get("name")): tool for tool in tools}
        for name in self.names or ():
            if name not in by_name:
                raise InvalidParameter(f"tool_choice names the tool {name!r}, which is not among tools")
        if self.is_forced and not tools:
            raise InvalidParameter("tool_choice must be left out where there are no tools")
        return list(tools) if self.names is None else [by_name[name] for name in self.names]


FREE = ToolChoice()
"""The model calls tools or not, as it likes."""


def tool_choice(value: Any) -> ToolChoice:
    """A choice as OpenAI's and Anthropic's APIs have it; None is "auto". Raises InvalidParameter."""
    choice = _choice(value)
    is_single = isinstance(value, Mapping) and value.get("disable_parallel_tool_use") is True
    return replace(choice, most=1) if is_single else choice


def _choice(value: Any) -> ToolChoice:
    match value:
        case None | "auto" | {"type": "auto"}:
            return ToolChoice()
        case "none" | {"type": "none"}:
            return ToolChoice(names=())
        case "required" | "any" | {"type": "any"} | {"type": "required"}:
            return ToolChoice(is_forced=True)
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function" | "tool", "name": str(name)}:
            return ToolChoice(is_forced=True, names=(name,))
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(allowed)}} | {
            "type": "allowed_tools",
            "mode": mode,
            "tools": list(allowed),
        }:
            chosen = [tool_choice(tool).names for tool in allowed]
            names = tuple(name for each in chosen if each is not None for name in each)
            return ToolChoice(is_forced=tool_choice(mode).is_forced, names=names)
    raise InvalidParameter(
        'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}, '
        f"not {value!r:.100}"
    )
