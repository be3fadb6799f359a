"""Long texts and long tokens: the time grows with them, not with their square."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny_vocabularies import CONTROL, NORMAL, UNUSED, USER_DEFINED, MakeMetadata, tiny_bpe, tiny_spm

from vkllm.errors import ModelFileError
from vkllm.text.tokenizer import Tokenizer
from vkllm.text.whole_tokens import Found, WholeTokens

N = 300_000
# It takes about 0.5 s on a core that is busy with other things; what grows with the square takes minutes.
LIMIT_S = 10.0


def with_token(fields: dict[str, Any], text: str, kind: int) -> dict[str, Any]:
    fields["tokenizer.ggml.tokens"].append(text)
    fields["tokenizer.ggml.token_type"].append(kind)
    if "tokenizer.ggml.scores" in fields:
        fields["tokenizer.ggml.scores"].append(0.0)
    return fields


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm], ids=["bpe", "spm"])
@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNUSED])
def test_a_very_long_token_costs_no_square_of_its_length(make_metadata: MakeMetadata, make: Any, kind: int) -> None:
    text = "ab" * (N // 2)
    start = time.process_time()
    tokenizer = Tokenizer.from_gguf(make_metadata(with_token(make(), text, kind)))
    token_id = tokenizer.n_vocab - 1
    assert token_id not in tokenizer.encode(text[:-1])
    assert (token_id in tokenizer.encode(text)) is (kind in (CONTROL, USER_DEFINED))
    assert time.process_time() - start < LIMIT_S


@pytest.mark.parametrize("text", ["a" * N, " " * N + "x", "<|im_" * (N // 5), "hello\n" * (N // 6), "🦙é" * (N // 8)])
def test_a_very_long_text_is_encoded_in_time(bpe: Tokenizer, spm: Tokenizer, text: str) -> None:
    start = time.process_time()
    for tokenizer in (bpe, spm):
        ids = tokenizer.encode(text)
        assert text.startswith(tokenizer.decode(ids[:50]).rstrip("\ufffd"))
        assert b"".join(map(tokenizer.token_bytes, ids[-8:])).decode(errors="ignore")[-1] == text[-1]
    assert time.process_time() - start < LIMIT_S


def test_many_long_pieces_are_a_model_file_error_in_time(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    for length in range(1000, 1900):
        with_token(fields, "a" * length, NORMAL)
    start = time.process_time()
    with pytest.raises(ModelFileError, match="too many long tokens"):
        Tokenizer.from_gguf(make_metadata(fields))
    assert time.process_time() - start < LIMIT_S


def test_tokens_are_found_whole_the_first_and_the_longest_and_within_the_part_asked_for() -> None:
    whole = WholeTokens({"<a>": 5, "<a>b": 6, "b": 7, "ü🦙": 8})
    text = "x<a>bb<a>ü🦙<a"
    assert whole.find(text) == [Found(1, 5, 6), Found(5, 6, 7), Found(6, 9, 5), Found(9, 11, 8)]
    assert whole.find(text, 4, 8) == [Found(4, 5, 7), Found(5, 6, 7)]
    assert WholeTokens({}).find(text) == []
