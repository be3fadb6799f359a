"""Requests and answers in the shape of llama.cpp's own API."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import TokenType
from tiny_gguf import IM_START, N_BYTES, byte_tokens, write_tiny_gguf

from vkllm.api.answer import Generation, Logprob, Piece, TopLogprob
from vkllm.api.file_facts import file_facts
from vkllm.api.llama_cpp.answers import CompletionAnswer, generation_settings, timings
from vkllm.api.llama_cpp.probabilities import sampled_probabilities
from vkllm.api.llama_cpp.prompts import can_fill, infill_tokens, pieces_of, prompts_of, token_ids_of
from vkllm.api.llama_cpp.requests import completion_request
from vkllm.engine.events import PromptProgress, RunStats
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import InvalidParameter
from vkllm.text.tokenizer import Tokenizer

STATS = RunStats(n_prompt=3, n_cached=1, n_generated=5, prompt_s=0.5, first_token_s=1, generate_s=2)
MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")


@pytest.fixture(scope="module")
def tokenizer(tiny_gguf: Path) -> Tokenizer:
    return Tokenizer.from_gguf(file_facts(tiny_gguf).metadata)


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The vocabulary of a model of code."""
    tokens = [*byte_tokens(), "<|im_start|>", "<|im_end|>", *MARKS]
    kinds = [TokenType.NORMAL] * N_BYTES + [TokenType.CONTROL] * 7
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": ["q q"]}
    path = tmp_path_factory.mktemp("coder") / "coder.gguf"
    return Tokenizer.from_gguf(file_facts(write_tiny_gguf(path, fields=fields)).metadata)


@pytest.mark.parametrize(
    ("value", "prompts", "has_several"),
    [
        ("ab", ["ab"], False),
        ([97, 98], [[97, 98]], False),
        ([97, "b", 99], [[97, "b", 99]], False),
        (["ab", "c"], ["ab", "c"], True),
        ([[97], "b", {"prompt_string": "c"}], [[97], "b", "c"], True),
        ({"prompt_string": "ab"}, ["ab"], False),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ["ab"], False),
    ],
)
def test_prompts(value: Any, prompts: list[Any], has_several: bool) -> None:
    assert prompts_of(value) == (prompts, has_several)


def test_texts_among_token_ids_are_tokenized(tokenizer: Tokenizer) -> None:
    assert token_ids_of([97, "bc", 1], tokenizer) == [97, 98, 99, 1]
    assert token_ids_of("<|im_start|>a", tokenizer) == [IM_START, 97]


@pytest.mark.parametrize(
    "value", [None, 5, True, [], [[]], [True], {"prompt": "x"}, [97, [98]], {"multimodal_data": 1}]
)
def test_what_is_no_prompt_is_refused(value: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"^prompt"):
        completion_request({"prompt": value})


def test_options_have_our_names() -> None:
    asked = completion_request(
        {
            "prompt": "a",
            "n_predict": -1,
            "repeat_penalty": 1.1,
            "n_probs": 3,
            "stop": [],
            "grammar": "",
            "mirostat": 0,
            "n": 2,
        }
    )
    assert asked.options == {"repetition_penalty": 1.1, "logprobs": 3, "max_tokens": -1}
    assert asked.has_several and not asked.is_stream and asked.slot == 0
    uncached = [completion_request({"prompt": "a", "cache_prompt": False}).options["origin"] for _ in "ab"]
    assert uncached[0] != uncached[1]


def test_biases_are_of_tokens_and_of_texts(tokenizer: Tokenizer) -> None:
    sent: list[dict[str, Any]] = []

    class Model:
        def stream(self, ids: list[int], **options: Any) -> None:
            sent.append({"ids": ids, **options})

    for bias in ([[97, 1.5], ["bc", False], [100, 1e9]], {"97": 1.5, "bc": False, "100": 1e9}):
        asked = completion_request({"prompt": ["x", "y"], "logit_bias": bias, "n": 2, "seed": 7})
        asked.streams(Model(), tokenizer, 64)  # type: ignore[arg-type]
        assert [(each["ids"], each["seed"]) for each in sent] == [([120], 7), ([120], 8), ([121], 7), ([121], 8)]
        assert sent[0]["logit_bias"] == {97: 1.5, 98: -100.0, 99: -100.0, 100: 100.0}
        sent.clear()
    with pytest.raises(InvalidParameter, match="logit_bias has"):
        completion_request({"prompt": "x", "logit_bias": [[1]]}).streams(Model(), tokenizer, 64)  # type: ignore[arg-type]


def test_all_that_may_be_drawn_is_reported_where_its_probabilities_are_wanted(tokenizer: Tokenizer) -> None:
    sent: list[int] = []
    model: Any = SimpleNamespace(
        llm=SimpleNamespace(default_params=SamplingParams(top_k=7)),
        stream=lambda ids, **options: sent.append(options["logprobs"]),
    )
    for top_k in ({}, {"top_k": 3}, {"top_k": 0}, {"top_k": -1}):
        asked = completion_request({"prompt": "x", "n_probs": 5, "post_sampling_probs": True, **top_k})
        asked.streams(model, tokenizer, 64)
    assert sent == [7, 5, 1000, 1000]


def answer_of(tokenizer: Tokenizer, **body: Any) -> CompletionAnswer:
    asked = completion_request({"prompt": "abc", **body})
    request = Request(1, (97, 98, 99), SamplingParams(seed=5, max_tokens=9), frozenset())
    return CompletionAnswer(asked, 0, request, "m", tokenizer, n_ctx=8)


def generation(**fields: Any) -> Generation:
    fields = {"finish_reason": "length", "logprobs": None} | fields
    return Generation(text="x\ny", token_ids=[1, 2, 3, 4, 5], prompt_token_ids=[], stats=STATS, **fields)


def test_a_whole_answer_has_llama_cpps_fields(tokenizer: Tokenizer) -> None:
    made = answer_of(tokenizer, return_tokens=True).whole(generation())
    assert made["content"] == "x\ny" and made["tokens"] == [1, 2, 3, 4, 5] and made["prompt"] == "abc"
    assert (made["stop"], made["stop_type"], made["stopping_word"]) == (True, "limit", "")
    assert made["truncated"] is True and made["has_new_line"] is True, "3 tokens and 5 fill a context of 8"
    assert (made["tokens_evaluated"], made["tokens_predicted"], made["tokens_cached"]) == (3, 5, 7)
    assert made["generation_settings"]["seed"] == 5 and made["generation_settings"]["n_predict"] == 9
    assert answer_of(tokenizer).whole(generation())["tokens"] == []
    stopped = answer_of(tokenizer).whole(generation(finish_reason="stop", stop_string="z"))
    assert (stopped["stop_type"], stopped["stopping_word"], stopped["truncated"]) == ("word", "z", False)
    assert answer_of(tokenizer).whole(generation(finish_reason="stop"))["stop_type"] == "eos"


def test_only_the_fields_that_are_wanted(tokenizer: Tokenizer) -> None:
    asked = answer_of(tokenizer, response_fields=["content", "generation_settings/n_predict", "nothing/here"])
    assert asked.whole(generation()) == {"content": "x\ny", "generation_settings/n_predict": 9}


def test_chunks_are_timed_only_where_that_was_asked_for(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[RunStats] = []
    monkeypatch.setattr("vkllm.api.llama_cpp.answers.timings", lambda stats: timed.append(stats) or {})
    answers = [answer_of(tokenizer), answer_of(tokenizer, timings_per_token=True)]
    for n in (1, 2, 3):
        chunks = [answer.chunk(Piece("x", [120])) for answer in answers]
        assert [chunk["tokens_predicted"] for chunk in chunks] == [n, n]
        assert ["timings" in chunk for chunk in chunks] == [False, True]
    assert [stats.n_generated for stats in timed] == [1, 2, 3]


def test_chunks_have_tokens_and_probabilities(tokenizer: Tokenizer) -> None:
    answer = answer_of(tokenizer, timings_per_token=True)
    logprobs = [Logprob(120, "x", -0.5, [TopLogprob(121, "y", -1.0)])]
    made = answer.chunk(Piece("x", [120], logprobs))
    assert (made["content"], made["tokens"], made["stop"], made["tokens_predicted"]) == ("x", [120], False, 1)
    top = {"id": 121, "token": "y", "bytes": [121], "logprob": -1.0}
    assert made["completion_probabilities"] == [
        {"id": 120, "token": "x", "bytes": [120], "logprob": -0.5, "top_logprobs": [top]}
    ]
    assert made["timings"]["predicted_n"] == 1 and made["timings"]["predicted_per_second"] == 0
    last = answer.whole(generation(logprobs=logprobs), is_last_chunk=True)
    assert last["content"] == "" and "completion_probabilities" not in last
    first = answer.progress(PromptProgress(1, 9, 4, 4, 0.5))
    assert first["prompt_progress"] == {"total": 9, "cache": 4, "processed": 4, "time_ms": 0}
    assert first["timings"]["prompt_ms"] == 0 and first["timings"]["prompt_n"] == 0
    second = answer.progress(PromptProgress(1, 9, 4, 6, 0.5))
    assert second["prompt_progress"] == {"total": 9, "cache": 4, "processed": 6, "time_ms": 500}
    assert second["timings"]["prompt_n"] == 2 and second["timings"]["prompt_per_second"] == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}, [0.5, 0.25, 0.125, 0.125]),
        ({"temperature": 1, "top_k": 2, "top_p": 1, "min_p": 0}, [2 / 3, 1 / 3]),
        ({"temperature": 1, "top_k": 0, "top_p": 0.6, "min_p": 0}, [2 / 3, 1 / 3]),
        ({"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0.3}, [2 / 3, 1 / 3]),
        ({"temperature": 0.5, "top_k": 2, "top_p": 1, "min_p": 0}, [0.8, 0.2]),
        ({"temperature": 0}, [1.0]),
    ],
)
def test_probabilities_after_the_samplers(options: dict[str, Any], expected: list[float], tokenizer: Tokenizer) -> None:
    tops = [TopLogprob(97 + n, "abcd"[n], math.log(p)) for n, p in enumerate((0.5, 0.25, 0.125, 0.125))]
    entry = Logprob(98, "b", tops[1].logprob, tops)
    (made,) = sampled_probabilities([entry], tokenizer, SamplingParams(**options), 3)
    assert [top["prob"] for top in made["top_probs"]] == pytest.approx(expected[:3])
    assert made["token"] == "b" and made["prob"] == pytest.approx(expected[1] if len(expected) > 1 else 0.25)


def test_timings_count_steps_after_the_first_token() -> None:
    made = timings(STATS)
    assert (made["cache_n"], made["prompt_n"], made["predicted_n"]) == (1, 2, 5)
    assert (made["prompt_ms"], made["prompt_per_second"]) == (500, 4)
    assert (made["predicted_ms"], made["predicted_per_second"], made["predicted_per_token_ms"]) == (2000, 2, 500)
    nothing = timings(RunStats(0, 0, 0, 0, 0, 0))
    assert set(nothing.values()) == {0}


def test_ends_that_are_ignored_are_biases() -> None:
    made = generation_settings(SamplingParams(ignore_eos=True), ends=frozenset({2, 1}))["logit_bias"]
    assert made == [{"token": 1, "bias": None}, {"token": 2, "bias": None}]
    assert generation_settings(SamplingParams(logit_bias={3: 1.0}))["logit_bias"] == [{"token": 3, "bias": 1.0}]


def test_pieces_of_broken_characters_are_bytes(tokenizer: Tokenizer) -> None:
    assert pieces_of([97, 0xE2], tokenizer) == [{"id": 97, "piece": "a"}, {"id": 0xE2, "piece": [0xE2]}]


def test_a_gap_is_shown_with_the_models_own_tokens(coder: Tokenizer, tokenizer: Tokenizer) -> None:
    assert can_fill(coder) and not can_fill(tokenizer)
    body = {"input_prefix": "ab", "prompt": "c", "input_suffix": "d"}
    shown = coder.decode(infill_tokens(body, coder, 256), skip_special=False)
    assert shown == "<|fim_prefix|>abc<|fim_suffix|>d<|fim_middle|>"
    files = {**body, "input_extra": [{"filename": "a.h", "text": "int a;"}]}
    shown = coder.decode(infill_tokens(files, coder, 256), skip_special=False)
    assert shown.startswith("<|repo_name|>project\n<|file_sep|>a.h\nint a;<|file_sep|>filename\n<|fim_prefix|>abc")
    marks = {**body, "input_prefix": "<|fim_middle|>"}
    assert infill_tokens(marks, coder, 256).count(coder.code_marks["fim_mid"]) == 1, "code must stay text"


def test_what_is_far_from_a_gap_is_left_out(coder: Tokenizer) -> None:
    body = {"input_prefix": "a" * 500 + "b", "input_suffix": "c" + "d" * 500, "input_extra": [{"text": "e" * 500}]}
    ids = infill_tokens(body, coder, 128)
    shown = coder.decode(ids, skip_special=False)
    assert (
        len(ids) <= 96
        and "ab<|fim_suffix|>cd" in shown
        and "e" not in shown.replace("prefix", "").replace("<|fim_middle|>", "")
    )


@pytest.mark.parametrize("file", [{}, {"filename": "a"}, {"filename": 1, "text": "b"}, {"filename": "a", "text": 1}, 5])
def test_wrong_files_are_refused(coder: Tokenizer, file: Any) -> None:
    with pytest.raises(InvalidParameter, match="file 0 of input_extra"):
        infill_tokens({"input_prefix": "a", "input_suffix": "b", "input_extra": [file]}, coder, 256)
