"""Text to token ids and back, with special tokens and whole characters.

Knows the text of a token, which tokens end an answer, and how a stream of tokens becomes text. It knows nothing of
chats, models or devices; how plain text is merged into tokens is merging.py's.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from vkllm.errors import InvalidParameter, UnsupportedModel
from vkllm.text.merging import byte_level_bpe, gemma4_bpe, sentencepiece_bpe
from vkllm.text.pretokenizers import PRE_TOKENIZERS
from vkllm.text.special_tokens import code_marks, find_ends, marks, strips_white_space_after
from vkllm.text.vocabulary import SPACE_MARK, GgufVocabulary, TokenType, byte_value, read_vocabulary
from vkllm.text.whole_tokens import Found, WholeTokens

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet, character -> byte: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()

# As plain integers, since comparing enums takes a while for 100,000 tokens.
_UNUSED, _BYTE = int(TokenType.UNUSED), int(TokenType.BYTE)
_NO_TEXT = (int(TokenType.CONTROL), int(TokenType.UNKNOWN))
_WHOLE = (*_NO_TEXT, int(TokenType.USER_DEFINED))
_WHITE_SPACE = " \t\n\v\f\r"
_KINDS = ("gpt2", "llama", "gemma4")


def check_kind(metadata: Metadata) -> None:
    """Raises UnsupportedModel for a kind of tokenizer or a pre-tokenizer not known here, without reading the
    vocabulary."""
    model = metadata.string("tokenizer.ggml.model")
    if model not in _KINDS:
        raise UnsupportedModel(
            f"{metadata.path}: the tokenizer {model[:50]!r} is not supported; use a model with one of "
            f"{', '.join(_KINDS)}."
        )
    if model == "gpt2":
        _pre_tokenizer(metadata)


def _pre_tokenizer(metadata: Metadata) -> str:
    pre = metadata.string("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedModel(
            f"{metadata.path}: the pre-tokenizer {pre[:50]!r} is not supported, and others would give wrong "
            f"ids; use a model with one of {', '.join(PRE_TOKENIZERS)}."
        )
    return pre


class Tokenizer:
    """Encodes text to token ids and decodes them.

    `n_vocab`: number of tokens; `bos_id`, `eos_id`: None where the model has none; `adds_bos`, `adds_eos`: what
    `add_special` puts around a text; `stop_ids`: the tokens that end an answer; `code_marks`: names and ids
    of those that models of code are shown files with.
    """

    def __init__(self, vocabulary: GgufVocabulary) -> None:
        """Raises ModelFileError for a damaged vocabulary, UnsupportedModel as `check_kind`."""
        metadata = vocabulary.metadata
        kind = metadata.string("tokenizer.ggml.model")
        self._texts = vocabulary.texts
        self._types = vocabulary.types
        self._is_byte_level = kind == "gpt2"
        self.n_vocab = len(self._texts)
        self.bos_id = vocabulary.token_id("bos", default=1 if kind == "llama" else None)
        self.eos_id = vocabulary.token_id("eos", default=2 if kind == "llama" else None)
        # Sets types, on which everything below depends.
        self.stop_ids = find_ends(vocabulary, (self.eos_id, vocabulary.token_id("eot"), vocabulary.token_id("eom")))
        self.code_marks = code_marks(vocabulary)
        self._strips_after = strips_white_space_after(vocabulary)
        self._adds_space = kind == "llama" and metadata.boolean("tokenizer.ggml.add_space_prefix", True)
        adds_bos = metadata.boolean("tokenizer.ggml.add_bos_token", None)
        if kind == "llama":
            self._merge = sentencepiece_bpe(vocabulary, adds_space=self._adds_space)
            usually_adds_bos = True
        elif kind == "gemma4":
            self._merge = gemma4_bpe(vocabulary)
            adds_bos = True  # even where the file says no, as llama.cpp does
        else:
            rules = PRE_TOKENIZERS[_pre_tokenizer(metadata)]
            self._merge = byte_level_bpe(vocabulary, rules)
            usually_adds_bos = rules.adds_bos
        self.adds_bos = (usually_adds_bos if adds_bos is None else adds_bos) and self.bos_id is not None
        self.adds_eos = metadata.boolean("tokenizer.ggml.add_eos_token", False) and self.eos_id is not None
        # Tokens that are found in a text before anything is merged.
        user_defined = vocabulary.of_type(TokenType.USER_DEFINED)
        only_written_by_templates = marks(vocabulary)
        self._mark_ids = frozenset(only_written_by_templates.values())
        self._whole = WholeTokens(user_defined | only_written_by_templates)
        self._marks = WholeTokens(only_written_by_templates)
        self._user_defined = WholeTokens(user_defined)
        in_content = user_defined.keys() - only_written_by_templates.keys()
        self._whole_in_content = WholeTokens({text: user_defined[text] for text in in_content})

    @classmethod
    def from_gguf(cls, metadata: Metadata) -> Tokenizer:
        """Builds the tokenizer of a model from its tokenizer.ggml.* fields.

        Raises ModelFileError for a damaged vocabulary, UnsupportedModel as `check_kind`.
        """
        check_kind(metadata)
        return cls(read_vocabulary(metadata))

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        content: Sequence[tuple[int, int]] = (),
    ) -> list[int]:
        """Token ids of a text.

        `add_special` puts the beginning and end tokens around it where the model wants them, never a second one.
        `parse_special` takes control tokens written in the text, such as <|im_end|>, as those tokens; without it they
        are plain text. content: the ranges of characters that are plain text in any case, in order and apart: no
        control token, and no mark of a turn that is typed user-defined, has a character in them. They change nothing
        else: words are merged across their ends. Raises InvalidParameter for a text with half a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameter(
                f"The text has half a surrogate pair at character {error.start}; pass valid Unicode."
            ) from None
        ids: list[int] = []
        end = 0
        for found in self._find_whole(text, parse_special, content):
            if end < found.start:
                ids += self._merge(text[end : found.start])
            ids.append(found.token_id)
            end = found.end
            if found.token_id in self._strips_after:
                end += len(text[end:]) - len(text[end:].lstrip(_WHITE_SPACE))
        if end < len(text):
            ids += self._merge(text[end:])
        if add_special and self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if add_special and self.adds_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def _find_whole(self, text: str, parse_special: bool, content: Sequence[tuple[int, int]]) -> list[Found]:
        """The tokens that are taken whole, in order."""
        if not parse_special:
            return self._user_defined.find(text)
        tokens = self._whole.find(text)
        starts = [start for start, _ in content]

        def is_content(found: Found) -> bool:
            before = bisect_left(starts, found.end) - 1
            return before >= 0 and content[before][1] > found.start and found.token_id in self._mark_ids

        if not any(map(is_content, tokens)):
            return tokens
        ends = [end for _, end in content]
        tokens = []
        for start, end in zip([0, *ends], [*starts, len(text)], strict=True):
            tokens += self._marks.find(text, start, end)
        bounds = [0, *(bound for found in tokens for bound in (found.start, found.end)), len(text)]
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            tokens += self._whole_in_content.find(text, start, end)
        return sorted(tokens, key=lambda found: found.start)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD. Parameters as in `detokenizer`."""
        detokenizer = self.detokenizer(skip_special=skip_special, continues=continues)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    def detokenizer(self, *, skip_special: bool = True, continues: bool = False) -> Detokenizer:
        """Turns tokens into text one by one.

        `skip_special` leaves control and unknown tokens out. SentencePiece puts a space before each text; it is taken
        off the first token, unless the tokens continue a text that came before (`continues`), whose space is real.
        """
        return Detokenizer(self, skip_special=skip_special, strips_space=self._adds_space and not continues)

    def whole_token(self, text: str) -> int | None:
        """The id of the control or user-defined token that is this text; None if there is none."""
        found = self._whole.find(text)
        return found[0].token_id if len(found) == 1 and (found[0].start, found[0].end) == (0, len(text)) else None

    def token_text(self, token_id: int) -> str:
        """The text of one token; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, perhaps a part of a character; an unused token has none.

        Raises InvalidParameter for an id outside the vocabulary.
        """
        kind = self.token_type(token_id)
        return self._bytes_of(self._texts[token_id], kind)

    def answer_bytes(self) -> tuple[bytes, ...]:
        """What each token, by id, adds to the text of an answer. Control and unknown tokens, which add no text but have
        a meaning, are given as their name after the byte 0xFF, which occurs in no text."""
        return tuple(
            b"\xff" + text.encode() if kind in _NO_TEXT else self._bytes_of(text, kind)
            for text, kind in zip(self._texts, self._types, strict=True)
        )

    def _bytes_of(self, text: str, kind: int) -> bytes:
        if kind == _UNUSED:
            return b""
        if kind in _WHOLE:
            return text.encode()
        if kind == _BYTE and (byte := byte_value(text)) is not None:
            return bytes((byte,))
        if self._is_byte_level:
            try:
                return bytes(map(_BYTE_OF.__getitem__, text))
            except KeyError:  # outside the alphabet: the token was added to the vocabulary as plain text
                return text.encode()
        return text.replace(SPACE_MARK, " ").encode()

    def token_type(self, token_id: int) -> TokenType:
        """Normal, control, byte and so on; raises InvalidParameter for an id outside the vocabulary."""
        if not 0 <= token_id < self.n_vocab:
            raise InvalidParameter(
                f"Token id {token_id} is not in the vocabulary; ids go from 0 to {self.n_vocab - 1}."
            )
        return TokenType(self._types[token_id])


class Detokenizer:
    """Turns a stream of tokens into text, whole characters only. Made by `Tokenizer.detokenizer`.

    shown: control tokens that are not left out, because somebody who takes the text apart goes by them.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool, strips_space: bool) -> None:
        self.shown: Container[int | None] = ()
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strips_space = strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, perhaps none."""
        kind = self._tokenizer.token_type(token_id)
        if self._skip_special and kind in (TokenType.CONTROL, TokenType.UNKNOWN) and token_id not in self.shown:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._strips_space and piece:
            self._strips_space = False
            # Only merged text has the added space; one in a user-defined token is its own.
            if kind in (TokenType.NORMAL, TokenType.UNDEFINED, TokenType.BYTE):
                piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Ends the text: U+FFFD for a character whose bytes never became whole."""
        return self._decoder.decode(b"", final=True)
