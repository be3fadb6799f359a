"""Templates within limits of time and memory: what takes too much is stopped before it is done, in a sentence."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2
import pytest
from tiny_vocabularies import MakeMetadata, tiny_bpe

from vkllm.errors import InvalidParameter, ModelFileError
from vkllm.text.chat import ChatTemplate
from vkllm.text.templates import limits
from vkllm.text.templates.limits import Budget, TemplateLimit
from vkllm.text.templates.program import Program
from vkllm.text.tokenizer import Tokenizer

# 2 seconds on a core of 2026 that is busy with something else; jinja2 alone would take hours for most of these.
LIMIT_S = 10.0
LIMIT_BYTES = 500 << 20  # of address space, more than Python had before

HELLO = [{"role": "user", "content": "hello"}]

# Lists whose writing doubles 40 times, though they take little memory themselves.
DOUBLED = "{% set ns = namespace(l=(1,), m=(1,)) %}{% for i in range(40) %}{% set ns.l = (ns.l, ns.l) %}"
DOUBLED += "{% set ns.m = (ns.m, ns.m) %}{% endfor %}"
NESTED = "{% set ns = namespace(l=(1,), m=()) %}{% for i in range(3000) %}{% set ns.l = (ns.l,) %}{% endfor %}"
LONG = "{% set long = 'ab' * 500000 %}"

STOPPED = {
    "constants": ["{{ 9 ** 9 ** 9 }}", "{{ 2 ** 99999 }}", "{{ 10 ** -99999 }}", "{{ 'a' * 9999999999 }}"],
    "products": ["{{ [1] * 9999999999 }}", "{{ 9999999999 * 'a' }}", "{{ 'a' * 9999 * 9999 * 9999 }}"],
    "squares": ["{% set ns = namespace(x=3) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"],
    "doubled text": [
        f"{{% set ns = namespace(x='ab') %}}{{% for i in range(40) %}}{step}{{% endfor %}}"
        for step in (
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
            "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
            "{% set ns.x = '{0}{0}'.format(ns.x) %}",
            "{% set ns.x = [ns.x, ns.x] | join %}",
            "{% set ns.x = ns.x | replace('a', 'aa') %}",
            "{% set ns.x = (ns.x, ns.x) | string %}",
        )
    ],
    "doubled lists": [
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    ],
    "widths": [
        *("{{ '%999999999d' % 1 }}", "{{ '%0000000000999999999d' % 1 }}", "{{ '%*d' % (999999999, 1) }}"),
        *("{{ '{:999999999}'.format(1) }}", "{{ '%.999999999f' % 1.5 }}", "{{ '%999999999d' is odd }}"),
        *("{{ 'a' | center(999999999) }}", "{{ 'a'.ljust(999999999) }}", "{{ 'a'.zfill(999999999) }}"),
        *(
            "{{ '\t'.expandtabs(999999999) }}",
            "{{ 'a\nb' | indent(999999999) }}",
            "{{ 1 | tojson(indent=99999999) }}",
        ),
        *("{{ 1.5 | round(99999, 'ceil') }}", "{{ [1] | batch(99999999, 0) }}", "{{ [1] | slice(99999999) }}"),
        *("{{ '%999999999d' is divisibleby 1 }}", "{{ 'a' | truncate(9, end='x' * 9999) }}"),
    ],
    "many widths": ["{{ '%9999d' * 5000 % ([1] * 5000) }}", "{% set f = '%9999d' * 9999 %}{{ f % dict(a=1) }}"],
    "pieces": [LONG + "{{ ((long * 9) | replace('b', ' ')).split() }}", LONG + "{{ (long * 99).split('a') }}"],
    "loops": [
        "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}text{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in [[]] recursive %}{{ loop([a]) }}{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ range(10 ** 30) | list }}",
        "{{ ([range(9999) | list] * 9999) | sum(start=[]) }}",
    ],
    "what lists write": [
        DOUBLED + use
        for use in (
            *("{{ ns.l }}", "{{ ns.l | tojson }}", "{{ ns.l == ns.m }}", "{{ ns.l in [ns.m] }}", "{{ ns.l < ns.m }}"),
            *("{{ ns.l | string | length }}", "{{ ns.l ~ '' }}", "{{ '%s' % (ns.l,) }}", "{{ '{!r}'.format(ns.l) }}"),
            *("{{ [ns.l, ns.m] | sort }}", "{{ ns.l | join }}", "{{ ns.l is lower }}", "{{ raise_exception(ns.l) }}"),
            *("{{ [ns.l, ns.m] | max }}", "{{ ns.l | upper }}", "{{ 1 | tojson(separators=ns.l) }}", "{{ ns.l | e }}"),
            "{% for i in [0, 1] %}{{ loop.changed([ns.l, ns.m][i]) }}{% endfor %}",
        )
    ],
    "depth": [
        NESTED + use for use in ("{{ ns.l }}", "{{ ns.l == ns.l }}", "{{ ns.l | tojson }}", "{{ [ns.l] | sort }}")
    ],
    "long text": [
        LONG + use
        for use in (
            *("{{ long | list | join(long) }}", "{{ long | replace('a', long) }}", "{{ long.replace('', long) }}"),
            *("{% for i in range(99999) %}{{ long.count('c') }}{% endfor %}", "{% for i in long %}{{ i }}{% endfor %}"),
            "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [long ~ i] %}{% endfor %}",
            "{% for i in range(9999) %}{% set x = long | upper | trim | e %}{% endfor %}",
        )
    ],
}


@contextmanager
def largest_allocation_below(n_bytes: int) -> Iterator[None]:
    """Makes allocations fail that would need more than so much memory beside what the process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", STOPPED)
def test_what_takes_too_much_is_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 20_000)  # all of them would take a minute
    for source in STOPPED[kind]:
        start = time.process_time()
        with largest_allocation_below(LIMIT_BYTES), pytest.raises(TemplateLimit):
            Program(source).run({"messages": HELLO}, Budget())
        assert time.process_time() - start < LIMIT_S, source


@pytest.mark.parametrize(
    "use",
    [
        "{{ {ns.l: 1} }}",
        "{{ ns.l in {} }}",
        "{{ dict([[ns.l, 1]]) }}",
        "{{ [ns.l] | unique }}",
        "{{ [1] | map(ns.l) }}",
    ],
)
@pytest.mark.parametrize("lists", [DOUBLED, NESTED])
def test_lists_are_no_keys_and_are_never_hashed(lists: str, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 20_000)
    with pytest.raises((TypeError, jinja2.TemplateError, TemplateLimit)):
        Program(lists + use).run({"n": [1]}, Budget())


def test_indexing_with_a_list_finds_nothing() -> None:
    assert Program(DOUBLED + "[{{ {}[ns.l] }}{{ [1][ns.l] }}]").run({}, Budget()) == "[]"


@pytest.mark.parametrize("source", ["x" * 101_000, "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if 1 %}" * 5000])
def test_a_source_that_is_too_long_or_too_deep_is_a_model_file_error_in_time(
    make_metadata: MakeMetadata, source: str
) -> None:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": source})
    start = time.process_time()
    with pytest.raises(ModelFileError, match=r"vocabulary\.gguf"):
        ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))
    assert time.process_time() - start < LIMIT_S


@pytest.mark.parametrize(
    "piece", ["{", "{{", "{%", "{#", "{{ '", '{{ "', "\n", " ", "{{a}}", "{%-", "{{ a | b }}", "{{ 1.", "é"]
)
def test_reading_any_source_takes_time_that_grows_with_it(piece: str) -> None:
    start = time.process_time()
    with contextlib.suppress(jinja2.TemplateSyntaxError, RecursionError):
        Program(piece * (20_000 // len(piece)))
    assert time.process_time() - start < LIMIT_S


def test_chats_name_the_limit_and_the_file_s_template(make_metadata: MakeMetadata) -> None:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": "{{ 9 ** 9 ** 9 }}"})
    template = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))
    for use in (template.render, template.encode_chat):
        with pytest.raises(ModelFileError, match=r"limits of time and memory: .*huge numbers; do not trust this file"):
            use(HELLO)


def test_long_conversations_and_long_contents_stay_within_the_limits(bpe: Tokenizer) -> None:
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.text = ns.text + '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim ~ '<|im_end|>' %}{% else %}"
        "{% set ns.text = ns.text + m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}{% endfor %}{{ ns.text }}"
    )
    template = ChatTemplate(bpe, source, is_fallback=False)
    turn = [{"role": "user", "content": "hello " * 10}, {"role": "assistant", "content": "<think>hm</think>\nyes"}]
    assert template.render(turn * 1000).count("yes") == 1000
    assert len(template.render([{"role": "user", "content": "hello\n" * 500_000}])) > 2_900_000


def test_a_template_s_refusal_stays_short(make_metadata: MakeMetadata) -> None:
    metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": "{{ raise_exception('no' * 100000) }}"})
    with pytest.raises(InvalidParameter) as caught:
        ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata)).render(HELLO)
    assert len(str(caught.value)) < 2000
