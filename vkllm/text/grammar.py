"""What an answer must look like, a JSON schema, a regular expression or a grammar, as one grammar of llguidance.

It knows the three languages and what is wrong with a text in one of them; it knows no tokens and no requests. Which
tokens may follow is engine/constraint.py's.
"""

from __future__ import annotations

import json

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

from vkllm.errors import InvalidParameter


def answer_grammar(json_schema: str | None = None, regex: str | None = None, grammar: str | None = None) -> str | None:
    """The grammar of an answer of which at most one of these is asked; None without any.

    json_schema: a schema as JSON text. regex: in Rust's syntax, for the whole answer; \\d is 0 to 9.
    grammar: Lark as llguidance reads it (it begins at `start`), or llama.cpp's GBNF (it begins at `root`).
    Raises InvalidParameter for a text that is not of its language, or asks for what cannot be enforced.
    """
    if json_schema is not None:
        return _of_json_schema(json_schema)
    if regex is not None:
        return _of_regex(regex)
    return None if grammar is None else _of_grammar(grammar)


def _of_json_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"json_schema is not valid JSON: {error}") from None
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise InvalidParameter(f'json_schema must be an object, such as {{"type": "object"}}, not {text.strip()[:40]}')
    try:
        # without whitespace between its parts, which a small model can go on with for ever; "x-guidance" can allow it
        grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    except ValueError as error:
        raise InvalidParameter(f"json_schema cannot be used: {error}") from None
    return _checked(grammar, "json_schema")


def _of_regex(text: str) -> str:
    try:
        # \d would be the digits of all scripts too, which few programs expect
        lark = f"start: /{regex_to_lark(text, 'd')}/"
    except UnicodeEncodeError:
        raise InvalidParameter("regex has half a surrogate pair; pass valid Unicode") from None
    return _checked(lark, "regex")


def _of_grammar(text: str) -> str:
    if not is_lark_syntax(text) and "::=" not in text:
        raise InvalidParameter(
            "grammar is neither Lark, which has a rule `start: ...`, nor GBNF, which has a rule `root ::= ...`"
        )
    try:
        lark = any_to_lark(text)
    except IndexError:
        raise InvalidParameter("grammar cannot be used: it ends inside an escape") from None
    except Exception as error:  # the converter has no class of its own for some mistakes
        raise InvalidParameter(f"grammar cannot be used: {error}") from None
    return _checked(lark, "grammar")


def _checked(grammar: str, option: str) -> str:
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise InvalidParameter(f"{option} cannot be used: {_reason(messages[0])}")
    return grammar


def _reason(message: str) -> str:
    """The sentence of a message that shows the place in further lines."""
    first, *lines = message.splitlines()
    details = [line.removeprefix("error:") for line in lines if line.startswith("error: ")]
    return "".join([first.split(" (in regex): ")[-1], *details])
