"""SentencePiece, written for comparison: slow and plain."""

from __future__ import annotations

import itertools

from tiny_vocabularies import BYTE, NORMAL, USER_DEFINED

from vkllm.formats.gguf import Metadata


def merged_by_score(metadata: Metadata, text: str) -> list[int]:
    """SentencePiece as llama.cpp does it: join the neighbours whose piece scores best, the leftmost of equals."""
    types = metadata.integers("tokenizer.ggml.token_type")
    tokens = metadata.strings("tokenizer.ggml.tokens")
    scores = metadata.numbers("tokenizer.ggml.scores")
    pieces = {token: i for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    byte_ids = {token: i for i, token in enumerate(tokens) if types[i] == BYTE}
    symbols = list(f" {text}".replace(" ", "▁")) if text else []
    while True:
        joined = [left + right for left, right in itertools.pairwise(symbols)]
        pairs = [(-scores[pieces[piece]], i) for i, piece in enumerate(joined) if piece in pieces]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [joined[i]]
    ids = []
    for symbol in symbols:
        ids += [pieces[symbol]] if symbol in pieces else [byte_ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids
