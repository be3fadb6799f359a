"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

A merge never crosses a word's edge, so the wrong table gives wrong tokens without any error: names that are not here
must be refused. This module knows regular expressions (Oniguruma's) only; it never sees a vocabulary.
"""

from dataclasses import dataclass

# Contractions, then a space with letters, with digits or with symbols, then white space. A run of white space before
# a word leaves its last space to that word.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _contractions_any_case(digits: str) -> str:
    """GPT-4's pattern: any one symbol may lead a word, symbols keep their line ends; `digits` is one word of digits."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """The rules that come with one name.

    `patterns` are applied one after another, each inside the pieces that the one before left; what a pattern matches
    is a piece, and so is what lies between two matches. `ignore_merges`: a word that is a token stays whole.
    `adds_bos`: what holds where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


_LLAMA3 = PreTokenizer((_contractions_any_case(r"\p{N}{1,3}"),), ignore_merges=True, adds_bos=True)
_QWEN2 = PreTokenizer((_contractions_any_case(r"\p{N}"),))

PRE_TOKENIZERS = {
    # What llama.cpp does with files that were written before the names existed.
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
