"""How each name in tokenizer.ggml.pre cuts text, and what else it means."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_vocabularies import NORMAL, MakeMetadata, tiny_bpe
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from vkllm.text.pretokenizers import PRE_TOKENIZERS
from vkllm.text.tokenizer import Tokenizer

# The words that llama.cpp 0.5.0 cuts each text into, by the names that cut it so. Made with vocabularies in which all
# parts of the text are tokens and all ways to join them are merges, so that each word became one token.
CUT: list[dict[str, Any]] = json.loads((Path(__file__).parent / "words_of_llama_cpp.json").read_text())

NAMES = {
    "default": "default",
    "gpt-2": "gpt-2 phi-2 olmo mpt jais trillion exaone4 mellum gigachat a.x-4.0 granite-docling",
    "smollm": "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "falcon": "falcon",
    "dbrx": "dbrx smaug-bpe chatglm-bpe glm4 glm5 llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "qwen2": "qwen2 deepseek-r1-qwen kormo megrez f2llmv2 stablelm2 hunyuan solar-open grok-2",
    "ufakzeka": "ufakzeka",
    "qwen35": "qwen35",
    "bailingmoe": "bailingmoe bailingmoe2 llada-moe",
    "seed-coder": "seed-coder",
    "laguna": "laguna",
    "minicpm5": "minicpm5",
    "tekken": "tekken",
    "gpt-4o": "gpt-4o llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    "deepseek-llm": "deepseek-llm",
    "deepseek-coder": "deepseek-coder",
    "kimi-k2": "kimi-k2",
    "viking": "viking",
    "poro-chat": "poro-chat bloom gpt3-finnish",
    "superbpe": "superbpe",
    "tiny_aya": "tiny_aya cohere2moe",
}
ADD_BOS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
TAKE_WORDS_WHOLE = ADD_BOS | {"glm4", "glm5", "minicpm5"}


def words(pre: str, text: str) -> list[str]:
    """The pieces that a pre-tokenizer cuts a text into."""
    pieces = PRE_TOKENIZERS[pre].cut_digits(text)
    for pattern in PRE_TOKENIZERS[pre].patterns:
        split = Split(Regex(pattern), "isolated")
        pieces = [word for piece in pieces for word, _ in split.pre_tokenize_str(piece)]
    return pieces


@pytest.mark.parametrize("of", NAMES)
def test_a_text_is_cut_into_the_words_of_llama_cpp(of: str) -> None:
    for case in CUT:
        expected = next(found for names, found in case["words"].items() if of in names.split())
        for name in NAMES[of].split():
            assert words(name, case["text"]) == expected, name


def test_every_name_is_compared_with_llama_cpp() -> None:
    assert sorted(PRE_TOKENIZERS) == sorted(name for names in NAMES.values() for name in names.split())


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_name_says_whether_bos_is_added_and_whether_words_that_are_tokens_stay_whole(
    make_metadata: MakeMetadata, pre: str
) -> None:
    fields = tiny_bpe() | {"tokenizer.ggml.pre": pre}
    fields["tokenizer.ggml.tokens"][-1] = "xyzzy"  # no merge makes it
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    assert (tokenizer.encode("hello")[0] == tokenizer.bos_id) is (pre in ADD_BOS)
    assert (tokenizer.encode("xyzzy", add_special=False) == [tokenizer.n_vocab - 1]) is (pre in TAKE_WORDS_WHOLE)


@pytest.mark.parametrize("pre", ["superbpe", "tiny_aya"])
def test_digits_in_groups_from_the_end_are_tokens_and_a_long_run_costs_no_square_of_its_length(
    make_metadata: MakeMetadata, pre: str
) -> None:
    fields = tiny_bpe() | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": ["1 2", "2 1", "1 1"]}
    fields["tokenizer.ggml.tokens"] += ["12", "21", "11"]
    fields["tokenizer.ggml.token_type"] += [NORMAL] * 3
    tokenizer = Tokenizer.from_gguf(make_metadata(fields))
    pieces = [tokenizer.token_text(i) for i in tokenizer.encode("h1212121 1")]
    assert pieces == ["h", "1", "2", "12", "12", "1", " ", "1"]
    start = time.process_time()
    assert len(tokenizer.encode("1" * 200_001)) == 2 * 66_667
    assert time.process_time() - start < 10  # it takes 0.5 s
