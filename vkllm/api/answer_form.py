"""The form that an answer must have, where one was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vkllm.engine.params import SamplingParams

if TYPE_CHECKING:
    from vkllm.text.tokenizer import Tokenizer


def grammar_of(params: SamplingParams, tokenizer: Tokenizer | None = None) -> str | None:
    """The grammar of answers with these parameters, None if they may be any text. tokenizer: as in `answer_grammar`.

    Raises InvalidParameter.
    """
    form = params.json_schema, params.regex, params.grammar
    if form == (None, None, None):
        return None
    from vkllm.text.grammar import answer_grammar  # with llguidance, which takes 0.1 s to import

    return answer_grammar(*form, tokenizer)
