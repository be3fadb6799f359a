"""Numbers between bounds: every way to write one is taken exactly if it is valid, on its own and in a grammar."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from vkllm.errors import InvalidParameter
from vkllm.text.grammar import answer_grammar
from vkllm.text.number_regex import Interval, integer_regex, number_regex

BYTES = LLTokenizer("byte")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
LIMITS = [2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 9, 10, 99, 100, 0, 1]
INTEGERS = st.one_of(st.integers(), st.integers(-1200, 1200), st.sampled_from([*LIMITS, *(-n for n in LIMITS)]))
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-3000, 3000).map(lambda n: n / 100),
    st.sampled_from([0.0, -0.0, 1e22, 1e-7, -1e-7, 0.1, 1.5, 1e300, 5e-324, 1.7976931348623157e308]),
)
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def interval_of(schema: dict[str, Any]) -> Interval:
    whole = Interval()
    for key, bound in schema.items():
        exact, excluded = Decimal(repr(bound)), key.startswith("exclusive")
        whole &= Interval(exact, None, excluded) if key.endswith("inimum") else Interval(None, exact, False, excluded)
    return whole


def exact_validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Takes a bound such as 7e16 for what is written, not for the nearest float64."""
    return Draft202012Validator(
        {key: Decimal(repr(value)) if key in BOUNDS else value for key, value in schema.items()}
    )


def ways_to_write(values: list[Decimal]) -> set[str]:
    """Literals of these values and their neighbours, as Python, C and people write them."""
    found = {"0", "-0", "0.0", "-0.00", "0e5", "-0.0E-3", "1e2", "1.5E+1", "12.5e-02", "1e22", "1e-07"}
    for value in values:
        digits, exponent = value.as_tuple().digits, int(value.as_tuple().exponent)
        step = Decimal((0, (1,), exponent))
        for near in (value, value + step, value - step, value + 1, value * 10):
            found |= {f"{near:f}", f"{near:.3e}", f"{near:E}", json.dumps(float(near))}
        text = "".join(map(str, digits)).ljust(4, "0")
        for n in (1, 2, 3):
            power = len(digits) + exponent - n
            found |= {f"{text[:n]}.{text[n:]}e{power}", f"-{text[:n]}.{text[n:]}E{power:+03d}"}
    return {text for text in found if NUMBER.fullmatch(text)}


def is_usual(text: str) -> bool:
    """Whether a number is plain or has one to three digits, no leading zero, before the point of an exponent."""
    mantissa, _, exponent = text.lower().lstrip("-").partition("e")
    whole = mantissa.partition(".")[0]
    return not exponent or (not mantissa.strip("0.")) or (whole != "0" and len(whole) <= 3)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(BOUNDS)), st.one_of(INTEGERS, FLOATS), min_size=1, max_size=3), FLOATS)
def test_a_number_is_taken_exactly_if_it_is_valid(bounds: dict[str, Any], other: float) -> None:
    validator, interval = exact_validator(bounds), interval_of(bounds)
    if interval.is_empty:
        return
    number = re.compile(number_regex(interval))
    has_integers = not interval.integers().is_empty
    integer = re.compile(integer_regex(interval) if has_integers else "none")
    for text in ways_to_write([*(Decimal(repr(bound)) for bound in bounds.values()), Decimal(repr(other))]):
        is_valid = validator.is_valid(json.loads(text, parse_float=Decimal))
        assert bool(number.fullmatch(text)) == (is_valid and is_usual(text)), text
        assert bool(integer.fullmatch(text)) == (is_valid and text.lstrip("-").isdigit()), text


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(st.sampled_from(sorted(BOUNDS)), st.one_of(INTEGERS, FLOATS), min_size=1, max_size=2),
    st.sampled_from(["integer", "number"]),
    st.lists(st.one_of(INTEGERS, FLOATS), max_size=5),
)
def test_a_grammar_takes_what_json_dumps_writes_exactly_if_it_is_valid(
    bounds: dict[str, Any], kind: str, values: list[Any]
) -> None:
    schema = {"type": kind, **bounds}
    interval = interval_of(bounds)
    if (interval.integers() if kind == "integer" else interval).is_empty:
        with pytest.raises(InvalidParameter):
            answer_grammar(json_schema=json.dumps(schema))
        return
    matcher = LLMatcher(BYTES, answer_grammar(json_schema=json.dumps(schema)), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    for value in [*values, *bounds.values(), -0.0, 0, 1e22, 1e-7]:
        if isinstance(value, int) or kind == "number":
            text = json.dumps(value).encode()
            copy = matcher.deep_copy()
            is_taken = copy.try_consume_tokens([*text]) == len(text) and copy.is_accepting()
            assert is_taken == exact_validator(schema).is_valid(json.loads(text, parse_float=Decimal)), value


def test_expressions_stay_short() -> None:
    assert integer_regex(Interval(Decimal(0), Decimal(120))) == "(?:[0-9]|[1-9][0-9]|1[0-1][0-9]|120|-0)"
    assert len(number_regex(Interval(Decimal(0), Decimal(1)))) < 400
    assert len(integer_regex(Interval(Decimal(-(2**63)), Decimal(2**63 - 1)))) < 1200
    assert len(number_regex(Interval(Decimal("-1.7976931348623157e308"), Decimal("1.7976931348623157e308")))) < 8000
