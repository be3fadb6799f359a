"""Tokens whose text tells their meaning, whatever type a file gives them: ends of answers, parts of code to fill in.

Many files declare one end only, or type such tokens as plain text. The names, and what follows from them, are those of
llama.cpp 0.5.0, so that a file's answers end here where they end there. Knows names and types, no text and no merging.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vkllm.text.vocabulary import TokenType

if TYPE_CHECKING:
    from vkllm.text.vocabulary import GgufVocabulary

END_TEXTS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
)
"""Tokens that end a turn or a text, whatever id the file declares as its end."""

# Name of the id in tokenizer.ggml.NAME_token_id -> texts of the token in files that declare none.
_ENDS_OF_CODE = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_PARTS_OF_CODE = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
}
_OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}

_MARK = re.compile(
    r"<[|｜].*[|｜]>|<(start|end)_of_turn>|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_\w+)\]", re.DOTALL
)

_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Tokens that structure the answers of gpt-oss; they have to stay visible."""


def marks(vocabulary: GgufVocabulary) -> dict[str, int]:
    """Text -> id of tokens that only a template or a raw prompt may write: those that are no text, and marks of turns.

    Many files type marks such as <|im_start|> as user-defined, like <think>, which is text that models write.
    """
    user_defined = vocabulary.of_type(TokenType.USER_DEFINED)
    no_text = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    return no_text | {text: token_id for text, token_id in user_defined.items() if _MARK.fullmatch(text)}


def strips_white_space_after(vocabulary: GgufVocabulary) -> frozenset[int]:
    """The ids of tokens after which a text's white space counts as part of the token, as Phi-3 was trained.

    No file says so; llama.cpp goes by the model's name, and so does this.
    """
    name = vocabulary.metadata.string("general.name", "").lower()
    if not ("phi-3" in name or "phi3" in name):
        return frozenset()
    found = vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    if "</s>" in vocabulary.ids:
        found["</s>"] = vocabulary.ids["</s>"]
    return frozenset(i for text, i in found.items() if text not in ("<unk>", "<s>", "<|endoftext|>"))


def code_marks(vocabulary: GgufVocabulary) -> dict[str, int]:
    """The tokens that models of code are shown files with: "fim_pre", "fim_suf", "fim_mid" and others -> ids."""
    found = {}
    for name, texts in (_PARTS_OF_CODE | _ENDS_OF_CODE).items():
        declared = (vocabulary.token_id(name), vocabulary.token_id(_OLD_NAMES.get(name, name)))
        known = [*declared, *map(vocabulary.ids.get, texts)]
        if (token_id := next((each for each in known if each is not None), None)) is not None:
            found[name] = token_id
    return found


def find_ends(vocabulary: GgufVocabulary, declared: Iterable[int | None]) -> frozenset[int]:
    """The ids that end an answer: the declared ones and those that are known by their text.

    Sets the types of tokens that are known by their text in `vocabulary.types`: ends and parts of code become control
    tokens, which are no part of an answer's text.
    """
    ids, types = vocabulary.ids, vocabulary.types

    def by_name(names: Mapping[str, Sequence[str]]) -> set[int]:
        found: set[int] = set()
        for name, texts in names.items():
            known = (vocabulary.token_id(name), vocabulary.token_id(_OLD_NAMES.get(name, name)))
            declared_ids = {token_id for token_id in known if token_id is not None}
            found |= declared_ids or retyped(texts, TokenType.CONTROL)
        return found

    def retyped(texts: Iterable[str], kind: TokenType) -> set[int]:
        found = {ids[text] for text in texts if text in ids}
        for token_id in found:
            types[token_id] = int(kind)
        return found

    by_name(_PARTS_OF_CODE)
    ends = by_name(_ENDS_OF_CODE) | retyped(END_TEXTS, TokenType.CONTROL)
    retyped(_ALWAYS_SHOWN, TokenType.USER_DEFINED)
    ends |= {token_id for token_id in declared if token_id is not None}

    has = {text for text, token_id in ids.items() if token_id in ends}
    # In families that have these <|end|> stands between the parts of an answer.
    if has & {"<|call|>", "<|calls|>"} and has & {"<|return|>", "<|flush|>"}:
        ends -= retyped(["<|end|>"], TokenType.USER_DEFINED)
    # In families that have these </s> is a tag of HTML.
    if has & {"<|tool_response>", "<|plamo:eos|>"}:
        ends -= retyped(["</s>"], TokenType.NORMAL)
    return frozenset(ends)
