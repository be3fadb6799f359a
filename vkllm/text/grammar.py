"""What an answer must look like, a JSON schema, a regular expression or a grammar, as one grammar of llguidance.

It knows the three languages and what is wrong with a text in one of them; it knows no tokens and no requests. Which
tokens may follow is engine/constraint.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits, regex_to_lark

from vkllm.errors import InvalidParameter
from vkllm.text.float_schema import float_schema
from vkllm.text.gbnf_to_lark import lark_of_gbnf
from vkllm.text.json_schema import prepared, read_schema
from vkllm.text.regex_size import check_lark, check_regex
from vkllm.text.schema_ends import check_ends
from vkllm.text.schema_lark import lark_of_schema
from vkllm.text.tokenizer import Tokenizer
from vkllm.time_limit import TimeLimit

_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_TOO_COMPLEX = re.compile(r"too (big|large)|fuel|limit|Unable to determine|can't determine")
_LARK_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\\n]|\\.)+/')
_LARK_RULE = re.compile(r"^[ \t]*[?!_]*[A-Za-z][\w-]*[^:\n]*:", re.MULTILINE)
_LARK_START = re.compile(r"^[ \t]*(%llguidance\b|start\b[^:\n]*:)", re.MULTILINE)

# llguidance bounds the work of one step, not the time that it takes. These limits, and those of text/regex_size.py and
# text/json_schema.py, bound what was found to take long. Of 70 grammars at the limits, on a vocabulary of 152,000
# tokens, checking took at most 0.8 s of CPU time (GBNF of 54,000 characters), compiling 0.3 s, and a mask 0.2 s.
MAX_REGEX_LENGTH = 16_384
MAX_LARK_LENGTH = 32_768
MAX_LARK_RULES = 400
"""Most rules. llguidance follows them on its stack, which ends at about 1,000 that lead from one to the next."""
MAX_ANDS = 8
"""Most expressions joined by &. Each doubles the states; 20 take 8 s."""
LIMITS = LLParserLimits(initial_lexer_fuel=500_000, max_grammar_size=200_000, verbose_errors=False)
_LIMIT = TimeLimit(1.0)  # for what the limits above let through on a slow machine


def answer_grammar(
    json_schema: str | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> str | None:
    """The grammar of an answer, from at most one of these; None without any.

    json_schema: a schema as JSON text. regex: in Rust's syntax, for the whole answer; \\d is 0 to 9.
    grammar: Lark as llguidance reads it (it begins at `start`), or llama.cpp's GBNF (it begins at `root`).
    tokenizer: of the model that answers; GBNF may name its tokens. Without one, the texts are checked.
    Raises InvalidParameter for a text that is not valid in its language, asks for what cannot be enforced, or takes
    longer than a second to read.
    """
    if json_schema is not None:
        return _LIMIT.result(lambda: _of_json_schema(json_schema), "json_schema", "to read")
    if regex is not None:
        return _LIMIT.result(lambda: _of_regex(regex), "regex", "to read")
    if grammar is not None:
        return _LIMIT.result(lambda: _of_grammar(grammar, tokenizer), "grammar", "to read")
    return None


def _of_json_schema(text: str) -> str:
    schema = read_schema(text)
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise InvalidParameter(f'json_schema must be an object, such as {{"type": "object"}}, not {text.strip()[:40]}')
    try:
        exact = prepared(schema)
        grammar = _of_exact_schema(exact)
        check_ends(exact)
    except RecursionError:
        raise InvalidParameter(
            "json_schema is too complex: its schemas lead through too many levels and $refs to the next; use fewer"
        ) from None
    return grammar


def _of_exact_schema(schema: Mapping[str, Any]) -> str:
    if (lark := lark_of_schema(schema)) is not None:
        with suppress(InvalidParameter):  # otherwise llguidance says what is wrong with the schema
            return _checked(lark, "json_schema")
    try:
        # without whitespace between its parts, which a small model can go on with for ever; "x-guidance" can allow it
        grammar = LLMatcher.grammar_from_json_schema(float_schema(schema), defaults={"whitespace_flexible": False})
    except ValueError as error:
        raise InvalidParameter(f"json_schema cannot be used: {error}") from None
    return _checked(grammar, "json_schema")


def _of_regex(text: str) -> str:
    _check_length(text, "regex", MAX_REGEX_LENGTH)
    check_regex(text, "regex")
    if (len(text) - len(text.rstrip("\\"))) % 2:  # regex_to_lark of llguidance 1.9.1 drops it
        raise InvalidParameter("regex cannot be used: it ends with a backslash; write two for the character itself")
    try:
        # \d would be the digits of all scripts too, which few programs expect
        lark = f"start: /{regex_to_lark(text, 'd')}/"
    except UnicodeEncodeError:
        raise InvalidParameter("regex has half a surrogate pair; pass valid Unicode") from None
    return _checked(lark, "regex")


def _of_grammar(text: str, tokenizer: Tokenizer | None) -> str:
    if _GBNF_RULE.search(text):
        try:
            return _checked_lark(lark_of_gbnf(text, tokenizer))
        except _Panic:
            return _checked_lark(lark_of_gbnf(text, tokenizer, by_character=True))
    if not _LARK_START.search(text):
        raise InvalidParameter(
            "grammar is neither Lark, which has a rule `start: ...`, nor GBNF, which has a rule `root ::= ...`"
        )
    _check_length(text, "grammar", MAX_LARK_LENGTH)
    signs = _LARK_QUOTED.sub("", text)
    if signs.count("&") > MAX_ANDS:
        raise InvalidParameter(f"grammar is too complex: it joins more than {MAX_ANDS} expressions by &")
    if len(_LARK_RULE.findall(signs)) > MAX_LARK_RULES:
        raise InvalidParameter(f"grammar is too complex: it has more than {MAX_LARK_RULES} rules and terminals")
    return _checked_lark(text)


def _checked_lark(lark: str) -> str:
    check_lark(lark, "grammar")
    return _checked(lark, "grammar")


def _check_length(text: str, option: str, most: int) -> None:
    if len(text) > most:
        raise InvalidParameter(f"{option} is too large: it has {len(text)} characters, at most {most} are read")


def _checked(grammar: str, option: str) -> str:
    try:
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a failed assertion in llguidance; no Exception
            raise
        raise _Panic(f"{option} cannot be used: llguidance fails on it; write it another way") from None
    if is_error:
        reason = _reason(messages[0])
        if _TOO_COMPLEX.search(reason):
            raise InvalidParameter(
                f"{option} is too complex; make it smaller, with fewer choices, repetitions or patterns ({reason})"
            )
        raise InvalidParameter(f"{option} cannot be used: {reason}")
    return grammar


class _Panic(InvalidParameter):
    """llguidance failed on a grammar instead of saying what is wrong with it."""


def _reason(message: str) -> str:
    """The sentence of a message that shows the place in further lines."""
    first, *lines = message.splitlines()
    details = [line.removeprefix("error:") for line in lines if line.startswith("error: ")]
    return "".join([first.split(" (in regex): ")[-1], *details])
