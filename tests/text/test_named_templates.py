"""Templates that have a name write what llama.cpp 0.5.0's `llama_chat_apply_template` writes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vkllm.text.named_templates import NAMED_TEMPLATES
from vkllm.text.templates.limits import Budget
from vkllm.text.templates.program import Program

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "named_templates_of_llama_cpp.json").read_text())


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_named_template_writes_what_llama_cpp_writes(name: str) -> None:
    program = Program(NAMED_TEMPLATES[name])
    for chat, adds, text in zip(KNOWN["chats"], (False, True), KNOWN["texts"][name], strict=True):
        messages = [{"role": role, "content": content} for role, content in chat]
        assert program.run({"messages": messages, "add_generation_prompt": adds}, Budget()) == text
