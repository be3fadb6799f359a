"""Encoding: llama.cpp's vectors on real vocabularies, special tokens, and what damaged vocabularies end in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merging_by_score import merged_by_score
from tiny_vocabularies import CONTROL, USER_DEFINED, MakeMetadata, tiny_bpe, tiny_spm

from vkllm.errors import InvalidParameter, ModelFileError, UnsupportedModel
from vkllm.formats.gguf import Metadata, ModelFile
from vkllm.text.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def vectors(vocabulary: Path) -> list[tuple[str, list[int]]]:
    texts = Path(f"{vocabulary}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{vocabulary}.out").read_text().splitlines()
    return [(text, [int(token_id) for token_id in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2"])
def test_real_vocabularies_give_the_ids_and_the_texts_of_llama_cpp_s_vectors(shared: Path, name: str) -> None:
    vocabulary = shared / "vocabs" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(ModelFile.open(vocabulary).metadata)
    cases = vectors(vocabulary)
    assert len(cases) == 46
    for text, ids in cases:
        assert tokenizer.encode(text, add_special=False, parse_special=False) == ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.weights
def test_smollm2_gives_the_golden_prompts_ids_and_answers_texts(shared: Path, smollm2: Metadata) -> None:
    tokenizer = Tokenizer.from_gguf(smollm2)
    golden = json.loads((shared / "golden" / "smollm2-135m-instruct-q4_1.json").read_text())
    assert len(golden["cases"]) == 7
    for case in golden["cases"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_tokens"]
        assert tokenizer.decode(case["prompt_tokens"]) == case["prompt"]
        assert tokenizer.decode(case["tokens"]) == case["text"]
    assert {tokenizer.token_text(i) for i in tokenizer.stop_ids} == {"<|endoftext|>", "<|im_end|>", "<reponame>"}


@given(text=st.text(alphabet=st.sampled_from("aaabcdeth ▁øøé日🦙\n"), max_size=30))
def test_spm_merges_by_score_even_through_characters_that_are_no_piece(
    spm_metadata: Metadata, spm: Tokenizer, text: str
) -> None:
    assert spm.encode(text, add_special=False, parse_special=False) == merged_by_score(spm_metadata, text)


def test_spm_merges_by_score_on_a_real_vocabulary(shared: Path) -> None:
    metadata = ModelFile.open(shared / "vocabs" / "ggml-vocab-llama-spm.gguf").metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in ["    " * 9 + "x", "a" * 50, "=" * 77, "ab-ba" * 9, "The thermodynamics 12345, ‘日本語’ 🦙", "\t\r\n"]:
        assert tokenizer.encode(text, add_special=False) == merged_by_score(metadata, text)


def test_spaces_of_one_score_in_a_real_vocabulary_cost_no_time(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = ModelFile.open(shared / "vocabs" / "ggml-vocab-llama-spm.gguf").metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    text = "x" + "".join(f"{' ' * n}y" for n in range(40))
    expected = merged_by_score(metadata, text)
    monkeypatch.setattr("vkllm.text.merging._joined_by_score", None)  # which takes a second for 100,000 characters
    assert tokenizer.encode(text, add_special=False) == expected


def test_merges_go_by_rank_inside_words(bpe: Tokenizer) -> None:
    assert [bpe.token_text(i) for i in bpe.encode("hello world, helo")] == ["hello", " world", ",", " ", "he", "l", "o"]


@pytest.mark.parametrize("wrong", ["h o", "he nobody", "nobody he", "he", " he", "", "h e l", "h  e"])
def test_merges_that_lead_to_no_token_change_nothing(make_metadata: MakeMetadata, bpe: Tokenizer, wrong: str) -> None:
    fields = tiny_bpe()
    sound = fields["tokenizer.ggml.merges"]
    for place in (0, 3, len(sound)):
        fields["tokenizer.ggml.merges"] = [*sound[:place], wrong, *sound[place:]]
        tokenizer = Tokenizer.from_gguf(make_metadata(fields))
        for text in ["hello world, helo", "ho hel lo", "nobody hellohe"]:
            assert tokenizer.encode(text) == bpe.encode(text)
    fields["tokenizer.ggml.merges"] = ["l l", wrong, "h e", "e ll", "he ll"]
    fields["tokenizer.ggml.tokens"][-1] = "ell"
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hell")] == ["hell"]


def test_control_tokens_are_text_unless_special_tokens_are_parsed(bpe: Tokenizer, spm: Tokenizer) -> None:
    text = "<|im_start|>hello<|im_end|>"
    assert bpe.encode(text) == [bpe.bos_id, *bpe.encode("hello"), bpe.eos_id]
    plain = bpe.encode(text, parse_special=False)
    assert not {bpe.bos_id, bpe.eos_id} & set(plain)
    assert bpe.decode(plain) == text
    assert spm.encode("<s>a", add_special=False)[0] == spm.bos_id
    assert spm.bos_id not in spm.encode("<s>a", add_special=False, parse_special=False)


def test_plain_text_never_spells_a_control_token_that_merges_make(make_metadata: MakeMetadata, bpe: Tokenizer) -> None:
    fields = tiny_bpe()
    hello = fields["tokenizer.ggml.tokens"].index("hello")
    assert bpe.encode("hello") == [hello]
    fields["tokenizer.ggml.token_type"][hello] = CONTROL
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("hello") == [hello]
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello", parse_special=False)] == ["hell", "o"]


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_plain_text_never_spells_a_control_token_that_is_one_word(make_metadata: MakeMetadata, pre: str) -> None:
    fields = tiny_bpe() | {"tokenizer.ggml.pre": pre}
    fields["tokenizer.ggml.tokens"][-1], fields["tokenizer.ggml.token_type"][-1] = "system", CONTROL
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    control = tokenizer.n_vocab - 1
    assert control in tokenizer.encode("system")
    assert control not in tokenizer.encode("system", parse_special=False)


def test_plain_text_never_spells_a_control_token_by_scores(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    abc = fields["tokenizer.ggml.tokens"].index("abc")
    assert abc in Tokenizer.from_gguf(make_metadata(fields)).encode("habc", parse_special=False)
    fields["tokenizer.ggml.token_type"][abc] = CONTROL
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert abc not in tokenizer.encode("habc", parse_special=False)
    assert abc in tokenizer.encode("habc")


def test_user_defined_tokens_are_always_taken_whole_and_the_longest_wins(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.tokens"][-2:] = ["<think>now", "<th"]
    fields["tokenizer.ggml.token_type"][-2:] = [USER_DEFINED, USER_DEFINED]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    think, think_now, th = range(tokenizer.n_vocab - 3, tokenizer.n_vocab)
    for parse_special in (True, False):
        ids = tokenizer.encode("<think><think>now<the", parse_special=parse_special)
        assert ids == [think, think_now, th, *tokenizer.encode("e")]
    assert tokenizer.decode([think]) == "<think>"


def test_add_special_follows_the_file_and_never_doubles(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    bare = tokenizer.encode("hello", add_special=False)
    around = [tokenizer.bos_id, *bare, tokenizer.eos_id]
    assert tokenizer.encode("hello") == around
    assert tokenizer.encode("<|im_start|>hello<|im_end|>") == around
    assert tokenizer.encode("") == [tokenizer.bos_id, tokenizer.eos_id]


def test_spm_has_llama_s_special_tokens_where_the_file_is_silent(spm: Tokenizer) -> None:
    assert (spm.bos_id, spm.eos_id, spm.adds_bos, spm.adds_eos, spm.stop_ids) == (1, 2, True, False, {2})


def test_spm_puts_a_space_before_the_text_and_after_special_tokens_unless_told_not_to(
    make_metadata: MakeMetadata, spm: Tokenizer
) -> None:
    def texts(tokenizer: Tokenizer) -> list[str]:
        return [tokenizer.token_text(i) for i in tokenizer.encode("abc</s>ab", add_special=False)]

    assert texts(spm) == [" a", "bc", "</s>", " ab"]
    bare = Tokenizer.from_gguf(make_metadata(tiny_spm() | {"tokenizer.ggml.add_space_prefix": False}))
    assert texts(bare) == ["abc", "</s>", "ab"]
    assert bare.decode(bare.encode(" abc")) == " abc"


def test_a_character_without_piece_or_bytes_is_the_unknown_token(make_metadata: MakeMetadata) -> None:
    fields = tiny_spm()
    for key in ("tokens", "scores", "token_type"):
        del fields[f"tokenizer.ggml.{key}"][3:259]
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert tokenizer.encode("🦙ø", add_special=False)[-2:] == [0, 0]


def test_half_a_surrogate_pair_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(InvalidParameter, match="character 2"):
        bpe.encode("ab\ud83dc")


@pytest.mark.parametrize("token_id", [-1, 1_000_000])
def test_an_id_outside_the_vocabulary_is_refused(bpe: Tokenizer, token_id: int) -> None:
    for call in (bpe.token_bytes, bpe.token_text, bpe.detokenizer().push, lambda i: bpe.decode([i])):
        with pytest.raises(InvalidParameter, match=str(token_id)):
            call(token_id)


@pytest.mark.parametrize(
    ("key", "value"), [("tokenizer.ggml.model", "bert"), ("tokenizer.ggml.pre", "jais-2")], ids=["model", "pre"]
)
def test_an_unknown_kind_of_vocabulary_is_named_with_the_known_ones(
    make_metadata: MakeMetadata, key: str, value: str
) -> None:
    with pytest.raises(UnsupportedModel, match=rf"vocabulary.gguf.*'{value}'.*(gpt2.*llama|smollm.*llama-bpe.*qwen2)"):
        Tokenizer.from_gguf(make_metadata(tiny_bpe() | {key: value}))


def damaged_bpe(**changes: Any) -> dict[str, Any]:
    fields = tiny_bpe() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not None}


def damaged_spm(key: str, index: int, value: Any) -> dict[str, Any]:
    fields = tiny_spm()
    fields[f"tokenizer.ggml.{key}"][index : index + 1] = value
    return fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (damaged_bpe(model=None), "tokenizer.ggml.model"),
        (damaged_bpe(tokens=None), "tokenizer.ggml.tokens"),
        (damaged_bpe(tokens=["", ""]), "tokens is empty"),
        (damaged_bpe(tokens=["a", "b", "a"], token_type=[1, 1, 1]), "'a' twice"),
        (damaged_bpe(tokens=[1, 2]), "tokenizer.ggml.tokens"),
        (damaged_bpe(token_type=[1, 1]), "token_type has 2 items"),
        (damaged_bpe(merges=None), "tokenizer.ggml.merges"),
        (damaged_bpe(add_bos_token="yes"), "add_bos_token"),
        (damaged_spm("scores", 5, []), "scores has"),
        (damaged_spm("tokens", 5, ["<0xZZ>"]), "item 5 is a byte"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_vocabulary_is_a_model_file_error_that_names_what_is_wrong(
    make_metadata: MakeMetadata, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelFileError, match=re.escape(named)) as caught:
        Tokenizer.from_gguf(make_metadata(fields))
    assert "vocabulary.gguf" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        damaged_bpe(model="x" * 100_000),
        damaged_bpe(pre="x" * 100_000),
        damaged_bpe(tokens=["x" * 100_000] * 2, token_type=[1, 1]),
        damaged_spm("tokens", 5, ["x" * 100_000]),
    ],
    ids=["model", "pre", "twice", "byte"],
)
def test_an_error_quotes_the_beginning_of_a_long_text_only(make_metadata: MakeMetadata, fields: dict[str, Any]) -> None:
    with pytest.raises((ModelFileError, UnsupportedModel), match="xxx") as caught:
        Tokenizer.from_gguf(make_metadata(fields))
    assert len(str(caught.value)) < 1000
