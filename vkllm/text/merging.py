"""How plain text is merged into the ids of a vocabulary's tokens.

Three kinds: byte-level BPE (`gpt2`: merges by rank inside pre-tokenized words), SentencePiece BPE (`llama`: merges by
the score of the joined piece, bytes for what has no piece) and Gemma 4's (`gemma4`: merges by rank inside lines, bytes
for what is no token). The merging itself is done by the `tokenizers` package, but for pieces that share a score. This
module does not know special tokens inside a text, nor decoding.
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from vkllm.text.pretokenizers import PreTokenizer
from vkllm.text.vocabulary import SPACE_MARK, GgufVocabulary, TokenType, byte_value

Merger = Callable[[str], list[int]]
"""Token ids of a text that is not empty and holds no special tokens."""

_MAX_CHARACTERS_CUT = 200_000_000
"""Most characters of all tokens, counted once for each way to cut a token in two: 3 million in Llama 2's vocabulary."""

_MAX_RUN = 64
_MAX_SEARCHED = 1000
"""Of pieces that share a score with others, so many are searched in a text at most."""

_LINES = re.compile("[^\n]+|\n+")


def byte_level_bpe(vocabulary: GgufVocabulary, rules: PreTokenizer) -> Merger:
    """The merger of a `gpt2` vocabulary. A byte without a token is left out, after all merges."""
    alphabet = ByteLevel.alphabet()
    ids = _mergeable(vocabulary)
    backend, beyond = _ranked_bpe(vocabulary, ids, alphabet, ignore_merges=rules.ignore_merges)
    splits = [Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
    to_alphabet = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = PreTokenizerSequence([*splits, to_alphabet])
    instead = {i: [ids[c] for c in text if c in ids] for i, text in beyond.items()}

    def merge_words(text: str) -> list[int]:
        pieces = rules.cut_digits(text)
        if len(pieces) > 1:
            return _replaced(backend.encode_batch([pieces], is_pretokenized=True)[0].ids, instead)
        return _replaced(encoded(backend, text).ids, instead)

    return merge_words


def gemma4_bpe(vocabulary: GgufVocabulary) -> Merger:
    """The merger of a `gemma4` vocabulary: characters instead of bytes, and lines instead of words.

    What is no token becomes its bytes; one without a token is left out.
    """
    ids = _mergeable(vocabulary)
    byte_ids = _byte_ids(vocabulary)
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    backend, beyond = _ranked_bpe(vocabulary, ids | byte_ids, names)
    instead = {i: [byte_ids[names[b]] for b in text.encode() if names[b] in byte_ids] for i, text in beyond.items()}
    instead |= {i: [] for i, text in beyond.items() if text in names}
    # A run of line ends is one token where there is one, whatever the merges say.
    line_ends = {text: i for text, i in ids.items() if not text.strip("\n")}

    def merge_lines(text: str) -> list[int]:
        lines = _LINES.findall(text.replace(" ", SPACE_MARK))
        found: list[int] = []
        for line, encoding in zip(lines, backend.encode_batch(lines, add_special_tokens=False), strict=True):
            found += [line_ends[line]] if line in line_ends else encoding.ids
        return _replaced(found, instead)

    return merge_lines


def _mergeable(vocabulary: GgufVocabulary) -> dict[str, int]:
    """Text -> id of the tokens that plain text may spell: never a control token, neither by merges nor as a word kept
    whole."""
    apart = vocabulary.of_type(TokenType.CONTROL)
    apart |= {text: i for text, i in vocabulary.of_type(TokenType.BYTE).items() if byte_value(text) is not None}
    return {text: i for text, i in vocabulary.ids.items() if text not in apart}


def _ranked_bpe(
    vocabulary: GgufVocabulary, ids: Mapping[str, int], characters: Iterable[str], *, ignore_merges: bool = False
) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
    """BPE by tokenizer.ggml.merges, of which the first counts where one comes twice; the characters that texts have.

    As in llama.cpp, what is no token takes part in merges too. It gets an id past the vocabulary's end: these ids and
    their texts are the second result. Merges of and to tokens that plain text may not spell are left out.
    """
    apart = vocabulary.ids.keys() - ids.keys()
    merges: dict[tuple[str, str], None] = {}
    missing = set(characters) - ids.keys()
    for merge in vocabulary.metadata.strings("tokenizer.ggml.merges"):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space <= 0 or not right:
            continue
        if left not in ids or right not in ids or left + right not in ids:  # in few vocabularies, and in few merges
            no_tokens = {left, right, left + right} - ids.keys()
            if not apart.isdisjoint(no_tokens):
                continue
            missing |= no_tokens
        merges[left, right] = None
    beyond = {len(vocabulary.texts) + n: text for n, text in enumerate(sorted(missing))}
    symbols = {**ids, **{text: i for i, text in beyond.items()}}
    try:
        backend = tokenizers.Tokenizer(BPE(symbols, list(merges), ignore_merges=ignore_merges, byte_fallback=True))
    except Exception as error:  # the package has no class of its own
        raise vocabulary.error(f"tokenizer.ggml.merges does not fit the tokens ({str(error)[:200]})") from None
    return backend, beyond


def _replaced(ids: list[int], instead: Mapping[int, list[int]]) -> list[int]:
    return [new for old in ids for new in instead.get(old, (old,))] if instead else ids


def _byte_ids(vocabulary: GgufVocabulary) -> dict[str, int]:
    """Name of a byte, <0x00> to <0xFF> -> id; raises ModelFileError for a byte token with another text."""
    byte_ids = {}
    for text, i in vocabulary.of_type(TokenType.BYTE).items():
        if (byte := byte_value(text)) is None:
            raise vocabulary.error(
                f"tokenizer.ggml.tokens item {i} is a byte, but {text[:50]!r} is not <0x00> to <0xFF>"
            )
        byte_ids[f"<0x{byte:02X}>"] = i
    return byte_ids


def encoded(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """A text's tokens. A long text is a batch of one, because `encode` keeps all other threads waiting."""
    if len(text) < 10_000:
        return backend.encode(text, add_special_tokens=False)
    return backend.encode_batch([text], add_special_tokens=False)[0]


def sentencepiece_bpe(vocabulary: GgufVocabulary, *, adds_space: bool) -> Merger:
    """The merger of a `llama` vocabulary; raises ModelFileError for scores or byte tokens that do not fit.

    SentencePiece joins the neighbours whose joined piece has the highest score, the leftmost where several have it. So
    every cut of a piece into two pieces is a merge, ranked by that score. `adds_space` puts a space before each text.
    """
    scores = [0.0] * len(vocabulary.texts)
    if "tokenizer.ggml.scores" in vocabulary.metadata:
        scores = vocabulary.metadata.numbers("tokenizer.ggml.scores")
    if len(scores) < len(vocabulary.texts):
        raise vocabulary.error(f"tokenizer.ggml.scores has {len(scores)} items for {len(vocabulary.texts)} tokens")
    byte_ids = _byte_ids(vocabulary)
    # Control tokens are no pieces: plain text must never spell one. User-defined tokens are taken out of a text before,
    # so it can only spell those that begin with the mark of a space.
    pieces = vocabulary.of_type(TokenType.UNDEFINED, TokenType.NORMAL, TokenType.UNUSED) | {
        text: i for text, i in vocabulary.of_type(TokenType.USER_DEFINED).items() if SPACE_MARK in text
    }

    # A character that is no piece itself can still be a part of one. It takes part in merges under an id past the
    # vocabulary's end; where none took it in, it becomes what a character without a piece becomes.
    parts = sorted({character for text in pieces for character in text} - pieces.keys())
    part_ids = {character: len(vocabulary.texts) + n for n, character in enumerate(parts)}
    symbols = pieces | part_ids
    merges, joined = _cuts(vocabulary, sorted(pieces, key=lambda piece: -scores[pieces[piece]]), symbols)
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
    score_of = {text: scores[pieces[text]] for text in joined}

    def by_score(text: str) -> list[int]:
        found = _joined_by_score(text, score_of)
        return [i for symbol in found for i in ([pieces[symbol]] if symbol in pieces else fallback(symbol))]

    def by_rank(text: str) -> list[int]:
        return _replaced(encoded(backend, text).ids, instead)

    def is_run(group: list[str]) -> bool:
        """Whether these pieces repeat one character, and the leftmost of them is found by ranks too, as for spaces."""
        character, longest = group[0][0], max(map(len, group))
        if any(piece.strip(character) for piece in group) or longest > _MAX_RUN:
            return False
        if any(character * 2 in piece for piece in pieces.keys() - group):
            return False
        return all(by_score(character * n) == by_rank(character * n) for n in range(1, 4 * longest))

    # Ranks cannot say that two pieces are equal, so a text in which several of one score may be joined takes longer.
    groups: dict[float, list[str]] = {}
    for text, score in score_of.items():
        groups.setdefault(score, []).append(text)
    equal = [group for group in groups.values() if len(group) > 1 and not is_run(group)]
    is_seldom = sum(map(len, equal)) <= _MAX_SEARCHED

    def merge_text(text: str) -> list[int]:
        if adds_space:
            text = " " + text
        text = text.replace(" ", SPACE_MARK)
        if equal and not (is_seldom and all(sum(piece in text for piece in group) < 2 for group in equal)):
            return by_score(text)
        return by_rank(text)

    return merge_text


def _cuts(
    vocabulary: GgufVocabulary, pieces: Iterable[str], symbols: Mapping[str, int]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Every way to cut each of these pieces, in order, into two symbols; and the pieces that can be cut so.

    Raises ModelFileError where that would take long.
    """
    cuts: list[tuple[str, str]] = []
    joined: list[str] = []
    lengths = sorted({len(symbol) for symbol in symbols})
    n_characters = 0
    for text in pieces:
        n_before = len(cuts)
        for n in lengths[: bisect_left(lengths, len(text))]:
            left = text[:n]
            n_characters += n
            if left in symbols and (right := text[n:]) in symbols:
                cuts.append((left, right))
        if len(cuts) > n_before:
            joined.append(text)
        if n_characters > _MAX_CHARACTERS_CUT:
            raise vocabulary.error("tokenizer.ggml.tokens has too many long tokens")
    return cuts, joined


def _joined_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """The text's characters, neighbours joined by the highest score of what they give, the leftmost of equal ones."""
    symbols = list(text)  # one that was joined to its left is empty
    before = list(range(-1, len(symbols) - 1))
    after = [*range(1, len(symbols)), -1]
    queue: list[tuple[float, int, int, str]] = []

    def add(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (score := scores.get(both := symbols[left] + symbols[right])) is not None:
            heapq.heappush(queue, (-score, left, right, both))

    for right in range(1, len(symbols)):
        add(right - 1, right)
    while queue:
        _, left, right, both = heapq.heappop(queue)
        # Otherwise one of them was joined to another in the meantime.
        if symbols[left] and symbols[right] and symbols[left] + symbols[right] == both:
            symbols[left], symbols[right] = both, ""
            after[left] = end = after[right]
            if end >= 0:
                before[end] = left
            add(before[left], left)
            add(left, end)
    return [symbol for symbol in symbols if symbol]
