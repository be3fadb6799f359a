"""What clients send that asks for nothing, or in a form of their own, is taken in every dialect."""

from __future__ import annotations

from typing import Any

import pytest
from served import Served

from vkllm.faces.server.habits import as_meant

HI = [{"role": "user", "content": "Hi"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 1},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
    "/completion": {"prompt": "Hi", "n_predict": 1},
    "/v1/messages": {"messages": HI, "max_tokens": 1},
    "/api/chat": {"model": "m", "messages": HI, "options": {"num_predict": 1}},
}


@pytest.mark.parametrize("path", PATHS)
def test_empty_stops_and_negative_seeds_are_no_mistakes(served: Served, path: str) -> None:
    body = PATHS[path]
    stop = "stop_sequences" if path == "/v1/messages" else "stop"
    for more in ({stop: [""]}, {stop: ["x", ""], "seed": -2_000_000_000}, {} if stop != "stop" else {stop: ""}):
        asked = {**body, "options": {**body["options"], **more}} if "options" in body else {**body, **more}
        status, _, said = served.request("POST", path, asked)
        assert status == 200, said


def test_what_is_meant_by_them() -> None:
    assert as_meant({"stop": "", "seed": -1, "n": 1}) == {"seed": -1, "n": 1}
    assert as_meant({"stop_sequences": ["", "a"], "seed": -2}) == {"stop_sequences": ["a"], "seed": 2**64 - 2}
    assert as_meant({"options": {"stop": [""], "seed": -5}}) == {"options": {"stop": [], "seed": 2**64 - 5}}
    for wrong in (
        {"stop": 5},
        {"stop": [5]},
        {"seed": -(2**70)},
        {"seed": "x"},
        {"options": [1]},
        {"stream_options": 1},
    ):
        assert as_meant(wrong) == wrong  # is refused by who reads it


def test_unknown_options_of_streams_are_ignored(served: Served) -> None:
    asked = {"messages": HI, "max_tokens": 1, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *_, last, done = served.events("/v1/chat/completions", {**asked, "stream_options": options})
    assert last["usage"]["completion_tokens"] == 1 and done == "[DONE]"
