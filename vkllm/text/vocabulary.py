"""The vocabulary in a GGUF, checked, and the mergers that turn plain text into its token ids.

Two kinds: byte-level BPE (`gpt2`: merges by rank inside pre-tokenized words) and SentencePiece BPE (`llama`: merges
by the score of the joined piece, bytes for what has no piece). The merging itself is done by the `tokenizers` package.
This module does not know special tokens inside a text, nor decoding.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from vkllm.errors import ModelFileError
from vkllm.text.pretokenizers import PreTokenizer

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata

Merger = Callable[[str], list[int]]
"""Token ids of a text that is not empty and holds no special tokens."""

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character."""

_MAX_CHARACTERS_CUT = 200_000_000
"""Most characters of all tokens, counted once for each way to cut a token in two: 3 million in Llama 2's vocabulary."""

_BYTE_TEXT = re.compile("<0x[0-9A-Fa-f]{2}>")


class TokenType(IntEnum):
    """The values of tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokens of a file: `texts[id]`, `types[id]` (a TokenType), and `ids`, text -> id, of all that have a text."""

    metadata: Metadata
    texts: list[str]
    types: list[int]
    ids: dict[str, int]

    def error(self, problem: str) -> ModelFileError:
        """The error for a damaged vocabulary, naming the file."""
        return ModelFileError(f"{self.metadata.path}: {problem}; the vocabulary is damaged, get the model again.")

    def of_type(self, *types: TokenType) -> dict[str, int]:
        """Text -> id of the tokens of these types."""
        wanted = set(map(int, types))  # plain integers, as comparing enums takes a while for 100,000 tokens
        return {text: i for text, i in self.ids.items() if self.types[i] in wanted}

    def token_id(self, name: str, default: int | None = None) -> int | None:
        """The id in tokenizer.ggml.NAME_token_id; the default where the file has none, or one that is no token's.

        Files write ids such as 4294967295 or the number of tokens for "none". A default that is no token's is None.
        """
        key = f"tokenizer.ggml.{name}_token_id"
        for token_id in (self.metadata.integer(key) if key in self.metadata else None, default):
            if token_id is not None and 0 <= token_id < len(self.texts):
                return token_id
        return None


def read_vocabulary(metadata: Metadata) -> GgufVocabulary:
    """Reads and checks tokens and types; raises ModelFileError where they do not fit together."""
    texts = metadata.strings("tokenizer.ggml.tokens")
    types = [int(TokenType.NORMAL)] * len(texts)
    if "tokenizer.ggml.token_type" in metadata:
        types = metadata.integers("tokenizer.ggml.token_type")
    # Tokens that pad a vocabulary may have no text; they are never encoded.
    ids = {text: i for i, text in enumerate(texts) if text}
    vocabulary = GgufVocabulary(metadata, texts, types, ids)
    if not ids:
        raise vocabulary.error("tokenizer.ggml.tokens is empty")
    if len(types) != len(texts):
        raise vocabulary.error(f"tokenizer.ggml.token_type has {len(types)} items for {len(texts)} tokens")
    if not set(types) <= set(TokenType):
        raise vocabulary.error(f"tokenizer.ggml.token_type has values that are none of 0 to {max(TokenType)}")
    if len(ids) + texts.count("") != len(texts):
        twice = next(text for i, text in enumerate(texts) if text and ids[text] != i)
        raise vocabulary.error(f"tokenizer.ggml.tokens has {twice[:50]!r} twice")
    if metadata.string("tokenizer.ggml.model", None) == "llama":
        # Some files type them as plain text, whose name would be the answer's text.
        for text, i in ids.items():
            if byte_value(text) is not None:
                types[i] = int(TokenType.BYTE)
    return vocabulary


def byte_value(text: str) -> int | None:
    """The byte that a token's text names, as <0x0A> does; None for other texts."""
    return int(text[3:5], 16) if _BYTE_TEXT.fullmatch(text) else None


def byte_level_bpe(vocabulary: GgufVocabulary, rules: PreTokenizer) -> Merger:
    """The merger of a `gpt2` vocabulary; merges of what is not a token are left out, others keep their order."""
    # Plain text must never spell a control token, neither by merges nor as a word kept whole.
    apart = vocabulary.of_type(TokenType.CONTROL, TokenType.BYTE)
    ids = {text: i for text, i in vocabulary.ids.items() if text not in apart}
    merges: list[tuple[str, str]] = []
    for merge in vocabulary.metadata.strings("tokenizer.ggml.merges"):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space > 0 and left in ids and right in ids and left + right in ids:
            merges.append((left, right))
    try:
        backend = tokenizers.Tokenizer(BPE(ids, merges, ignore_merges=rules.ignore_merges))
    except Exception as error:  # the package has no class of its own
        raise vocabulary.error(f"tokenizer.ggml.merges does not fit the tokens ({str(error)[:200]})") from None
    splits = [Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
    to_alphabet = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = PreTokenizerSequence([*splits, to_alphabet])

    def merge_words(text: str) -> list[int]:
        ids: list[int] = encoded(backend, text).ids
        return ids

    return merge_words


def encoded(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """A text's tokens. A long text is a batch of one, because `encode` keeps all other threads waiting."""
    if len(text) < 10_000:
        return backend.encode(text, add_special_tokens=False)
    return backend.encode_batch([text], add_special_tokens=False)[0]


def sentencepiece_bpe(vocabulary: GgufVocabulary, *, adds_space: bool) -> Merger:
    """The merger of a `llama` vocabulary; raises ModelFileError for scores or byte tokens that do not fit.

    SentencePiece joins the neighbours whose joined piece has the highest score, so every cut of a piece into two
    pieces is a merge, ranked by that score; of two pieces with one score the first in the vocabulary goes first, where
    llama.cpp takes the leftmost in the text. `adds_space` puts a space before each text.
    """
    scores = vocabulary.metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.texts):
        raise vocabulary.error(f"tokenizer.ggml.scores has {len(scores)} items for {len(vocabulary.texts)} tokens")
    byte_ids = {}
    for text, i in vocabulary.of_type(TokenType.BYTE).items():
        if (byte := byte_value(text)) is None:
            raise vocabulary.error(
                f"tokenizer.ggml.tokens item {i} is a byte, but {text[:50]!r} is not <0x00> to <0xFF>"
            )
        byte_ids[f"<0x{byte:02X}>"] = i
    # Control tokens are no pieces: plain text must never spell one.
    pieces = vocabulary.of_type(TokenType.UNDEFINED, TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)

    # A character that is no piece itself can still be a part of one. It takes part in merges under an id past the
    # vocabulary's end; where none took it in, it becomes what a character without a piece becomes.
    parts = sorted({character for text in pieces for character in text} - pieces.keys())
    part_ids = {character: len(vocabulary.texts) + n for n, character in enumerate(parts)}
    symbols = pieces | part_ids
    merges: list[tuple[str, str]] = []
    lengths = sorted({len(symbol) for symbol in symbols})
    n_characters = 0
    for text in sorted(pieces, key=lambda piece: -scores[pieces[piece]]):
        for n in lengths[: bisect_left(lengths, len(text))]:
            left = text[:n]
            n_characters += n
            if left in symbols and (right := text[n:]) in symbols:
                merges.append((left, right))
        if n_characters > _MAX_CHARACTERS_CUT:
            raise vocabulary.error("tokenizer.ggml.tokens has too many long tokens")

    unknown_id = vocabulary.token_id("unknown", default=0)
    unknown_text = "" if unknown_id is None else vocabulary.texts[unknown_id]
    unknown = {unknown_text: vocabulary.ids[unknown_text]} if unknown_text else {}
    backend = tokenizers.Tokenizer(
        BPE(symbols | byte_ids | unknown, merges, byte_fallback=True, unk_token=unknown_text or None)
    )

    def fallback(character: str) -> list[int]:
        names = [f"<0x{byte:02X}>" for byte in character.encode()]
        if all(name in byte_ids for name in names):
            return [byte_ids[name] for name in names]
        return list(unknown.values())

    instead = {i: fallback(character) for character, i in part_ids.items()}

    def merge_text(text: str) -> list[int]:
        if adds_space:
            text = " " + text
        ids: list[int] = encoded(backend, text.replace(" ", SPACE_MARK)).ids
        if instead:
            ids = [new for old in ids for new in instead.get(old, (old,))]
        return ids

    return merge_text
