"""Answers that no model should write: cut, damaged and mixed at random."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from answer_cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st
from test_answer_forms import parse, parser, solid, taken

from vkllm.text.answers.choice import CALLS, TAGS
from vkllm.text.answers.parts import Parts

ALL = Case("all forms", "".join([TAGS[-2].close, *(form.sign or form.begin for form in CALLS)]), [])
FORMS = {"tagged": ALL, "harmony": Case("harmony", "<|channel|>", [])}
MARKS = [
    *(mark for form in CALLS for mark in (form.begin, *form.marks)),
    *("<think>", "</think>", "<parameter=city>", "</parameter>", "</function>", "<arg_key>", "</arg_key>"),
    *("<|channel|>", "<|message|>", "<|end|>", "<|start|>assistant", " to=functions.now", "analysis", "final"),
    *('{"name": "now", "arguments": {}}', '"', "{", "}", "[", "]", "now", "city", "\n", " ", "\\", "=", "(", ")", ","),
]
DAMAGED = st.one_of(
    st.lists(st.sampled_from(MARKS), max_size=12).map("".join),
    st.tuples(st.sampled_from(CASES), st.integers(0, 400), st.integers(0, 6), st.sampled_from(["", *MARKS])).map(
        lambda it: it[0].raw[: it[1]] + it[3] + it[0].raw[it[1] + it[2] :]
    ),
)


@given(st.sampled_from(list(FORMS)), DAMAGED, st.booleans(), st.lists(st.integers(0, 500), max_size=6))
def test_whatever_a_model_writes_it_is_the_same_wherever_it_is_cut(
    name: str, raw: str, is_open: bool, cuts: list[int]
) -> None:
    case = Case("", FORMS[name].marker, [], is_open=is_open)
    bounds = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[start:end] for start, end in itertools.pairwise(bounds)]
    assert parse(case, *pieces) == parse(case, raw)


@given(DAMAGED)
def test_text_without_calls_is_kept_but_for_the_tags_of_reasoning(raw: str) -> None:
    reasoning, text, calls = parse(ALL, raw)
    if calls:
        assert len(solid(reasoning + text)) < len(solid(raw))
        return
    tags = TAGS[-2]
    kept = solid(reasoning), solid(text)
    assert solid(raw) in {
        f"{before}{kept[0]}{after}{kept[1]}" for before in ("", tags.open) for after in ("", tags.close)
    }


@given(st.sampled_from([case for case in CASES if case.calls]), st.text(max_size=20))
def test_any_text_before_calls_stays(case: Case, before: str) -> None:
    if case.segments[0][0] not in "tc" or case.name.startswith(("gpt-oss", "llama")):
        return
    reasoning, text, calls = parse(case, "x" + before + case.raw)
    assert (reasoning, calls) == ("", case.calls)
    assert solid(text) == solid("x" + before + case.part("t"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_in_arguments_comes_back(value: object) -> None:
    case = Case("", "<tool_call>", [])
    try:
        written = json.dumps({"name": "now", "arguments": {"v": value}}, ensure_ascii=False).encode().decode()
    except UnicodeEncodeError:
        return
    assert parse(case, f"<tool_call>\n{written}\n</tool_call>")[2] == [("now", {"v": value})]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "unit", ['<tool_call>{"name": "', "<function=now>\n<parameter=a>", "<|channel|>final<|message|>a", "< ", "\n\n"]
)
def test_time_grows_with_the_text_and_not_with_its_square(name: str, unit: str) -> None:
    raw = unit * (200_000 // len(unit))
    begun = time.process_time()
    made = parser(FORMS[name])
    parts = Parts()
    for start in range(0, len(raw), 1000):
        parts = parts.followed_by(made.push(raw[start : start + 1000]))
    taken(parts.followed_by(made.finish()))
    assert time.process_time() - begun < 10  # the square would take minutes
