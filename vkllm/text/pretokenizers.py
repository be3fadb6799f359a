"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

A merge never crosses a word's edge, so the wrong table gives wrong tokens without any error: names that are not here
must be refused. The names, and what each cuts, are those of llama.cpp 0.5.0, which for some models differs from their
own tokenizer: it knows upper and lower case of ASCII letters only. This module knows regular expressions (Oniguruma's)
only; it never sees a vocabulary.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

# Contractions, then a space with letters, with digits or with symbols, then white space. A run of white space before
# a word leaves its last space to that word.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_SYMBOL = r"[^\r\n\p{L}\p{N}]?"
"""What may lead a word of letters."""
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"


def _gpt4(digits: str, *, letters: str = r"\p{L}", symbols: str = _SYMBOLS, spaces: str = _SPACES) -> str:
    """GPT-4's pattern: contractions in any case, any one symbol may lead a word, symbols keep their line ends."""
    return rf"{_CONTRACTIONS}|{_SYMBOL}{letters}+|{digits}|{symbols}|{spaces}"


def _cased(digits: str, ending: str) -> str:
    """GPT-4o's pattern: a word ends before a capital (of ASCII) that follows a small letter; `ending` may follow it."""
    upper, lower = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
    words = rf"{_SYMBOL}{upper}*{lower}+{ending}|{_SYMBOL}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_HAN = r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
_KIMI_LETTERS = rf"[\p{{L}}&&[^{_HAN}]]"
_CJK = r"[[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&[^\s]]+"
# Letters of a case, as of a Unicode version that was old even then.
_OLD_LETTERS = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{0560}-\x{0588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C88}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}"
    r"\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DF1E}]]"
)
_OLD_SYMBOLS = r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]"
_MARKS_APART = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"
_PUNCTUATED = r"[!-/:-@\[-`{-~][A-Za-z]+"


@dataclass(frozen=True)
class PreTokenizer:
    """The rules that come with one name.

    `patterns` are applied one after another, each inside the pieces that the one before left; what a pattern matches
    is a piece, and so is what lies between two matches. `ignore_merges`: a word that is a token stays whole.
    `adds_bos`: what holds where the file does not say. `digits_by_three`: before the patterns, runs of digits are cut
    into groups of three from their end, as in 1 234 567; "ascii" digits, or those of all "scripts", whose first group
    stays with the text before.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    digits_by_three: Literal["", "ascii", "scripts"] = ""

    def cut_digits(self, text: str) -> list[str]:
        """The pieces of a text that `digits_by_three` makes. A pattern would take the square of a run's length."""
        if self.digits_by_three == "ascii":
            runs = [range(found.end() - 3, found.start() - 1, -3) for found in re.finditer("[0-9]+", text)]
        elif self.digits_by_three == "scripts":
            signs = "".join("1" if unicodedata.category(character)[0] == "N" else " " for character in text)
            runs = [range(found.end(), found.start(), -3) for found in re.finditer("1+", signs)]
        else:
            return [text]
        cuts = {0, len(text)}.union(*runs)
        return [text[start:end] for start, end in pairwise(sorted(cuts))]


_BY_RULES: dict[PreTokenizer, str] = {
    # What llama.cpp does with files that were written before the names existed.
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    PreTokenizer((_GPT2,)): "gpt-2 phi-2 olmo mpt jais trillion exaone4 mellum gigachat a.x-4.0 granite-docling",
    PreTokenizer((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")): "falcon",
    PreTokenizer((_gpt4(r"\p{N}{1,3}"),)): "dbrx smaug-bpe chatglm-bpe",
    PreTokenizer((_gpt4(r"\p{N}{1,3}"),), ignore_merges=True): "glm4 glm5",
    PreTokenizer((_gpt4(r"\p{N}{1,3}"),), ignore_merges=True, adds_bos=True): (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"
    ),
    PreTokenizer((_gpt4(r"\p{N}"),)): "qwen2 deepseek-r1-qwen kormo megrez f2llmv2 stablelm2 hunyuan solar-open grok-2",
    PreTokenizer((rf"{_SYMBOL}\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_SPACES}",)): "ufakzeka",
    PreTokenizer((_gpt4(r"\p{N}", letters=r"[\p{L}\p{M}]", symbols=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),)): "qwen35",
    PreTokenizer((_gpt4(r"\p{N}", spaces=r"\s*[\r\n]|\s+(?!\S)|\s+"),)): "bailingmoe bailingmoe2 llada-moe",
    PreTokenizer((_gpt4(r"\p{N}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+"),)): "seed-coder",
    PreTokenizer((r"[^\n]+|\n+", _gpt4(r"\p{N}"))): "laguna",
    PreTokenizer((r"\p{N}{1,3}", _gpt4(r"\p{N}+")), ignore_merges=True): "minicpm5",
    PreTokenizer((_cased(r"\p{N}", ""),), ignore_merges=True, adds_bos=True): "tekken",
    PreTokenizer((_cased(r"\p{N}{1,3}", f"(?:{_CONTRACTIONS})?"),)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    PreTokenizer(
        (
            r"\p{N}{1,3}",
            r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
            rf"{_PUNCTUATED}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        )
    ): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    PreTokenizer(
        (r"[\r\n]", rf"\s?{_OLD_LETTERS}+", rf"\s?{_OLD_SYMBOLS}+", r"\s+\z", _CJK, r"\p{N}+")
    ): "deepseek-llm",
    PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")): "deepseek-coder",
    PreTokenizer((_MARKS_APART, r"\p{N}")): "viking",
    PreTokenizer((_MARKS_APART,)): "poro-chat bloom gpt3-finnish",
    PreTokenizer((r"\p{N}+",), digits_by_three="ascii"): "superbpe",
    PreTokenizer(
        (rf"{_SYMBOL}[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
        digits_by_three="scripts",
    ): "tiny_aya cohere2moe",
    PreTokenizer(
        (
            rf"[{_HAN}]+|{_SYMBOL}{_KIMI_LETTERS}+(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ): "kimi-k2",
}

PRE_TOKENIZERS = {name: rules for rules, names in _BY_RULES.items() for name in names.split()}
