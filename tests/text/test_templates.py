"""Templates do what jinja2 does with transformers' settings: jinja2 itself is the oracle here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vkllm.text.templates import marked
from vkllm.text.templates.limits import Budget
from vkllm.text.templates.program import Program

SNIPPETS = (Path(__file__).parent / "snippets.jinja").read_text().split("\n---\n")

VARIABLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": " Hello wörld <b> "}, {"role": "assistant", "content": "a\nb\n\nc"}],
    "d": {"b": 2, "a": 1, "C": [1, 2]},
    "n": [3, 1, 2, 1],
    "s": "Hello World hello",
    "words": ["b", "A", "c", "a"],
    "none": None,
    "people": [
        {"n": "x", "g": 1, "t": {"k": 5}},
        {"n": "Y", "g": 2, "t": {"k": 3}},
        {"n": "z", "g": 1, "t": {"k": 4}},
    ],
}


def by_jinja2(source: str) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **named: json.dumps(
        value, ensure_ascii=ensure_ascii, **named
    )
    return environment.from_string(source).render(VARIABLES)


def as_content(value: Any) -> Any:
    if isinstance(value, str):
        return marked.content(value)
    if isinstance(value, dict):
        return {as_content(key): as_content(item) for key, item in value.items()}
    return [as_content(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("source", SNIPPETS)
@pytest.mark.parametrize("convert", [lambda value: value, as_content], ids=["plain", "content"])
def test_a_snippet_writes_what_jinja2_writes(source: str, convert: Any) -> None:
    variables = {name: convert(value) for name, value in VARIABLES.items()}
    assert Program(source).run(variables, Budget()) == by_jinja2(source)


@pytest.mark.parametrize(
    "source",
    [
        *("{{ zz.a }}", "{{ zz + 'a' }}", "{{ zz() }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ none | length }}"),
        *(
            "{{ s() }}",
            "{{ s.upper(1) }}",
            "{{ n | sort(zz=1) }}",
            "{{ [1, 'a'] | sort }}",
            "{{ d[n] in d }}{{ n in d }}",
        ),
        *("{% for a in none %}{% endfor %}", "{% for a, b in n %}{% endfor %}", "{% set x.y = 1 %}", "{{ 'a'.zz() }}"),
        *(
            "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
            "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
        ),
        *("{% if true %}{{ s | zz }}{% endif %}", "{% if true %}{{ s is zz }}{% endif %}", "{{ n | map | list }}"),
        *("{% for a in n %}{{ loop(n) }}{% endfor %}", "{{ '%d' % 'a' }}", "{{ '{}'.format() }}", "{{ dict(1) }}"),
    ],
)
def test_what_fails_in_jinja2_fails_here(source: str) -> None:
    with pytest.raises((ArithmeticError, LookupError, TypeError, ValueError, jinja2.TemplateError)):
        by_jinja2(source)
    with pytest.raises((ArithmeticError, LookupError, TypeError, ValueError, jinja2.TemplateError)):
        Program(source).run(VARIABLES, Budget())


@pytest.mark.parametrize(
    "source",
    [
        *("\n{% include 'a' %}", "\n{% import 'a' as b %}", "\n{% from 'a' import b %}", "\n{% extends 'a' %}"),
        *("\n{{ s | zz }}", "\n{{ s is zz }}", "\n{% zz %}", "\n{{ s", "\n{{ lipsum | random }}"),
    ],
)
def test_what_no_chat_template_has_is_refused_when_it_is_read_with_its_line(source: str) -> None:
    with pytest.raises(jinja2.TemplateSyntaxError) as caught:
        Program(source)
    assert caught.value.lineno == 2
