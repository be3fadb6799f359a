"""Vocabularies that llama.cpp takes although they are odd, and those of Gemma 4. All ids are those of llama.cpp."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_by_score import merged_by_score
from tiny_vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    MakeMetadata,
    tiny_bpe,
    tiny_gemma4,
    tiny_spm,
    write_gguf,
)

from vkllm.errors import ModelFileError
from vkllm.formats.gguf import Metadata
from vkllm.text.tokenizer import Tokenizer

tokenizer_of = functools.cache(Tokenizer.from_gguf)


def texts(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, **options)]


@pytest.fixture(scope="module", params=["three", "one", "spaces"])
def equal_scores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    """A SentencePiece vocabulary in which several pieces have one score."""
    fields = tiny_spm()
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    if request.param == "spaces":
        scores = [-1e9 if text.strip("▁") == "" else score for text, score in zip(tokens, scores, strict=True)]
    else:
        scores = [float(-(i % 3)) if request.param == "three" else 0.0 for i in range(len(tokens))]
    fields["tokenizer.ggml.scores"] = scores
    return write_gguf(tmp_path_factory.mktemp("equal") / "equal.gguf", fields)


@settings(max_examples=50)
@given(text=st.text(alphabet=st.sampled_from("aaabcdeth ▁øøé日🦙\n"), max_size=30))
def test_of_pieces_with_equal_scores_the_leftmost_in_the_text_is_joined(equal_scores: Metadata, text: str) -> None:
    tokenizer = tokenizer_of(equal_scores)
    assert tokenizer.encode(text, add_special=False, parse_special=False) == merged_by_score(equal_scores, text)


def test_a_sentencepiece_vocabulary_without_scores_joins_from_the_left(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    del fields["tokenizer.ggml.scores"]
    assert texts(Tokenizer.from_gguf(make_metadata(fields)), "the abc", add_special=False) == [" the", " ab", "c"]


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
def test_more_types_and_scores_than_tokens_and_types_that_do_not_exist_change_no_ids(
    make_metadata: MakeMetadata, make: Any
) -> None:
    expected = Tokenizer.from_gguf(make_metadata(make())).encode("hello abc the é")
    fields = make()
    kinds = [17 if kind == NORMAL else kind for kind in fields["tokenizer.ggml.token_type"]]
    fields["tokenizer.ggml.token_type"] = [*kinds, 3, -1]
    if make is tiny_spm:
        fields["tokenizer.ggml.scores"] += [1.0, 1.0]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("hello abc the é") == expected
    assert tokenizer.decode(expected).endswith("hello abc the é")


def test_what_is_no_token_takes_part_in_merges(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.tokens"].index("he")] = "<none>"
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert texts(tokenizer, "hello hel") == ["hello", " ", "h", "e", "l"]
    gemma4 = tiny_gemma4()
    gemma4["tokenizer.ggml.tokens"][gemma4["tokenizer.ggml.tokens"].index("▁")] = "<none>"
    tokenizer = Tokenizer.from_gguf(make_metadata(gemma4))
    assert texts(tokenizer, "a ba", add_special=False) == ["a", " ba"]
    mark = [4 + byte for byte in "▁".encode()]
    assert tokenizer.encode(" a", add_special=False) == [*mark, *tokenizer.encode("a", add_special=False)]


def test_of_a_merge_that_comes_twice_the_first_counts(make_metadata: MakeMetadata, bpe: Tokenizer) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.merges"] = ["o r", "h e", "l l", "he ll", "hell o", "Ġ w", "Ġw or", "l d", "Ġwor ld"]
    fields["tokenizer.ggml.merges"] += ["h e", "e l", "l l"]
    fields["tokenizer.ggml.tokens"][-1] = "el"
    assert texts(Tokenizer.from_gguf(make_metadata(fields)), "hello") == ["hello"]


def test_a_byte_without_a_token_is_left_out_and_what_was_beside_it_is_not_merged(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.tokens"].index("x")] = "<none>"
    assert texts(Tokenizer.from_gguf(make_metadata(fields)), "hxe he") == ["h", "e", " ", "he"]


def test_letters_that_are_typed_as_bytes_are_still_letters(make_metadata: MakeMetadata, bpe: Tokenizer) -> None:
    fields = tiny_bpe()
    alphabet = range(256)
    fields["tokenizer.ggml.token_type"][:256] = [BYTE for _ in alphabet]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("hello a\n") == bpe.encode("hello a\n")
    assert tokenizer.decode(tokenizer.encode("hello a\n")) == "hello a\n"


def test_a_user_defined_token_that_only_merges_would_make_is_not_made(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    abc, mark = (fields["tokenizer.ggml.tokens"].index(text) for text in ("abc", "▁ab"))
    for token_id in (abc, mark):
        fields["tokenizer.ggml.token_type"][token_id] = USER_DEFINED
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert texts(tokenizer, "habc", add_special=False) == [" ", "h", "abc"]
    # A space becomes its mark after the user-defined tokens were looked for, so merges can make this one.
    assert mark in tokenizer.encode("ab", add_special=False)


@pytest.mark.parametrize(
    ("name", "strips"), [("Phi-3.5-mini-instruct", True), ("phi3 mini", True), ("Phi-4-mini", False), (None, False)]
)
def test_in_phi_3_white_space_after_special_tokens_is_theirs(
    make_metadata: MakeMetadata, name: str | None, strips: bool
) -> None:
    fields = tiny_spm() | ({} if name is None else {"general.name": name})
    fields["tokenizer.ggml.tokens"] += ["<|user|>", "<|endoftext|>"]
    fields["tokenizer.ggml.token_type"] += [CONTROL, CONTROL]
    fields["tokenizer.ggml.scores"] += [0.0, 0.0]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    expected = [" a"] if strips else [" ", "\n", " ", "\t", "a"]
    assert texts(tokenizer, "<|user|>\n \ta", add_special=False) == ["<|user|>", *expected]
    assert texts(tokenizer, "</s>\n<|user|>", add_special=False) == [
        "</s>",
        *([] if strips else [" ", "\n"]),
        "<|user|>",
    ]
    for text in ("<s>", "<unk>", "<|endoftext|>"):
        assert texts(tokenizer, text + "\na", add_special=False) == [text, " ", "\n", "a"]


@pytest.fixture
def gemma4(make_metadata: MakeMetadata) -> Tokenizer:
    return Tokenizer.from_gguf(make_metadata(tiny_gemma4()))


def test_gemma_4_merges_characters_inside_lines_and_writes_spaces_as_marks(gemma4: Tokenizer) -> None:
    assert texts(gemma4, "a ba ba b", add_special=False) == ["a", " ba ba", " b"]
    assert texts(gemma4, "a\n b", add_special=False) == ["a", "\n", " b"]
    assert gemma4.decode(gemma4.encode("a ba\n b")) == "a ba\n b"
    assert gemma4.decode(gemma4.encode(" a"), skip_special=True) == " a"


def test_gemma_4_takes_a_run_of_line_ends_whole_if_it_is_a_token(gemma4: Tokenizer) -> None:
    assert texts(gemma4, "a\n\nb\n\n\n", add_special=False) == ["a", "\n\n", "b", "\n", "\n", "\n"]


def test_gemma_4_writes_characters_without_a_token_as_bytes(gemma4: Tokenizer) -> None:
    first = gemma4.encode("\x00", add_special=False)[0]
    assert gemma4.encode("aé", add_special=False) == [
        *gemma4.encode("a", add_special=False),
        first + 0xC3,
        first + 0xA9,
    ]
    assert gemma4.decode(gemma4.encode("aé🦙")) == "aé🦙"


def test_gemma_4_leaves_out_a_byte_without_a_token_and_no_other(make_metadata: MakeMetadata, gemma4: Tokenizer) -> None:
    fields = tiny_gemma4()
    tokens = fields["tokenizer.ggml.tokens"]
    fields["tokenizer.ggml.token_type"][tokens.index("<0xC3>")] = NORMAL
    tokens[tokens.index("<0xC3>")] = "<none>"
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("aéa") == [i for i in gemma4.encode("aéa") if gemma4.token_bytes(i) != b"\xc3"]


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_gemma_4_gets_bos_whatever_the_file_says(make_metadata: MakeMetadata, add_bos: bool | None) -> None:
    fields = tiny_gemma4() | ({} if add_bos is None else {"tokenizer.ggml.add_bos_token": add_bos})
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("a")[0] == tokenizer.bos_id == 2


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
def test_gemma_4_knows_its_bytes_by_their_names(make_metadata: MakeMetadata, gemma4: Tokenizer, kind: int) -> None:
    fields = tiny_gemma4()
    fields["tokenizer.ggml.token_type"] = [kind if k == BYTE else k for k in fields["tokenizer.ggml.token_type"]]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    for text in ("é", "<0x41>"):
        assert tokenizer.encode(text) == gemma4.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_gemma_4_vocabulary_without_merges_is_damaged(make_metadata: MakeMetadata) -> None:
    fields = tiny_gemma4()
    del fields["tokenizer.ggml.merges"]
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.merges"):
        Tokenizer.from_gguf(make_metadata(fields))
