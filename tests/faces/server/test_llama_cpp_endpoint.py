"""llama.cpp's own endpoints for plain HTTP."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving
from tiny_gguf import N_BYTES, byte_tokens, write_tiny_gguf

from vkllm.faces.server import llama_cpp, llama_cpp_models
from vkllm.faces.server.models import Models
from vkllm.faces.server.names import KnownModels
from vkllm.faces.server.settings import ServerSettings

MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[Served]:
    """A server of a folder with a model of code and another one."""
    folder = tmp_path_factory.mktemp("models")
    tokens, kinds = [*byte_tokens(), "<|im_start|>", "<|im_end|>", "qq"], [1] * N_BYTES + [3, 3, 1]
    tokens[20:23], kinds[20:23] = MARKS, [3] * 3  # in place of bytes that no text here has
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    write_tiny_gguf(folder / "coder.gguf", fields=fields)
    write_tiny_gguf(folder / "other.gguf")
    with serving(Models(KnownModels(folder)), replace(ServerSettings(port=0), has_slots=False), waits=False) as server:
        yield server


def posted(server: Served, path: str, body: Any) -> Any:
    status, _, answer = server.request("POST", path, body)
    assert status == 200, answer
    return answer


def test_a_text_is_continued(served: Served) -> None:
    made = posted(served, "/completion", {"prompt": "abc", "n_predict": 3, "return_tokens": True})
    assert made["content"] == "bcb" and made["tokens"] == [98, 99, 98] and made["prompt"] == "abc"
    assert (made["model"], made["stop_type"], made["truncated"]) == ("tiny", "limit", False)
    assert (made["timings"]["prompt_n"] + made["timings"]["cache_n"], made["timings"]["predicted_n"]) == (3, 3)
    stopped = posted(served, "/completions", {"prompt": "abc", "stop": ["c"]})
    assert (stopped["content"], stopped["stop_type"], stopped["stopping_word"]) == ("b", "word", "c")


def test_several_texts_are_a_list(served: Served) -> None:
    made = posted(served, "/completion", {"prompt": ["abc", [97, 98]], "n_predict": 2, "n": 2})
    assert [(each["index"], each["content"]) for each in made] == [(0, "bc"), (1, "bc"), (2, "bb"), (3, "bb")]


PROGRESS = [{"total": 3, "cache": 1, "processed": n, "time_ms": ms} for n, ms in ((1, 0), (3, 250))]


def test_streams_of_openai_tell_the_progress_of_prompts_too(served: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"prompt": "abc", "max_tokens": 2, "messages": messages, "stream": True, "return_progress": True}
    response = {"input": "Hi", "stream": True, "return_progress": True}
    first, second, *others, done = served.events("/v1/completions", asked)
    assert [first["prompt_progress"], second["prompt_progress"]] == PROGRESS and done == "[DONE]"
    assert (first["choices"][0]["text"], first["timings"]["prompt_n"], second["timings"]["prompt_n"]) == ("", 0, 2)
    assert "".join(each["choices"][0]["text"] for each in others) == "bc"
    first, second, *others, done = served.events("/v1/chat/completions", asked)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert second["choices"][0]["delta"] == {} and second["prompt_progress"]["processed"] == 21
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in others) == "us"
    found = [each for each in served.events("/v1/responses", response) if "prompt_progress" in each]
    assert [each["type"] for each in found] == ["response.in_progress"] * 2
    assert [each["prompt_progress"]["processed"] for each in found] == [1, 21]
    for path in ("/v1/completions", "/v1/chat/completions", "/completion"):
        told = served.events(path, asked | {"return_progress": False})
        assert not any("prompt_progress" in each for each in told)


def test_a_stream_has_chunks_and_ends_with_counts(served: Served) -> None:
    events = served.events("/completion", {"prompt": "abc", "n_predict": 3, "stream": True, "return_progress": True})
    assert [event["prompt_progress"] for event in events[:2]] == PROGRESS
    *parts, last = events[2:]
    assert not any(part["stop"] for part in parts) and len(parts) <= 3, "a chunk for each token, or for some together"
    assert "".join(part["content"] for part in parts) == "bcb"
    assert [token for part in parts for token in part["tokens"]] == [98, 99, 98]
    assert last["stop"] is True and last["content"] == "" and last["timings"]["predicted_n"] == 3
    several = served.events("/completion", {"prompt": ["ab", "cd"], "n_predict": 2, "stream": True})
    texts = {index: "".join(event["content"] for event in several if event["index"] == index) for index in (0, 1)}
    assert texts == {0: "bb", 1: "dd"}


def test_chunks_that_tell_of_each_token_have_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(llama_cpp, "joining", lambda streams, *, joins: joined.append(joins))
    for more in ({}, {"timings_per_token": True}, {"n_probs": 2}, {"logprobs": 2}):
        served.events("/completion", {"prompt": "abc", "n_predict": 1, "stream": True, **more})
    assert joined == [True, False, False, False]


def test_probabilities_are_of_the_model_or_of_what_is_drawn(served: Served) -> None:
    body = {"prompt": "abc", "n_predict": 2, "n_probs": 2, "top_k": 3}
    found = posted(served, "/completion", body)["completion_probabilities"]
    assert [(token["token"], len(token["top_logprobs"])) for token in found] == [("b", 2), ("c", 2)]
    drawn = posted(served, "/completion", {**body, "post_sampling_probs": True})["completion_probabilities"]
    assert [len(token["top_probs"]) for token in drawn] == [2, 2] and 0 < drawn[0]["prob"] <= 1


def test_tokens_and_texts(served: Served) -> None:
    assert posted(served, "/tokenize", {"content": "aé"}) == {"tokens": [97, 195, 169]}
    pieces = posted(served, "/tokenize", {"content": ["a", 195], "with_pieces": True})["tokens"]
    assert pieces == [{"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}]
    assert posted(served, "/tokenize", {"content": "<|im_end|>", "parse_special": False})["tokens"][:2] == [60, 124]
    assert posted(served, "/detokenize", {"tokens": [97, 195, 169]}) == {"content": "aé"}
    assert served.request("POST", "/detokenize", {"tokens": [10**9]})[0] == 400


def test_a_conversation_becomes_a_text(served: Served) -> None:
    hi = {"messages": [{"role": "user", "content": "Hi"}]}
    text = "<|im_start|>user\nHi<|im_end|>\n"
    assert posted(served, "/apply-template", hi)["prompt"] == f"{text}<|im_start|>assistant\n"
    assert posted(served, "/apply-template", {**hi, "add_generation_prompt": False})["prompt"] == text
    assert posted(served, "/chat/completions/input_tokens", hi) == {"input_tokens": 21}
    status, _, body = served.request("POST", "/apply-template", {"messages": "Hi"})
    assert status == 400 and body["error"]["type"] == "invalid_request_error"


def test_embeddings_are_lists_of_vectors(served: Served) -> None:
    made = posted(served, "/embedding", {"content": ["ab", [97, "c"]]})
    assert [each["index"] for each in made] == [0, 1] and len(made[0]["embedding"][0]) == 2
    assert posted(served, "/embeddings", {"input": "ab"})[0] == made[0]
    part = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    mixed = [[97, "b"], {"prompt_string": "ab"}, part, "ab"]
    data = posted(served, "/v1/embeddings", {"input": mixed})["data"]
    assert [each["embedding"] for each in data] == [made[0]["embedding"][0]] * 4
    assert len(posted(served, "/v1/embeddings", {"input": [97, "b"]})["data"]) == 1


def test_documents_are_ranked_by_their_embeddings(served: Served) -> None:
    query, texts = "ab", ["zzzz", "ab", "a"]
    vectors = [each["embedding"] for each in posted(served, "/v1/embeddings", {"input": [query, *texts]})["data"]]
    scores = {n: sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for n, vector in enumerate(vectors[1:])}
    order = sorted(scores, key=lambda n: -scores[n])
    assert order[0] == 1 and scores[1] == pytest.approx(1)
    made = posted(served, "/v1/rerank", {"query": query, "documents": [texts[0], {"text": texts[1]}, texts[2]]})
    assert [each["index"] for each in made["results"]] == order and made["usage"]["prompt_tokens"] == 9
    assert [each["relevance_score"] for each in made["results"]] == pytest.approx([scores[n] for n in order])
    asked = {"query": query, "documents": texts, "top_n": 1, "return_documents": True}
    [best] = posted(served, "/rerank", asked)["results"]
    assert best["document"] == {"text": "ab"}
    tei = posted(served, "/reranking", {"query": query, "texts": texts, "top_n": 2, "return_text": True})
    assert [(each["index"], each["text"]) for each in tei] == [(n, texts[n]) for n in order[:2]]


@pytest.mark.parametrize(
    ("more", "param"),
    [({"documents": []}, "documents"), ({"texts": 5}, "texts"), ({}, "documents"), ({"query": 1}, "query"),
     ({"documents": [1]}, None), ({"documents": ["a"], "top_n": 0}, "top_n")],
)  # fmt: skip
def test_what_cannot_be_ranked_is_refused(served: Served, more: dict[str, Any], param: str | None) -> None:
    status, _, body = served.request("POST", "/rerank", {"query": "a"} | more)
    assert status == 400 and (param or "documents[0]") in body["error"]["message"]


def test_tokens_of_a_response_are_counted(served: Served) -> None:
    assert posted(served, "/v1/responses/input_tokens", {"input": "Hi"})["input_tokens"] == 21


def test_a_gap_is_filled_by_models_of_code_only(several: Served, served: Served) -> None:
    body = {"model": "coder", "input_prefix": "ab", "input_suffix": "c", "n_predict": 5}
    made = posted(several, "/infill", body)
    assert made["prompt"] == "<|fim_prefix|>ab<|fim_suffix|>c<|fim_middle|>" and made["content"].startswith("ab")
    assert several.request("POST", "/infill", {**body, "input_extra": [{}]})[0] == 400
    status, _, refused = served.request("POST", "/infill", body)
    assert status == 400 and "tokens that show it a gap" in refused["error"]["message"]


def test_the_server_tells_what_it_is(served: Served, several: Served) -> None:
    props = served.request("GET", "/props")[2]
    assert props["model_alias"] == "tiny" and props["model_path"].endswith("tiny.gguf")
    assert props["default_generation_settings"]["n_ctx"] == 256 and props["total_slots"] == 1
    assert props["build_info"].startswith("b") and props["modalities"]["vision"] is False
    assert props["bos_token"] == "<|im_start|>" and "im_start" in props["chat_template"]
    assert "fake device" in props["memory"]["summary"] and props["is_sleeping"] is False
    slots = served.request("GET", "/slots")[2]
    assert [(slot["id"], slot["n_ctx"], slot["is_processing"]) for slot in slots] == [(0, 256, False)]
    assert several.request("GET", "/props")[2]["role"] == "router"
    other = several.request("GET", "/props?model=other")[2]
    assert other["default_generation_settings"]["n_ctx"] == 256 and "memory" not in other
    assert several.request("GET", "/props?model=nothing")[0] == 404


def test_what_is_told_of_a_model_is_what_it_was_started_with(tiny_gguf: Path, fake_engines: None) -> None:
    template = "{% if tools %}{% endif %}<think></think>{{ messages[0].content }}"
    options = {"chat_template": template, "sampling": {"top_k": 7}, "n_ctx": 128}
    with serving(Models(KnownModels(tiny_gguf.parent), options=options)) as server:
        for is_loaded in (False, True):
            props = server.request("GET", "/props?model=tiny")[2]
            assert props["chat_template"] == template and props["chat_template_caps"]["supports_tools"] is True
            assert props["default_generation_settings"]["params"]["top_k"] == 7
            assert props["default_generation_settings"]["n_ctx"] == 128 and ("memory" in props) is is_loaded
            shown = posted(server, "/api/show", {"model": "tiny"})
            assert shown["template"] == template and "top_k" in shown["parameters"]
            assert shown["capabilities"] == ["completion", "tools", "thinking"]
            posted(server, "/tokenize", {"model": "tiny", "content": "x"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/slots", 501),
        ("POST", "/slots/0?action=save", 501),
        ("POST", "/lora-adapters", 400),
        ("GET", "/cors-proxy?url=http://127.0.0.1", 403),
        ("GET", "/lora-adapters", 200),
    ],
)
def test_what_is_not_there_is_refused_by_name(several: Served, method: str, path: str, status: int) -> None:
    found, _, body = several.request(method, path, {} if method == "POST" else None)
    assert found == status
    kind = "permission_error" if status == 403 else "not_supported_error"
    assert body == [] if status == 200 else body["error"]["type"] == kind


def test_models_are_loaded_and_unloaded_and_clients_are_told(several: Served) -> None:
    connection = http.client.HTTPConnection(several.host, several.port, timeout=120)
    connection.request("GET", "/models/sse")
    events = connection.getresponse()
    assert events.getheader("content-type", "").startswith("text/event-stream")

    def told() -> dict[str, Any]:
        while not (line := events.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        found: dict[str, Any] = json.loads(line[6:])
        return found

    assert events.readline().startswith(b":"), "nothing is missed from now on"
    assert posted(several, "/models/load", {"model": "other"}) == {"success": True}
    assert [told() for _ in range(2)] == [
        {"model": "other", "event": "model_status", "data": {"status": status}} for status in ("loading", "loaded")
    ]
    assert several.request("POST", "/models/load", {"model": "other"})[0] == 400
    assert posted(several, "/models/unload", {"model": "other"}) == {"success": True}
    assert told()["data"] == {"status": "unloaded"}
    assert several.request("POST", "/models/unload", {"model": "other"})[0] == 400
    assert several.request("POST", "/models/load", {"model": "nothing"})[0] == 404
    connection.close()


def test_a_model_is_fetched_and_clients_are_told(several: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, on_progress: Any) -> Path:
        on_progress("smollm2.gguf", 5, 10)
        return Path("smollm2.gguf")

    monkeypatch.setattr(llama_cpp_models, "pull", pull)
    connection = http.client.HTTPConnection(several.host, several.port, timeout=120)
    connection.request("GET", "/models/sse")
    events = connection.getresponse()
    assert events.readline().startswith(b":")
    assert posted(several, "/models", {"model": "smollm2"}) == {"success": True}
    told: list[Any] = []
    end_s = time.monotonic() + 120
    while len(told) < 2 and time.monotonic() < end_s:
        if (line := events.readline()).startswith(b"data: "):
            told.append(json.loads(line[6:]))
    connection.close()
    assert told == [
        {"model": "smollm2", "event": "download_progress", "data": {"smollm2.gguf": {"done": 5, "total": 10}}},
        {"model": "smollm2", "event": "download_finished", "data": {}},
    ]
    assert several.request("POST", "/models", {"model": "http://127.0.0.1/x.gguf"})[0] == 400
    assert several.request("DELETE", "/models?model=other")[0] == 400


def test_nothing_is_fetched_offline(tiny_gguf: Path, fake_engines: None) -> None:
    settings = replace(ServerSettings(port=0), is_offline=True)
    with serving(Models(KnownModels(tiny_gguf.parent)), settings, waits=False) as server:
        for path in ("/models", "/api/pull"):
            status, _, body = server.request("POST", path, {"model": "smollm2"})
            assert status == 403 and "--offline" in str(body["error"])


def test_a_prompt_that_is_too_long_is_refused_in_llama_cpps_words(served: Served) -> None:
    for stream in (False, True):
        status, _, body = served.request("POST", "/completion", {"prompt": "x" * 400, "stream": stream})
        assert status == 400 and "exceeds the available context size" in body["error"]["message"]
        assert body["error"]["type"] == "exceed_context_size_error" and body["error"]["n_ctx"] == 256
