"""Decoding token by token: whole characters only, and the same text as all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_vocabularies import USER_DEFINED, MakeMetadata, tiny_spm

from vkllm.formats.gguf import ModelFile
from vkllm.text.tokenizer import Tokenizer

# A few texts at random would never meet: words of the vocabularies, marks, and characters of 1 to 4 bytes.
KNOWN = st.sampled_from(["hello", " world", "abc", " the", "<think>", "  ", "é", "日本", "🦙"])
TEXTS = st.lists(st.one_of(st.text(max_size=8), KNOWN)).map("".join)

REAL = ["llama-bpe", "llama-spm", "qwen2"]


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, Tokenizer]:
    paths = {name: shared / "vocabs" / f"ggml-vocab-{name}.gguf" for name in REAL}
    return {name: Tokenizer.from_gguf(ModelFile.open(path).metadata) for name, path in paths.items()}


def bytes_of(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """What decoding without leaving anything out stands for."""
    return b"".join(map(tokenizer.token_bytes, ids))


def pushed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True, continues: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special=skip_special, continues=continues)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@given(text=TEXTS)
def test_a_byte_level_text_comes_back(bpe: Tokenizer, text: str) -> None:
    assert "".join(pushed(bpe, bpe.encode(text))) == bpe.decode(bpe.encode(text)) == text


@given(text=TEXTS.filter(lambda text: not text.startswith("<think>") and "<think> " not in text and "▁" not in text))
def test_a_sentencepiece_text_comes_back_but_for_spaces_put_after_user_defined_tokens(
    spm: Tokenizer, text: str
) -> None:
    expected = "<think>".join(part and " " + part for part in text.split("<think>")).removeprefix(" ")
    assert "".join(pushed(spm, spm.encode(text))) == spm.decode(spm.encode(text)) == expected


@pytest.mark.parametrize("name", REAL)
@given(text=TEXTS.filter(lambda text: "▁" not in text))
@example(text="<s>")
@example(text="a <|eot_id|></s> b")
def test_a_text_comes_back_on_real_vocabularies(real: dict[str, Tokenizer], name: str, text: str) -> None:
    assert "".join(pushed(real[name], real[name].encode(text, parse_special=False))) == text


@given(data=st.data(), skip_special=st.booleans(), continues=st.booleans())
@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_pieces_of_any_ids_join_to_the_decoded_text_and_to_the_tokens_bytes(
    bpe: Tokenizer, spm: Tokenizer, kind: str, data: st.DataObject, skip_special: bool, continues: bool
) -> None:
    tokenizer = bpe if kind == "bpe" else spm
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1)))
    text = "".join(pushed(tokenizer, ids, skip_special=skip_special, continues=continues))
    assert text == tokenizer.decode(ids, skip_special=skip_special, continues=continues)
    if continues and not skip_special:
        assert text == bytes_of(tokenizer, ids).decode(errors="replace")


@given(data=st.data())
@pytest.mark.parametrize("name", REAL)
def test_pieces_of_any_ids_join_to_the_tokens_bytes_on_real_vocabularies(
    real: dict[str, Tokenizer], name: str, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, real[name].n_vocab - 1), max_size=20))
    text = "".join(pushed(real[name], ids, skip_special=False, continues=True))
    assert text == bytes_of(real[name], ids).decode(errors="replace")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_a_character_appears_only_with_its_last_byte(bpe: Tokenizer, spm: Tokenizer, kind: str) -> None:
    tokenizer = bpe if kind == "bpe" else spm
    ids = tokenizer.encode("a🦙b", add_special=False)
    assert len(ids) >= 6
    assert [piece for piece in pushed(tokenizer, ids) if piece] == ["a", "🦙", "b"]


def ids_of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Tokens of one byte each."""
    of_byte = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.n_vocab))}
    return [of_byte[data[i : i + 1]] for i in range(len(data))]


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xf0\x9f\xa6", ["", "", "", "\ufffd"]),  # could still become a character, until the end
        (b"\xf0\x9fa", ["", "", "\ufffda", ""]),  # cannot, as soon as the next byte is there
        (b"\xffa", ["\ufffd", "a", ""]),  # never could
        (b"\xe0\x80", ["", "\ufffd\ufffd", ""]),  # too long a form
        (b"\xed\xa0\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),  # half a surrogate pair, which Python waits for
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_bytes_that_are_no_character_become_marks_only_when_that_is_certain(
    bpe: Tokenizer, spm: Tokenizer, kind: str, data: bytes, pieces: list[str]
) -> None:
    tokenizer = bpe if kind == "bpe" else spm
    assert pushed(tokenizer, ids_of_bytes(tokenizer, data)) == pieces


def test_the_added_space_goes_once_and_only_where_a_text_begins(spm: Tokenizer) -> None:
    ids = spm.encode("abc  the")
    assert spm.decode(ids) == "abc  the"
    assert spm.decode(ids, skip_special=False) == "<s> abc  the"
    assert spm.decode(spm.encode(" the")) == " the"
    the = spm.encode("the", add_special=False)
    assert spm.decode(the) == "the"
    assert spm.decode(the + the) == "the the"
    assert spm.decode(the, continues=True) == " the"


def test_a_space_that_a_user_defined_token_begins_with_is_its_own(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    fields["tokenizer.ggml.tokens"][-1] = " <b>"
    assert fields["tokenizer.ggml.token_type"][-1] == USER_DEFINED
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.decode(tokenizer.encode(" <b>")) == " <b>"


def test_special_tokens_are_left_out_or_read_as_they_are_written(bpe: Tokenizer) -> None:
    ids = bpe.encode("<|im_start|>hello<think><|im_end|>")
    assert bpe.decode(ids) == "hello<think>"
    assert bpe.decode(ids, skip_special=False) == "<|im_start|>hello<think><|im_end|>"


def test_a_special_token_between_the_bytes_of_a_character_does_not_break_it(bpe: Tokenizer) -> None:
    assert bpe.bos_id is not None
    first, *rest = bpe.encode("🦙")
    assert bpe.decode([first, bpe.bos_id, *rest]) == "🦙"


def test_token_bytes_are_those_of_the_text_and_an_unused_token_has_none(bpe: Tokenizer, spm: Tokenizer) -> None:
    unused = bpe.n_vocab - 2
    assert (bpe.token_bytes(unused), bpe.token_text(unused)) == (b"", "")
    assert [bpe.token_bytes(i) for i in bpe.encode("é world\n\x00")] == [b"\xc3\xa9", b" world", b"\n", b"\x00"]
    assert [spm.token_bytes(i) for i in spm.encode("the\n")][1:] == [b" the", b"\n"]
    assert {bpe.token_bytes(i) for i in range(256)} == {bytes((byte,)) for byte in range(256)}


@pytest.mark.parametrize("name", ["tiny bpe", "tiny spm", *REAL])
def test_answer_bytes_are_what_a_token_adds_to_an_answer_behind_a_mark_if_nothing(
    request: pytest.FixtureRequest, name: str
) -> None:
    is_tiny = name.startswith("tiny")
    tokenizer = request.getfixturevalue(name.split()[1]) if is_tiny else request.getfixturevalue("real")[name]
    answer_bytes = tokenizer.answer_bytes()
    assert len(answer_bytes) == tokenizer.n_vocab
    step = 1 if is_tiny else 7
    for token_id in [*range(0, tokenizer.n_vocab, step), *tokenizer.stop_ids]:
        piece = answer_bytes[token_id]
        is_mark = len(piece) > 1 and piece[0] == 0xFF
        assert tokenizer.decode([token_id], continues=True) == ("" if is_mark else piece.decode(errors="replace"))
        assert (piece[1:] if is_mark else piece) == tokenizer.token_bytes(token_id)
    assert all(answer_bytes[token_id][0] == 0xFF for token_id in tokenizer.stop_ids)
