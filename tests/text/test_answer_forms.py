"""Answers of all families, whole and cut anywhere, taken apart into reasoning, text and calls."""

from __future__ import annotations

import functools

import pytest
from answer_cases import CASES, TOOLS, Call, Case

from vkllm.text.answers.choice import AnswerForm, answer_form
from vkllm.text.answers.parser import AnswerParser
from vkllm.text.answers.parts import Parts
from vkllm.text.answers.tools import Tools

Taken = tuple[str, str, list[Call]]


def parser(case: Case, *, has_tools: bool = True) -> AnswerParser:
    return AnswerParser(form(case.marker), ALL_TOOLS if has_tools else Tools(), is_thinking=case.is_open)


ALL_TOOLS = Tools(TOOLS)


@functools.cache
def form(marker: str) -> AnswerForm:
    return answer_form(marker, lambda text: False)


def taken(parts: Parts) -> Taken:
    return parts.reasoning, parts.text, [(call.name, call.arguments) for call in parts.tool_calls]


def parse(case: Case, *pieces: str, has_tools: bool = True) -> Taken:
    made = parser(case, has_tools=has_tools)
    parts = Parts()
    for piece in pieces:
        parts = parts.followed_by(made.push(piece))
    return taken(parts.followed_by(made.finish()))


def solid(text: str) -> str:
    """A text without white space, part of which belongs to no part of an answer."""
    return "".join(text.split())


EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EACH
def test_an_answer_is_taken_apart(case: Case) -> None:
    reasoning, text, calls = parse(case, case.raw)
    assert (reasoning, calls) == (case.part("r"), case.calls)
    assert solid(text) == solid(case.part("t"))
    if not case.calls:
        assert text == case.part("t")


@EACH
def test_an_answer_is_the_same_wherever_it_is_cut(case: Case) -> None:
    whole = parse(case, case.raw)
    assert parse(case, *case.raw) == whole
    for n in range(len(case.raw)):
        assert parse(case, case.raw[:n], case.raw[n:]) == whole, case.raw[:n]


@EACH
def test_an_answer_that_ends_anywhere_loses_nothing(case: Case) -> None:
    before: list[tuple[str, str]] = []  # segments that are complete
    for kind, segment in case.segments:
        kept = "".join(text for each, text in before if each in "rt")
        n_calls = sum(each == "c" for each, _ in before)
        for n in range(1, len(segment)):
            raw = "".join(text for _, text in before) + segment[:n]
            reasoning, text, calls = parse(case, raw)
            if kind != "c" or (calls == case.calls[: len(calls)] and len(calls) == n_calls):
                assert solid(reasoning + text) == solid(kept + segment[:n]), raw
            else:  # some calls of the segment are complete
                assert calls == case.calls[: len(calls)] and solid(reasoning + text).startswith(solid(kept)), raw
        before.append((kind, segment))


@EACH
def test_without_tools_calls_stay_text(case: Case) -> None:
    reasoning, text, calls = parse(case, case.raw, has_tools=False)
    said = case.part("r") + "".join(text for kind, text in case.segments if kind in "tc")
    assert not calls and (case.name == "call in reasoning" or solid(reasoning + text) == solid(said))


@EACH
def test_text_is_passed_on_at_once(case: Case) -> None:
    made = parser(Case(case.name, case.marker, []))
    assert [made.push(text).text for text in ("Hello", ", a", "b c", ".")] == ["Hello", ", a", "b c", "."]
    assert made.push(" <").text + made.push("x>").text == " <x>"


def test_reasoning_is_passed_on_as_it_comes() -> None:
    made = parser(Case("", "</think><tool_call>", [], is_open=True))
    pieces = ["I", " see", ".\n", "</thi", "nk>", "\n", "Yes"]
    assert [made.push(piece)[:2] for piece in pieces] == [
        ("I", ""),
        (" see", ""),
        (".", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "Yes"),
    ]


def test_a_call_comes_when_it_is_complete() -> None:
    made = parser(Case("", "<tool_call>", []))
    assert made.push('On it.\n<tool_call>{"name": "now", "arguments": {}') == Parts(text="On it.")
    assert made.push("}\n</tool_call") == Parts()
    (call,) = made.push(">").tool_calls
    assert call.name == "now" and call.arguments == {} and call.id.startswith("call_")


def test_ids_are_the_model_s_own_or_all_different() -> None:
    def ids(name: str) -> list[str]:
        case = next(case for case in CASES if case.name == name)
        return [call.id for call in parser(case).push(case.raw).followed_by(parser(case).finish()).tool_calls]

    assert ids("kimi k2") == ["functions.weather:0", "functions.now:1"]
    assert ids("mistral with ids")[0] == "abcdefgh1"
    assert len(set(ids("hermes") + ids("hermes"))) == 4


NOW = '{"name": "now", "arguments": {}}'
SPLIT: Taken = ("", "", [("weather", {"city": "A", "days": 2})])
BROKEN = [
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {}'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {},}</tool_call>'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("<tool_call>", '<tool_call>{"arguments": {}}</tool_call>'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": 1e999}}</tool_call>'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": ' + "[" * 60 + "]" * 60 + "}}</tool_call>"),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {"a": "\\ud800"}}</tool_call>'),
    ("<tool_call>", '<tool_call>{"name": "now", "arguments": {}} and so on</tool_call>'),
    ("<tool_call>", "<tool_call></tool_call>"),
    ("<tool_call>", "Write <tool_call> before it."),
    ("<tool_call>", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>"),
    ("<tool_call>", "<tool_call>weather\n<arg_key>city</arg_value></tool_call>"),
    ("<function=", "<function=weather>\n<parameter=city>\nParis\n</parameter>"),
    ("<function=", "<function=>\n</function>"),
    ("<function=", "the tag <function=name> begins one"),
    ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "now"'),
    ("[TOOL_CALLS]", "[TOOL_CALLS]now[ARGS]{,}"),
    ("<|tool_call>", '<|tool_call>call:weather{city:<|"|>Paris'),
    ("<|tool_call>", "<|tool_call>call:weather{city:Paris}<tool_call|>"),
    ("<|tool_call_start|>", "<|tool_call_start|>[weather('Paris')]<|tool_call_end|>"),
    ("<|tool_call_start|>", "<|tool_call_start|>[weather(city=open('x'))]<|tool_call_end|>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜>now<｜tool▁calls▁end｜>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_begin|><|tool_call_begin|>now{}<|tool_call_end|>"),
    ("", '{"name": "nowhere", "parameters": {}}'),
    ("", '{"name": "now", "parameters": {}'),
    ("", '{"city": "Paris"}'),
    ("", '{"name": "now"}'),
    ("", "[nowhere()]"),
    ("", "[1, 2]"),
    ("<|channel|>", "<|channel|>commentary to=functions.now<|message|>{"),
    ("<|channel|>", "<|channel|>commentary to=functions.now<|message|>now<|call|>"),
    ("<|channel|>", "<|channel|>commentary to=browser.open<|message|>{}<|call|>"),
    ("<|channel|>", "<|channel|>other<|message|>text"),
    ("<|channel|>", "<|channel|>analysis but no text"),
]


@pytest.mark.parametrize(("marker", "raw"), BROKEN)
def test_what_is_no_complete_call_stays_text(marker: str, raw: str) -> None:
    case = Case("", marker, [])
    assert parse(case, raw) == ("", raw, [])
    assert parse(case, *raw) == ("", raw, [])


def test_a_call_after_a_broken_one_counts() -> None:
    raw = 'A <tool_call>{"name"}</tool_call> <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert parse(Case("", "<tool_call>", []), raw) == ("", 'A <tool_call>{"name"}</tool_call>', [("now", {})])


def test_markers_within_arguments_are_part_of_them() -> None:
    text = "</tool_call> <tool_call> </think>"
    raw = '<tool_call>{"name": "weather", "arguments": {"city": "' + text + '"}}</tool_call>'
    assert parse(Case("", "<think><tool_call>", []), raw)[2] == [("weather", {"city": text})]
    city = "a</parameter>b <parameter> <function>"
    raw = f"<function=weather>\n<parameter=city>\n{city}\n</parameter>\n</function>"
    assert parse(Case("", "<function=", []), raw)[2] == [("weather", {"city": city})]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"<tool_call>{NOW}<tool_call>{NOW}</tool_call>", ("", "", [("now", {}), ("now", {})])),
        (f"<tool_call>{NOW}\n<tool_call>\n{NOW}", ("", "", [("now", {}), ("now", {})])),
        ("<tool_call><function=weather>\n<parameter=city>\nA\n<parameter=days>\n2\n</function>\n</tool_call>", SPLIT),
        ("<tool_call><function=weather>\n<parameter=city>\nA\n<parameter=days>\n2\n</function>", SPLIT),
        ("</think>\n\nFour.", ("", "Four.", [])),
        ("<think></think>\n\nFour.", ("", "Four.", [])),
    ],
)
def test_tags_that_models_forget(raw: str, expected: Taken) -> None:
    case = Case("", "<think><tool_call><function=", [])
    assert parse(case, raw) == parse(case, *raw) == expected


def test_a_broken_call_with_whole_arguments_does_not_hide_the_next() -> None:
    broken = '<tool_call>{"name": "now", "arguments": "{"}</tool_call>'
    assert parse(Case("", "<tool_call>", []), f"{broken}<tool_call>{NOW}</tool_call>") == ("", broken, [("now", {})])


def test_json_that_models_write_loosely() -> None:
    case = Case("", "<tool_call>", [])
    for inner, arguments in [
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', {"city": "Rome"}),
        ('{"name": "weather", "arguments": {"city": "a\nb\t"}}', {"city": "a\nb\t"}),
        ('{"type": "function", "function": {"name": "weather", "arguments": {"days": -1.5e3}}}', {"days": -1500.0}),
        ('{"name": "weather", "arguments": null}', {}),
        ('{"name": "weather"}', {}),
        ('{"name": "weather", "arguments": {"city": "\\u00e9\\ud83d\\ude00"}}', {"city": "é😀"}),
    ]:
        assert parse(case, f"<tool_call>{inner}</tool_call>") == ("", "", [("weather", arguments)])
