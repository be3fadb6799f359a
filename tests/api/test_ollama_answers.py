"""Answers and descriptions in the shape of ollama's API, which the ollama package's types must take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ollama
import pytest
from gguf import TokenType
from tiny_gguf import N_BYTES, byte_tokens, write_tiny_gguf

from vkllm.api.answer import Generation, Logprob, Piece, TopLogprob
from vkllm.api.file_facts import file_facts
from vkllm.api.ollama import descriptions
from vkllm.api.ollama.answers import OllamaAnswer
from vkllm.engine.events import RunStats
from vkllm.text.answers.parts import ToolCall
from vkllm.text.tokenizer import Tokenizer

STATS = RunStats(n_prompt=30, n_cached=10, n_generated=4, prompt_s=0.5, first_token_s=1, generate_s=0)
ROME = ToolCall("call_1", "weather", {"city": "Rom"})


def generation(text: str = "", **fields: Any) -> Generation:
    fields = {"finish_reason": "stop", "logprobs": None} | fields
    return Generation(text=text, token_ids=[1, 2, 3, 4], prompt_token_ids=[], stats=STATS, **fields)


def test_a_whole_chat_has_ollamas_fields() -> None:
    made = OllamaAnswer("m", is_chat=True, load_s=2).whole(generation("Hi", reasoning="hm", tool_calls=[ROME]))
    answer = ollama.ChatResponse.model_validate(made)
    assert (answer.message.content, answer.message.thinking) == ("Hi", "hm")
    assert answer.message.tool_calls and answer.message.tool_calls[0].function.arguments == {"city": "Rom"}
    assert (answer.done, answer.done_reason, answer.prompt_eval_count, answer.eval_count) == (True, "stop", 30, 4)
    assert (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration) == (2 * 10**9, 5 * 10**8, 1)
    assert answer.total_duration is not None and answer.total_duration > 2 * 10**9


def test_lines_of_a_stream() -> None:
    answer = OllamaAnswer("m", is_chat=True)
    pieces = [Piece("", reasoning="hm"), Piece("A"), Piece("", tool_calls=[ROME, ROME]), Piece("", [5])]
    lines = [line["message"] for piece in pieces if (line := answer.line(piece)) is not None]
    call = {"name": "weather", "arguments": {"city": "Rom"}}
    assert lines == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "A"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"index": index, **call}} for index in (0, 1)],
        },
    ]
    last = answer.last_line(generation("A", finish_reason="length"))
    assert last["message"] == {"role": "assistant", "content": ""} and last["done_reason"] == "length"


def test_a_text_is_a_response_and_hidden_thoughts_stay_hidden() -> None:
    answer = OllamaAnswer("m", is_chat=False, hides_thinking=True)
    assert answer.line(Piece("", reasoning="hm")) is None
    made = answer.whole(generation("Hi", reasoning="hm"))
    assert made["response"] == "Hi" and "thinking" not in made and "message" not in made
    assert answer.loaded("unload")["done_reason"] == "unload"


def test_logprobs_have_bytes(tiny_gguf: Path) -> None:
    tokenizer = Tokenizer.from_gguf(file_facts(tiny_gguf).metadata)
    logprobs = [Logprob(65, "A", -0.5, [TopLogprob(66, "B", -1.0)])]
    made = OllamaAnswer("m", is_chat=True, tokenizer=tokenizer).whole(generation("A", logprobs=logprobs))
    top = {"token": "B", "logprob": -1.0, "bytes": [66]}
    assert made["logprobs"] == [{"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [top]}]


def test_descriptions_have_ollamas_fields(tiny_gguf: Path) -> None:
    facts = file_facts(tiny_gguf)
    assert file_facts(tiny_gguf) is facts, "it was read again"
    entry = descriptions.tag("tiny", facts)
    listed = ollama.ListResponse.model_validate({"models": [entry]}).models[0]
    assert listed.model == "tiny" and listed.size == tiny_gguf.stat().st_size
    assert listed.details is not None and listed.details.family == "llama"
    assert listed.details.quantization_level == facts.quantization
    shown = ollama.ShowResponse.model_validate(descriptions.shown(facts, {"temperature": 0.5}))
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == facts.n_ctx_train
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.parameters == f"{'temperature':<30} 0.5" and shown.capabilities == ["completion"]
    verbose = descriptions.shown(facts, {}, is_verbose=True)["model_info"]
    assert len(verbose["tokenizer.ggml.tokens"]) == facts.n_vocab
    process = descriptions.running("tiny", facts, n_ctx=64, total_bytes=5, local_bytes=3, expires_s=None)
    running = ollama.ProcessResponse.model_validate({"models": [process]}).models[0]
    assert (running.size, running.size_vram, running.context_length) == (5, 3, 64)
    assert running.expires_at is not None and running.expires_at.year == 9999


@pytest.mark.parametrize(
    ("template", "fields", "capabilities"),
    [
        ("{{ messages }}{% if tools %}{% endif %}<think></think>", {}, ("completion", "tools", "thinking")),
        ("{{ messages }}", {"llama.pooling_type": 1}, ("embedding",)),
        (
            "{{ messages }}",
            {
                "tokenizer.ggml.tokens": [
                    *byte_tokens(),
                    "<|im_start|>",
                    "<|im_end|>",
                    "<|fim_prefix|><|fim_suffix|><|fim_middle|>",
                ],
                "tokenizer.ggml.fim_pre_token_id": N_BYTES,
                "tokenizer.ggml.fim_suf_token_id": N_BYTES,
                "tokenizer.ggml.fim_mid_token_id": N_BYTES,
                "tokenizer.ggml.token_type": [TokenType.NORMAL] * (N_BYTES + 3),
            },
            ("completion", "insert"),
        ),
    ],
)
def test_capabilities(template: str, fields: dict[str, Any], capabilities: tuple[str, ...], tmp_path: Path) -> None:
    facts = file_facts(write_tiny_gguf(tmp_path / "tiny.gguf", template=template, fields=fields))
    assert facts.problem is None and facts.capabilities == capabilities
