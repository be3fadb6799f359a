"""What a user gives when a model is loaded, in place of what its file says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from vkllm import LLM, InvalidParameter

HI = [{"role": "user", "content": "Hi"}]


def test_sampling_of_the_user_comes_before_that_of_the_file(fake_llm: Callable[..., LLM], tmp_path: Path) -> None:
    fields = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields)
    llm = fake_llm(model=path, sampling={"temperature": 0.25, "max_tokens": 3}, seed=5)
    defaults = llm.default_params
    assert (defaults.temperature, defaults.top_k, defaults.max_tokens, defaults.seed) == (0.25, 7, 3, 5)
    assert llm.chat(HI).text == "use" and llm.chat(HI, max_tokens=4).text == "user"


def test_a_template_of_the_user_is_taken_instead_of_the_files(fake_llm: Callable[..., LLM]) -> None:
    llm = fake_llm(chat_template="_{{ messages[-1].content }}<|im_end|>")
    assert llm.chat(HI).text == "Hi" and llm.has_chat_template
    assert fake_llm(chat_template="falcon3").count_tokens(HI) == len("<|user|>\nHi\n<|assistant|>\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "{% if %}"}, "chat_template is not valid Jinja"),
        ({"chat_template": "llama33"}, "but 'llama33' shows none, and is no name of a template; these are chatml, "),
        ({"variables": {"messages": []}}, "'messages' is no variable"),
        ({"variables": 5}, "must be a mapping"),
        ({"chat_template": 5}, "chat_template must be the text"),
        ({"sampling": {"temperature": -1}}, "temperature must be a number"),
        ({"sampling": {"temprature": 1}}, "temprature is no parameter"),
        ({"sampling": 5}, "sampling must map"),
    ],
)
def test_what_is_wrong_is_said(fake_llm: Callable[..., LLM], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        fake_llm(**options)
