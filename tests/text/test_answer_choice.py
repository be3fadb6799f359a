"""Forms of answers by what a chat template shows, and answers that come back as the template writes them."""

from __future__ import annotations

from typing import Any

import pytest
from answer_cases import CALLS, PARIS, TOOLS
from tiny_vocabularies import CONTROL, NORMAL, USER_DEFINED, MakeMetadata, tiny_bpe

from vkllm.text.answers.choice import AnswerForm, answer_form
from vkllm.text.answers.parser import parse_answer
from vkllm.text.answers.tools import Tools
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

# Turns of an assistant as real templates write them, in templates of our own. What follows "@" is the answer.
_JSON = "{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments|tojson) + '}' }}"
_ITEMS = "{% for k, v in c.function.arguments.items() %}"
_TEXT = "{{ v if v is string else v|tojson }}"
_EACH = "{% for c in m.tool_calls %}"
_THINK = "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' + m.content }}"
TURNS = {
    "qwen3": _THINK + _EACH + "{{ '\n<tool_call>\n' }}" + _JSON + "{{ '\n</tool_call>' }}{% endfor %}",
    "qwen3-coder": _THINK
    + _EACH
    + "{{ '\n\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    + _ITEMS
    + "{{ '<parameter=' + k + '>\n' }}{{ v }}{{ '\n</parameter>\n' }}{% endfor %}"
    + "{{ '</function>\n</tool_call>' }}{% endfor %}",
    "glm": "{{ '<think>' + m.reasoning_content + '</think>\n' + m.content }}"
    + _EACH
    + "{{ '\n<tool_call>' + c.function.name }}"
    + _ITEMS
    + "\n<arg_key>{{ k }}</arg_key>\n<arg_value>"
    + _TEXT
    + "</arg_value>{% endfor %}{{ '\n</tool_call>' }}{% endfor %}",
    "ministral": "[THINK]{{ m.reasoning_content }}[/THINK]{{ m.content }}"
    + _EACH
    + "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments|tojson }}{% endfor %}",
    "lfm2": _THINK
    + "<|tool_call_start|>["
    + _EACH
    + "{{ c.function.name }}("
    + _ITEMS
    + "{{ k }}={{ v|tojson }}{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}{% endfor %}"
    + "]<|tool_call_end|>",
    "gpt-oss": "{{ '<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|>' }}"
    + "{{ '<|start|>assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}"
    + _EACH
    + "{{ '<|start|>assistant to=functions.' + c.function.name + '<|channel|>commentary json<|message|>' }}"
    + "{{ c.function.arguments|tojson }}<|call|>{% endfor %}",
    "deepseek": _THINK
    + "<｜tool▁calls▁begin｜>"
    + _EACH
    + "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments|tojson }}<｜tool▁call▁end｜>"
    + "{% endfor %}<｜tool▁calls▁end｜>",
}


@pytest.fixture
def template(make_metadata: MakeMetadata) -> Any:
    def make(source: str, **marks: int) -> ChatTemplate:
        fields = tiny_bpe()
        fields["tokenizer.ggml.tokens"] += list(marks)
        fields["tokenizer.ggml.token_type"] += list(marks.values())
        metadata = make_metadata(fields | {"tokenizer.chat_template": source})
        return ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))

    return make


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_that_the_template_writes_comes_back(name: str, template: Any) -> None:
    source = "{% if tools %}{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}@" + TURNS[name]
    made = template(source + "{% endif %}{% endfor %}")
    functions = [{"name": tool, "arguments": arguments} for tool, arguments in CALLS]
    turn = {
        "role": "assistant",
        "content": "Look at <b>.",
        "reasoning_content": "They ask:\nwhy?",
        "tool_calls": [
            {"id": f"abcdefgh{n}", "type": "function", "function": each} for n, each in enumerate(functions)
        ],
    }
    rendered = made.render([{"role": "user", "content": "?"}, turn], tools=TOOLS, add_generation_prompt=False)
    parts = parse_answer(rendered.partition("@")[2], made.answers, Tools(TOOLS))
    assert (parts.reasoning, parts.text) == (turn["reasoning_content"], turn["content"])
    assert [(call.name, call.arguments) for call in parts.tool_calls] == CALLS


def begins(form: AnswerForm) -> tuple[str, list[str]]:
    return form.tags.open if form.tags else "", [calls.begin for calls in form.calls]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content }}", ("", [])),
        ("{{ m.content.split('</think>')[-1] }}", ("<think>", [])),
        ("<think> <tool_call>", ("<think>", ["<tool_call>"])),
        ("<tool_call><function=", ("", ["<tool_call>", "<function="])),
        ("<|tool_call>call: <channel|>", ("<|channel>", ["<|tool_call>"])),
        ("<|tool_call|>", ("", ["<|tool_call|>"])),
        ("[THINK][/THINK][TOOL_CALLS]", ("[THINK]", ["[TOOL_CALLS]"])),
    ],
)
def test_a_form_is_what_the_template_shows(source: str, expected: tuple[str, list[str]]) -> None:
    assert begins(answer_form(source, lambda text: False)) == expected


def test_a_vocabulary_shows_a_form_by_tokens_that_are_no_words(template: Any) -> None:
    source = "{{ messages[0].content }}"
    assert begins(template(source, **{"<|tool_call_start|>": CONTROL}).answers)[1] == ["<|tool_call_start|>"]
    assert begins(template(source, **{"<think>x": CONTROL, "</think>": USER_DEFINED}).answers)[0] == "<think>"
    assert begins(template(source, **{"<tool_call>": NORMAL}).answers) == ("", [])
    assert template(source, **{"<|channel|>": CONTROL, "<|message|>": CONTROL}).answers.is_harmony
    assert not template(source, **{"<|channel|>": CONTROL}).answers.is_harmony


@pytest.mark.parametrize(
    ("end", "is_thinking"),
    [
        ("<|assistant|>", False),
        ("<|assistant|><think>", True),
        ("<|assistant|>\n<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think></think>", False),
        ("</think>", False),
    ],
)
def test_a_prompt_opens_the_reasoning_where_it_ends_with_the_tag(end: str, is_thinking: bool) -> None:
    assert answer_form("<think></think>", lambda text: False).begins_in_reasoning("user" + end) is is_thinking
    assert not answer_form("", lambda text: False).begins_in_reasoning(end)


SCHEMA = {
    "type": "object",
    "$defs": {"count": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
    "properties": {
        "text": {"type": "string"},
        "whole": {"type": "integer"},
        "number": {"type": "number"},
        "flag": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "map": {"type": "object"},
        "maybe": {"type": ["integer", "null"]},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "count": {"$ref": "#/$defs/count"},
        "loop": {"$ref": "#/$defs/loop"},
        "unit": {"enum": ["1", "2"]},
        "level": {"enum": [1, 2]},
        "any": {},
        "odd": "no schema",
    },
}


@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        ("text", "7", "7"),
        ("text", " true\n", " true\n"),
        ("whole", " 7\n", 7),
        ("whole", "7.0", 7),
        ("whole", "007", 7),
        ("whole", "0", 0),
        ("whole", "-7", -7),
        ("whole", "NULL", None),
        ("text", "null", "null"),
        ("whole", "7.5", "7.5"),
        ("whole", "seven", "seven"),
        ("whole", "9" * 5000, "9" * 5000),
        ("number", "-1.5e3", -1500.0),
        ("number", "3", 3),
        ("number", "nan", "nan"),
        ("number", "1e999", "1e999"),
        ("flag", "True", True),
        ("flag", "false", False),
        ("flag", "yes", "yes"),
        ("list", "[1, 2]", [1, 2]),
        ("list", "{}", "{}"),
        ("map", "{'a': [True, None, 'it\\'s']}", {"a": [True, None, "it's"]}),
        ("map", "__import__('os')", "__import__('os')"),
        ("map", '{"a": 1} and more', '{"a": 1} and more'),
        ("maybe", "null", None),
        ("maybe", "5", 5),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("count", "5", 5),
        ("loop", "x", "x"),
        ("unit", "1", "1"),
        ("level", "1", 1),
        ("any", '{"a": 1}', {"a": 1}),
        ("any", "plain words", "plain words"),
        ("odd", "x", "x"),
        ("unknown", "5", "5"),
    ],
)
def test_a_text_has_the_type_of_its_schema(argument: str, text: str, value: Any) -> None:
    tools = Tools([{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}])
    made = tools.typed("f", argument, text)
    assert made == value and type(made) is type(value)
    assert tools.typed("other", argument, text) == text


def test_tools_may_be_described_in_other_ways() -> None:
    schema = {"properties": {"n": {"type": "integer"}}}
    for tool in ({"name": "f", "parameters": schema}, {"name": "f", "input_schema": schema}):
        assert Tools([tool]).typed("f", "n", "5") == 5
    for tool in ({}, {"function": None}, {"function": {"name": "f"}}, {"function": {"name": "f", "parameters": 3}}):
        assert Tools([tool]).typed("f", "n", "5") == "5"
    assert Tools([{"name": "f", "parameters": {"additionalProperties": {"type": "integer"}}}]).typed("f", "n", "5") == 5
    assert PARIS["days"] == Tools(TOOLS).typed("weather", "days", "3")
