"""llama.cpp's fields in requests, OpenAI's too: what each does, and which are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

from vkllm.faces.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[Served]:
    """A model whose template knows reasoning in tags; it answers with the prompt, from its second token on."""
    fields = {"tokenizer.chat_template": "{# <think> </think> #}x{{ messages[0].content }}"}
    with serving(single(write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf", fields=fields))) as server:
        yield server


def answer(server: Served, path: str, body: Any) -> Any:
    status, _, made = server.request("POST", path, body)
    assert status == 200, made
    return made


def test_every_chunk_after_the_first_has_timings_where_they_are_asked_for(served: Served) -> None:
    asked = HI | {"max_tokens": 3, "stream": True, "timings_per_token": True}
    for more in ({}, {"stream_options": {"include_usage": True}}):
        first, *others, done = served.events(CHAT, asked | more)
        assert "timings" not in first and first["choices"][0]["delta"] == {"role": "assistant", "content": None}
        assert [each["timings"]["predicted_n"] for each in others[:3]] == [1, 2, 3] and done == "[DONE]"
        assert all(each["timings"]["prompt_n"] + each["timings"]["cache_n"] == 21 for each in others)
    chunks = served.events(TEXT, {"prompt": "abc", "max_tokens": 2, "stream": True, "timings_per_token": True})[:-1]
    assert [each["timings"]["predicted_n"] for each in chunks] == [1, 2, 2]
    assert not any("timings" in each for each in served.events(CHAT, asked | {"timings_per_token": False})[:-2])
    for path, more in (("/completion", {"prompt": "abc", "n_predict": 2}), ("/v1/responses", {"input": "Hi"})):
        events = served.events(path, more | {"stream": True, "timings_per_token": True})
        added = [each for each in events if each.get("type", "response.output_text.delta").endswith("text.delta")]
        assert [each["timings"]["predicted_n"] for each in added[:2]] == [1, 2]
        assert all(each["timings"]["prompt_ms"] > 0 for each in added)


def test_openais_requests_take_llama_cpps_names(served: Served) -> None:
    asked = HI | {"n_predict": 2, "max_tokens": 5, "repeat_last_n": 7, "n_probs": 3, "id_slot": 2}
    made = answer(served, CHAT, asked)
    assert made["usage"]["completion_tokens"] == 2
    assert [len(each["top_logprobs"]) for each in made["choices"][0]["logprobs"]["content"]] == [3, 3]
    made = answer(served, TEXT, {"prompt": "abc", "n_predict": 2, "n_probs": 2})
    assert made["choices"][0]["text"] == "bc" and len(made["choices"][0]["logprobs"]["top_logprobs"][0]) == 2
    n_cached = [
        answer(served, CHAT, HI | {"max_tokens": 1, "cache_prompt": keeps})["timings"]["cache_n"]
        for keeps in (None, True, False)
    ]
    assert n_cached[1] > 0 and n_cached[2] == 0
    assert answer(served, TEXT, {"prompt": "abc", "max_tokens": 1, "logit_bias": [["b", False], [99, 5]]})
    assert answer(served, TEXT, {"prompt": "abc", "max_tokens": 1, "logit_bias": []})


def test_the_prompt_is_told_where_it_is_asked_for_or_the_server_is_verbose(
    tiny_gguf: Path, served: Served, fake_engines: None
) -> None:
    told = {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}
    asked = HI | {"max_tokens": 1}
    assert answer(served, CHAT, asked | {"verbose": True})["__verbose"] == told
    assert "__verbose" not in answer(served, CHAT, asked)
    with serving(single(tiny_gguf), ServerSettings(port=0, is_verbose=True)) as server:
        assert answer(server, CHAT, asked)["__verbose"] == told
        assert "__verbose" not in answer(server, CHAT, asked | {"verbose": False})
        chunks = server.events(CHAT, asked | {"stream": True})[:-1]
        assert [each.get("__verbose") for each in chunks][-1] == told


@pytest.mark.parametrize(("kind", "text"), [("none", "<think>\nab\n</think>\n\nc"), ("auto", "c"), ("deepseek", "c")])
def test_reasoning_stays_in_the_content_where_the_client_wants_it_there(thinking: Served, kind: str, text: str) -> None:
    asked = {"messages": [{"role": "user", "content": "<think>ab</think>c!"}], "stop": "!", "reasoning_format": kind}
    message = answer(thinking, CHAT, asked)["choices"][0]["message"]
    assert message["content"] == text and ("reasoning_content" in message) is (kind != "none")
    deltas = [each["choices"][0]["delta"] for each in thinking.events(CHAT, asked | {"stream": True})[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    assert any("reasoning_content" in delta for delta in deltas) is (kind != "none")


OFF = {"mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0, "typical_p": 1.0, "typ_p": 1, "top_n_sigma": -1,
       "dynatemp_range": 0, "adaptive_target": -1, "lora": [], "samplers": ["penalties", "dry", "top_k", "temperature"],
       "dry_base": 1.75, "xtc_threshold": 0.1, "reasoning_control": True, "sse_ping_interval": 1,
       "thinking_budget_tokens": 0, "parse_tool_calls": True, "backend_sampling": True}  # fmt: skip
"""What llama.cpp's web page sends with nothing switched on."""


@pytest.mark.parametrize("path", [CHAT, TEXT, "/completion"])
def test_samplers_that_are_off_change_nothing(served: Served, path: str) -> None:
    assert answer(served, path, HI | {"prompt": "abc", "max_tokens": 1} | OFF)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirostat", 2),
        ("dry_multiplier", 0.8),
        ("xtc_probability", 0.5),
        ("typical_p", 0.5),
        ("typ_p", 0.5),
        ("top_n_sigma", 1),
        ("dynatemp_range", 0.5),
        ("adaptive_target", 0.5),
        ("mirostat", "2"),
        ("lora", [{"id": 0, "scale": 1}]),
        ("lora", 5),
        ("samplers", ["top_p", "top_k"]),
        ("samplers", ["quadratic"]),
        ("samplers", 5),
        ("timings_per_token", "yes"),
        ("cache_prompt", "yes"),
        ("sse_ping_interval", "x"),
        ("n_predict", "x"),
        ("id_slot", "x"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(served: Served, field: str, value: object) -> None:
    for path in (CHAT, TEXT, "/completion"):
        status, _, body = served.request("POST", path, HI | {"prompt": "abc", "stream": True, field: value})
        assert status == 400 and body["error"]["message"].startswith(f"{field} "), (path, body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_format", "xml"),
        ("post_sampling_probs", True),
        ("parse_tool_calls", False),
        ("add_generation_prompt", False),
        ("thinking_budget_tokens", "x"),
        ("chat_template_kwargs", {"enable_thinking": "false"}),
        ("tools", [{}]),
        ("tools", [{"type": "function", "function": {}}]),
        ("tools", [{"type": "web_search"}]),
    ],
)
def test_what_no_chat_can_meet_is_refused_by_name(thinking: Served, field: str, value: object) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    status, _, body = thinking.request("POST", CHAT, HI | {"tools": [tool], field: value})
    name = "enable_thinking" if field == "chat_template_kwargs" else field.replace("tools", "tool 0 has no name")
    assert status == 400 and body["error"]["message"].startswith(name), body


def test_samplers_that_a_list_leaves_out_are_off(served: Served) -> None:
    asked = {"prompt": "abc", "n_predict": 1, "top_k": 5, "min_p": 0.5, "temperature": 3, "repeat_penalty": 2}
    for samplers in (["top_k", "top_p"], "kp"):
        settings = answer(served, "/completion", asked | {"samplers": samplers})["generation_settings"]
        found = [settings[name] for name in ("top_k", "min_p", "temperature", "repeat_penalty")]
        assert found == [5, 0, 1, 1]
