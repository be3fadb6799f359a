"""Tokens that are known by their text: what ends an answer whatever a file says, and bytes of the wrong type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tiny_vocabularies import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, MakeMetadata, tiny_bpe, tiny_spm

from vkllm.text.tokenizer import Tokenizer
from vkllm.text.vocabulary import TokenType

ENDS = [
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *(
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<eos>",
        "<turn|>",
    ),
    *("<end_of_utterance>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>"),
    *("<REPO>", "<reponame>", "<|file_sep|>"),
]
NO_VALUE = 4294967295


def added(fields: dict[str, Any], texts: Sequence[str], kind: int) -> list[int]:
    """Adds tokens to the fields of a vocabulary; their ids."""
    first = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += texts
    fields["tokenizer.ggml.token_type"] += [kind] * len(texts)
    if "tokenizer.ggml.scores" in fields:
        fields["tokenizer.ggml.scores"] += [0.0] * len(texts)
    return list(range(first, first + len(texts)))


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNUSED])
@pytest.mark.parametrize("end", ENDS)
def test_a_known_end_ends_an_answer_and_shows_no_text_whatever_its_type(
    make_metadata: MakeMetadata, end: str, kind: int
) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.tokens"] = [t.replace("<|im_end|>", "<|none|>") for t in fields["tokenizer.ggml.tokens"]]
    (token_id,) = added(fields, [end], kind)
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.stop_ids == {tokenizer.eos_id, token_id}
    assert tokenizer.decode([token_id]) == ""
    assert tokenizer.encode(end) == [token_id]
    assert token_id not in tokenizer.encode(end, parse_special=False)


def test_a_file_without_types_ends_at_the_known_names(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    del fields["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.stop_ids == {tokenizer.eos_id}
    assert tokenizer.encode("hello<|im_end|>") == [*tokenizer.encode("hello"), tokenizer.eos_id]


def test_declared_ends_count_beside_the_known_names_and_a_declared_one_replaces_the_names_of_gaps(
    make_metadata: MakeMetadata,
) -> None:
    fields = tiny_bpe()
    done, pad, other, eom, eot = added(fields, ["<done>", "<PAD>", "<gap>", "<over>", "<|eot_id|>"], CONTROL)
    fields |= {f"tokenizer.ggml.{key}_token_id": i for key, i in (("eot", done), ("fim_pad", other), ("eom", eom))}
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.stop_ids == {tokenizer.eos_id, done, other, eom, eot}
    assert pad not in tokenizer.stop_ids


@pytest.mark.parametrize(
    ("texts", "between"),
    [
        (["<|return|>", "<|call|>"], "<|end|>"),
        (["<|calls|>", "<|flush|>"], "<|end|>"),
        (["<|call|>", "<|flush|>"], "<|end|>"),
        (["<|tool_response>"], "</s>"),
        (["<|return|>"], None),
        (["<|call|>", "</s>"], None),
    ],
)
def test_in_families_where_it_stands_between_parts_an_end_is_none(
    make_metadata: MakeMetadata, texts: list[str], between: str | None
) -> None:
    fields = tiny_bpe()
    ends = added(fields, texts, CONTROL)
    (middle,) = added(fields, [between or "<|end|>"], CONTROL)
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.stop_ids == {tokenizer.eos_id, *ends, *([middle] if between is None else [])}
    assert tokenizer.decode([middle]) == (between or "")


def test_the_marks_of_gpt_oss_are_text_of_an_answer(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    ids = added(fields, ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"], CONTROL)
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.decode(ids) == "<|channel|><|message|><|start|><|constrain|>"
    assert not tokenizer.stop_ids & {*ids}


def test_the_parts_of_code_to_fill_in_are_control_tokens_but_no_ends(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    ids = added(fields, ["<|fim_prefix|>", "<fim_suffix>", "<MID>"], NORMAL)
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("<|fim_prefix|>h<fim_suffix><MID>") == [ids[0], *tokenizer.encode("h"), *ids[1:]]
    assert {tokenizer.token_type(i) for i in ids} == {TokenType.CONTROL}
    assert tokenizer.stop_ids == {tokenizer.eos_id}


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "fim_pad", "mask"])
@pytest.mark.parametrize("token_id", [NO_VALUE, "n_vocab"])
@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
def test_special_ids_that_are_no_token_s_count_as_not_declared(
    make_metadata: MakeMetadata, make: Any, token_id: Any, key: str
) -> None:
    fields = make()
    name = f"tokenizer.ggml.{key}_token_id"
    fields.pop(name, None)
    silent = Tokenizer.from_gguf(make_metadata(fields))
    n_vocab = len(fields["tokenizer.ggml.tokens"])
    fields |= {name: n_vocab if token_id == "n_vocab" else token_id, "tokenizer.ggml.add_bos_token": True}
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (silent.bos_id, silent.eos_id, silent.stop_ids)
    assert tokenizer.stop_ids
    expected = silent.encode("hello", add_special=False)
    assert tokenizer.encode("hello") == ([] if silent.bos_id is None else [silent.bos_id]) + expected


def test_adding_tokens_that_do_not_exist_adds_none(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    del fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert (tokenizer.adds_bos, tokenizer.adds_eos) == (False, False)
    assert tokenizer.encode("hello") == tokenizer.encode("hello", add_special=False)


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, CONTROL, UNUSED])
def test_byte_tokens_of_a_sentencepiece_vocabulary_are_bytes_whatever_their_type(
    make_metadata: MakeMetadata, spm: Tokenizer, kind: int
) -> None:
    fields = tiny_spm()
    types = fields["tokenizer.ggml.token_type"]
    fields["tokenizer.ggml.token_type"] = [kind if t == BYTE else t for t in types]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    for text in ["a\nb", "🦙ø", "<0x0A>", "x<0x41>"]:
        assert tokenizer.encode(text) == spm.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(3 + 10) == b"\n"
    assert tokenizer.answer_bytes()[3 + 10] == b"\n"


def test_byte_tokens_without_types_or_in_small_letters_are_bytes(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    fields["tokenizer.ggml.tokens"][3:259] = [f"<0x{byte:02x}>" for byte in range(256)]
    del fields["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("\n", add_special=False)[-1] == 3 + 10
    assert tokenizer.decode(tokenizer.encode("a\nb🦙", add_special=False)) == "a\nb🦙"


def test_a_byte_token_of_a_byte_level_vocabulary_is_its_byte_and_the_same_text_typed_normal_is_text(
    make_metadata: MakeMetadata,
) -> None:
    for kind, expected in ((BYTE, b"\n"), (NORMAL, b"<0x0A>")):
        fields = tiny_bpe()
        (token_id,) = added(fields, ["<0x0A>"], kind)
        tokenizer = Tokenizer.from_gguf(make_metadata(fields))
        assert tokenizer.token_bytes(token_id) == expected
        assert tokenizer.decode(tokenizer.encode("<0x0A>")) == "<0x0A>"
