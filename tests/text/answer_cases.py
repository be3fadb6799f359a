"""Answers of each family, in its own notation: what stands in the template, what the model writes, what that means.

An answer is a list of segments: "m" a marker, "r" reasoning, "t" text, "c" calls with their markers, "w" white space
that belongs to no part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Segment = tuple[str, str]
Call = tuple[str, dict[str, Any]]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "area": {"type": "object"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
PARIS: dict[str, Any] = {"city": 'Paris "x" {é}', "days": 3, "exact": True, "area": {"a": [1, "z"]}}
CALLS: list[Call] = [("weather", PARIS), ("now", {})]


@dataclass(frozen=True)
class Case:
    """marker: stands in the template. segments: of the answer. is_open: the prompt has opened the reasoning."""

    name: str
    marker: str
    segments: list[Segment]
    calls: list[Call] = field(default_factory=lambda: CALLS)
    is_open: bool = False

    @property
    def raw(self) -> str:
        """What the model writes."""
        return "".join(text for _, text in self.segments)

    def part(self, kind: str) -> str:
        """The text of one kind of segments."""
        return "".join(text for each, text in self.segments if each == kind)


def _thought(*rest: Segment) -> list[Segment]:
    return [
        ("m", "<think>"),
        ("w", "\n"),
        ("r", "They ask.\nSo?"),
        ("w", "\n"),
        ("m", "</think>"),
        ("w", "\n\n"),
        *rest,
    ]


def _named(**call: Any) -> str:
    return json.dumps(call, ensure_ascii=False)


_PARIS = json.dumps(PARIS, ensure_ascii=False)
_JSON = _named(name="weather", arguments=PARIS)
_JSON_NOW = _named(name="now", arguments={})
_LIST = f"[{_JSON}, {_JSON_NOW}]"
_XML = (
    '<function=weather>\n<parameter=city>\nParis "x" {é}\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
    '<parameter=exact>\nTrue\n</parameter>\n<parameter=area>\n{"a": [1, "z"]}\n</parameter>\n</function>'
)
_GLM = (
    'weather\n<arg_key>city</arg_key>\n<arg_value>Paris "x" {é}</arg_value>\n<arg_key>days</arg_key>\n'
    "<arg_value>3</arg_value>\n<arg_key>exact</arg_key>\n<arg_value>true</arg_value>\n<arg_key>area</arg_key>\n"
    '<arg_value>{"a": [1, "z"]}</arg_value>\n'
)
_INVOKE = (
    '<invoke name="weather">\n<parameter name="city">Paris "x" {é}</parameter>\n<parameter name="days">3</parameter>\n'
    '<parameter name="exact">true</parameter>\n<parameter name="area">{"a": [1, "z"]}</parameter>\n</invoke>\n'
    '<invoke name="now">\n</invoke>\n'
)
_DSML = (
    '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Paris "x" {é}</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="exact" string="false">true</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="area" string="false">{"a": [1, "z"]}</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
)
_PYTHON = "weather(city='Paris \"x\" {é}', days=3, exact=True, area={'a': [1, 'z']})"
_GEMMA = 'weather{city:<|"|>Paris "x" {é}<|"|>,days:3,exact:true,area:{a:[1,<|"|>z<|"|>]}}'

_MISTRAL_IDS = f"[TOOL_CALLS]weather[CALL_ID]abcdefgh1[ARGS]{_PARIS}[TOOL_CALLS]now[CALL_ID]abcdefgh2[ARGS]{{}}"
_COMMAND_A = (
    f"<|START_ACTION|>[\n    {_named(tool_call_id='0', tool_name='weather', parameters=PARIS)},\n"
    f"    {_named(tool_call_id='1', tool_name='now', parameters={})}\n]<|END_ACTION|>"
)
_COMMAND_R = (
    f"Action: ```json\n[{_named(tool_name='weather', parameters=PARIS)}, {_named(tool_name='now', parameters={})}]```"
)
_DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    f"```json\n{_PARIS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n"
    "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
_DEEPSEEK_V31 = (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{_PARIS}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
_KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    f"{_PARIS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>"
    "{}<|tool_call_end|><|tool_calls_section_end|>"
)
_HARMONY = (
    f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{_PARIS}<|call|>",
    f" to=functions.weather<|channel|>commentary <|constrain|>json<|message|>{_PARIS}",
)
_ANALYSIS: Segment = ("m", "<|channel|>analysis<|message|>")

_NOW_TAG: Segment = ("c", f"<tool_call>\n{_JSON_NOW}\n</tool_call>")

_FUNCTION_NOW: Segment = ("c", "<start_function_call>call:now{}<end_function_call>")

CASES = [
    Case("text", "", [("t", "a < b, {x}, [y] and <tool\n")], []),
    Case("think", "</think>", _thought(("t", "Four. \n")), []),
    Case("think opened", "</think>", _thought(("t", "Four."))[1:], [], is_open=True),
    Case("think opened twice", "</think>", _thought(("t", "Four.")), [], is_open=True),
    Case("think, cut", "</think>", _thought()[:3], []),
    Case(
        "hermes",
        "<tool_call>",
        [("t", "Look:"), ("w", "\n"), ("c", f"<tool_call>\n{_JSON}\n</tool_call>"), ("w", "\n"), _NOW_TAG],
    ),
    Case(
        "qwen3",
        "<think></think><tool_call>",
        _thought(
            ("t", "Look."),
            ("w", "\n"),
            ("c", f"<tool_call>\n{_JSON}\n</tool_call>"),
            ("w", "\n"),
            _NOW_TAG,
            ("w", "\n"),
        ),
    ),
    Case("qwen3, text after", "<tool_call>", [("t", "A."), ("w", "\n"), _NOW_TAG, ("w", "\n"), ("t", "B.")], CALLS[1:]),
    Case("several in one tag", "<tool_call>", [("c", f"<tool_call>\n{_JSON}\n{_JSON_NOW}\n</tool_call>")]),
    Case("a list in one tag", "<tool_call>", [("c", f"<tool_call>{_LIST}</tool_call>")]),
    Case(
        "qwen3-coder",
        "<tool_call><function=",
        [
            ("t", "Look."),
            ("w", "\n\n"),
            ("c", f"<tool_call>\n{_XML}\n</tool_call>"),
            ("w", "\n"),
            ("c", "<tool_call>\n<function=now>\n</function>\n</tool_call>"),
        ],
    ),
    Case("qwen3-coder, no tag", "<tool_call><function=", [("c", f"{_XML}\n<function=now>\n</function>\n</tool_call>")]),
    Case(
        "qwen3.5",
        "<think><tool_call><function=",
        _thought(
            ("c", f"<tool_call>\n{_XML}\n</tool_call>"),
            ("w", "\n"),
            ("c", "<tool_call><function=now></function></tool_call>"),
        )[1:],
        is_open=True,
    ),
    Case(
        "seed",
        "<seed:think><seed:tool_call>",
        [
            ("m", "<seed:think>"),
            ("r", "So."),
            ("m", "</seed:think>"),
            ("t", "Look."),
            ("w", "\n"),
            ("c", f"<seed:tool_call>\n{_XML}\n</seed:tool_call>"),
        ],
        CALLS[:1],
    ),
    Case("functionary", "<function=", [("c", f"<function=weather>{_PARIS}</function><function=now>{{}}</function>")]),
    Case(
        "glm",
        "<think><tool_call>",
        _thought(("c", f"<tool_call>{_GLM}</tool_call>"), ("w", "\n"), ("c", "<tool_call>now\n</tool_call>")),
    ),
    Case(
        "glm-4.7",
        "<think><tool_call>",
        [("t", "Look."), ("c", f"<tool_call>{_GLM.replace(chr(10), '')}</tool_call><tool_call>now</tool_call>")],
    ),
    Case("mistral", "[TOOL_CALLS]", [("c", f"[TOOL_CALLS] {_LIST}")]),
    Case(
        "ministral",
        "[TOOL_CALLS][THINK]",
        [
            ("m", "[THINK]"),
            ("r", "So."),
            ("m", "[/THINK]"),
            ("t", "Look."),
            ("c", f"[TOOL_CALLS]weather[ARGS]{_PARIS}[TOOL_CALLS]now[ARGS]{{}}"),
        ],
    ),
    Case("mistral with ids", "[TOOL_CALLS]", [("c", _MISTRAL_IDS)]),
    Case(
        "gemma 4",
        "<|channel>thought<|tool_call>",
        [
            ("m", "<|channel>"),
            ("m", "thought\n"),
            ("r", "So."),
            ("w", "\n"),
            ("m", "<channel|>"),
            ("t", "Look."),
            ("c", f"<|tool_call>call:{_GEMMA}<tool_call|><|tool_call>call:now{{}}<tool_call|>"),
        ],
    ),
    Case(
        "lfm2",
        "<|tool_call_start|>",
        [("c", f"<|tool_call_start|>[{_PYTHON}, now()]<|tool_call_end|>"), ("t", "Look.")],
    ),
    Case("lfm2 in json", "<|tool_call_start|>", [("c", f"<|tool_call_start|>{_LIST}<|tool_call_end|>")]),
    Case(
        "olmo 3",
        "<function_calls>",
        [("t", "Look."), ("w", "\n"), ("c", f"<function_calls>\n{_PYTHON}\nnow()\n</function_calls>")],
    ),
    Case("nemotron 2", "<think><TOOLCALL>", _thought(("c", f"<TOOLCALL>{_LIST}</TOOLCALL>"))),
    Case("minimax m1", "<tool_calls>", [("c", f"<tool_calls>\n{_JSON}\n{_JSON_NOW}\n</tool_calls>")]),
    Case(
        "minimax m2",
        "<minimax:tool_call>",
        [("t", "Look."), ("w", "\n"), ("c", f"<minimax:tool_call>\n{_INVOKE}</minimax:tool_call>")],
    ),
    Case("granite 3", "<|tool_call|>", [("c", f"<|tool_call|>{_LIST}")]),
    Case("phi-4-mini", "<|tool_call|>", [("c", f"<|tool_call|>{_LIST}<|/tool_call|>")]),
    Case(
        "llama 3",
        "<|python_tag|>",
        [("c", f"{_named(name='weather', parameters=PARIS)}; {_named(name='now', parameters={})}")],
    ),
    Case(
        "llama 3, marked",
        "<|python_tag|>",
        [("c", f"<|python_tag|>{_named(type='function', name='weather', parameters=PARIS)}")],
        CALLS[:1],
    ),
    Case("llama 4", "", [("c", f"[{_PYTHON}, now()]")]),
    Case(
        "apertus",
        "<|inner_prefix|><|inner_suffix|><|tools_prefix|>",
        [
            ("m", "<|inner_prefix|>"),
            ("r", "So."),
            ("m", "<|inner_suffix|>"),
            ("c", f"<|tools_prefix|>[{_named(weather=PARIS)}, {_named(now={})}]<|tools_suffix|>"),
        ],
    ),
    Case(
        "command a",
        "<|START_THINKING|><|END_THINKING|><|START_ACTION|>",
        [("m", "<|START_THINKING|>"), ("r", "So."), ("m", "<|END_THINKING|>"), ("c", _COMMAND_A)],
    ),
    Case("command r", "Action: ```json", [("c", _COMMAND_R)]),
    Case("deepseek v3", "<｜tool▁calls▁begin｜>", [("t", "Look."), ("c", _DEEPSEEK_V3)]),
    Case("deepseek v3.1", "<think><｜tool▁calls▁begin｜>", _thought(("c", _DEEPSEEK_V31))),
    Case(
        "deepseek v3.2",
        "｜DSML｜",
        [("t", "Look."), ("w", "\n\n"), ("c", f"<｜DSML｜function_calls>\n{_DSML}</｜DSML｜function_calls>")],
    ),
    Case("kimi k2", "<|tool_calls_section_begin|>", [("t", "Look."), ("c", _KIMI)]),
    Case(
        "gemma 4, no name and quotes",
        "<channel|><|tool_call>",
        [
            ("m", "<|channel>"),
            ("r", "thoughtful"),
            ("m", "<channel|>"),
            ("c", '<|tool_call>call:weather{ city: "a \\"b\\"", area:{x:<|"|>C:\\new<|"|>} }<tool_call|>'),
        ],
        [("weather", {"city": 'a "b"', "area": {"x": "C:\\new"}})],
    ),
    Case(
        "functiongemma",
        "<start_function_call>",
        [
            ("c", "<start_function_call>call:weather{city:<escape>Rome<escape>,days:3}<end_function_call>"),
            _FUNCTION_NOW,
        ],
        [("weather", {"city": "Rome", "days": 3}), ("now", {})],
    ),
    Case("gigachat", "<|function_call|>", [("t", "Look."), ("c", f"<|function_call|>{_JSON}")], CALLS[:1]),
    Case(
        "call in reasoning",
        "<think><tool_call>",
        [
            ("m", "<think>"),
            ("r", "So."),
            ("w", "\n"),
            _NOW_TAG,
            ("w", "\n"),
            ("m", "</think>"),
            ("w", "\n"),
            ("t", "Done."),
        ],
        CALLS[1:],
    ),
    Case(
        "gpt-oss",
        "<|channel|>",
        [
            _ANALYSIS,
            ("r", "So? <b>"),
            ("m", "<|end|>"),
            ("m", "<|start|>assistant<|channel|>final<|message|>"),
            ("t", "Four < five.\n"),
        ],
        [],
    ),
    Case(
        "gpt-oss, odd headers",
        "<|channel|>",
        [
            ("m", "<|channel|>commentary to=assistant<|channel|>analysis<|message|>"),
            ("r", "So?"),
            ("m", "<|end|>"),
            ("m", "<|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
            ("t", "{}"),
            ("m", "<|end|>"),
            ("c", "<|start|>assistant to=functions.now<|channel|>analysis code<|message|>{}<|call|>"),
        ],
        CALLS[1:],
    ),
    Case(
        "gpt-oss, calls",
        "<|channel|>",
        [
            _ANALYSIS,
            ("r", "So?"),
            ("m", "<|end|>"),
            ("m", "<|start|>assistant<|channel|>commentary<|message|>"),
            ("t", "Look."),
            ("m", "<|end|>"),
            ("c", _HARMONY[0]),
            ("c", "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}"),
        ],
    ),
    Case("gpt-oss, only a call", "<|channel|>", [("c", _HARMONY[1])], CALLS[:1]),
]
