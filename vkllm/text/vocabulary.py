"""The vocabulary in a GGUF: the texts and types of its tokens, checked.

What llama.cpp accepts is accepted here: more types than tokens, types that do not exist, ids of special tokens that are
none's. This module does not know how text becomes tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from vkllm.errors import ModelFileError

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character."""

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
        known = set(map(int, TokenType))
        given = metadata.integers("tokenizer.ggml.token_type")[: len(texts)]
        types = [kind if kind in known else int(TokenType.UNDEFINED) for kind in given]
    # Tokens that pad a vocabulary may have no text; they are never encoded.
    ids = {text: i for i, text in enumerate(texts) if text}
    vocabulary = GgufVocabulary(metadata, texts, types, ids)
    if not ids:
        raise vocabulary.error("tokenizer.ggml.tokens is empty")
    if len(types) != len(texts):
        raise vocabulary.error(f"tokenizer.ggml.token_type has {len(types)} items for {len(texts)} tokens")
    if len(ids) + texts.count("") != len(texts):
        twice = next(text for i, text in enumerate(texts) if text and ids[text] != i)
        raise vocabulary.error(f"tokenizer.ggml.tokens has {twice[:50]!r} twice")
    if metadata.string("tokenizer.ggml.model", None) in ("llama", "gemma4"):
        # Some files type them as plain text, whose name would be the answer's text.
        for text, i in ids.items():
            if byte_value(text) is not None:
                types[i] = int(TokenType.BYTE)
    return vocabulary


def byte_value(text: str) -> int | None:
    """The byte that a token's text names, as <0x0A> does; None for other texts."""
    return int(text[3:5], 16) if _BYTE_TEXT.fullmatch(text) else None
