"""Whatever stands in the place of a value in a request, it is answered or refused in a sentence: never status 500."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

TEMPLATE = """{# <think></think><tool_call> #}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% if message.reasoning_content %}{{ message.reasoning_content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}{{ call.function.arguments | tojson }}
{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WRONG: list[Any] = [None, True, -1, 10**30, "a\x00", [None], {"a": None}]
REFUSED = {"/lora-adapters": 400, "/models/load": 400}  # there are no adapters, and the model is loaded
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["b"]}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "seed": 1, "stop": ["x"], "logit_bias": {"1": 1}}
CHAT: list[Any] = [
    {"role": "system", "content": "Be"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "", "reasoning_content": "Hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "c"},
]
LLAMA_CPP = {"n_probs": 1, "samplers": ["top_k"], "n_keep": 0, "id_slot": 0, "cache_prompt": True, "repeat_last_n": 4,
             "repeat_penalty": 1.1, "t_max_predict_ms": 1000, "timings_per_token": True, "return_progress": True,
             "lora": [], "dry_multiplier": 0, "mirostat": 0, "sse_ping_interval": 5}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m", "messages": CHAT, "max_tokens": 1, "n": 1, "logprobs": True, "top_logprobs": 1, "stream": False,
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto", "parallel_tool_calls": True,
        "response_format": {"type": "text"}, "chat_template_kwargs": {"enable_thinking": True}, "metadata": {},
        "reasoning_effort": "low", "reasoning_format": "none", "stream_options": {}, **SAMPLING, **LLAMA_CPP,
    },
    "/v1/completions": {
        "model": "m", "prompt": ["a"], "max_tokens": 1, "echo": False, "logprobs": 1, "n": 1, "best_of": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, **SAMPLING,
    },
    "/v1/embeddings": {"model": "m", "input": ["a", [1]], "encoding_format": "float", "dimensions": 32},
    "/v1/responses": {
        "model": "m", "instructions": "Be", "max_output_tokens": 1, "include": ["reasoning.encrypted_content"],
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "content": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "c"},
        ],
        "tools": [{"type": "function", **FUNCTION}], "tool_choice": "auto", "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, "truncation": "auto",
        "top_logprobs": 1, "metadata": {}, "store": False, "stream": False,
    },
    "/v1/messages": {
        "model": "m", "max_tokens": 1, "system": [{"type": "text", "text": "Be"}], "stop_sequences": ["x"],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"},
                                              {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "c"}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"}, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u"}, "stream": False,
    },
    "/api/chat": {
        "model": "m", "messages": [{"role": "user", "content": "Hi", "images": []},
                                   {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
                                   {"role": "tool", "tool_name": "f", "content": "c"}],
        "tools": [{"type": "function", "function": FUNCTION}], "format": SCHEMA, "think": True, "keep_alive": "5m",
        "options": {"num_predict": 1, "stop": ["x"], "seed": 1}, "stream": False,
    },
    "/api/generate": {"model": "m", "prompt": "a", "system": "b", "raw": False, "format": "json", "images": [],
                      "options": {"num_predict": 1, "top_k": 3}, "keep_alive": 5, "think": False, "stream": False},
    "/api/embed": {"model": "m", "input": ["a"], "truncate": True, "dimensions": 32, "options": {}, "keep_alive": 5},
    "/api/embeddings": {"model": "m", "prompt": "a", "options": {}},
    "/api/show": {"model": "m", "verbose": True},
    "/completion": {"model": "m", "prompt": ["a", 5], "n_predict": 1, "n_cmpl": 2, "stream": False,
                    "response_fields": ["content"], "json_schema": SCHEMA, "post_sampling_probs": True,
                    "return_tokens": True, **SAMPLING, **LLAMA_CPP, "logit_bias": [[1, 1.5], ["a", False]]},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 1,
                "input_extra": [{"filename": "f", "text": "t"}]},
    "/embedding": {"content": [["a", 5], "b"], "embd_normalize": 2},
    "/v1/rerank": {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True},
    "/rerank": {"query": "a", "texts": ["b"], "top_n": 1, "return_text": True},
    "/tokenize": {"content": ["a", 5], "add_special": True, "parse_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": CHAT, "tools": [{"type": "function", "function": FUNCTION}],
                        "chat_template_kwargs": {"a": "b"}, "add_generation_prompt": True},
    "/v1/chat/completions/input_tokens": {"messages": CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
    "/lora-adapters": {"id": 0, "scale": 1.0},
    "/models/load": {"model": "m"},
}  # fmt: skip


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[Served]:
    """A server of a model whose template takes all that a conversation may have, and which can fill gaps."""
    marks = {"tokenizer.ggml.fim_pre_token_id": 1, "tokenizer.ggml.fim_suf_token_id": 2}
    path: Path = write_tiny_gguf(
        tmp_path_factory.mktemp("wrong") / "m.gguf",
        template=TEMPLATE,
        n_ctx=320,
        fields={**marks, "tokenizer.ggml.fim_mid_token_id": 3},
    )
    with serving(single(path, options={"sampling": {"max_tokens": 1}})) as server:
        yield server


def wrong_values(value: Any) -> Iterator[Any]:
    """The value with another one in each place in turn, and with each name left out."""
    yield from WRONG
    if isinstance(value, dict | list):
        places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        for place in places:
            if isinstance(value, dict):
                yield {name: each for name, each in value.items() if name != place}
            for each in wrong_values(value[place]):
                made = value.copy()
                made[place] = each
                yield made


@pytest.mark.parametrize("path", BODIES)
def test_wrong_values_are_refused_or_taken(with_tools: Served, path: str) -> None:
    connection = http.client.HTTPConnection(with_tools.host, with_tools.port, timeout=120)

    def status_of(body: Any) -> tuple[int, bytes]:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()

    status, said = status_of(BODIES[path])
    assert status == REFUSED.get(path, 200), said
    seen = set()
    for body in wrong_values(BODIES[path]):
        status, said = status_of(body)
        seen.add(status)
        assert status < 500, (json.dumps(body), said)
    connection.close()
    assert 400 in seen
