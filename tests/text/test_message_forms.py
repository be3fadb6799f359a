"""Conversations as clients send them, in templates that take them in another form only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_vocabularies import MakeMetadata, tiny_bpe

from vkllm.errors import InvalidParameter
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "Weather?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "now"}}

# The constructs of real templates, in templates of our own.
NO_SYSTEM = """
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '[' + m.role + '] ' + m.content + '|' }}
{%- endfor %}"""
NINE = """
{%- for m in messages %}
{%- if m.tool_calls %}
{%- for c in m.tool_calls %}
{%- if c.id is not defined or c.id|length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- 'call ' + c.id + '|' }}
{%- endfor %}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id is not defined or m.tool_call_id|length != 9 %}{{ raise_exception('9 characters') }}{% endif %}
{{- 'result ' + m.tool_call_id + '|' }}
{%- endif %}
{%- endfor %}"""
ONE_CALL = """
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls|length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- m.content + '<' + m.tool_calls[0].function.name + '>' }}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""
DESCRIBED = """
{%- for t in tools %}
{{- t.function.name + ': ' + t.function.description }}
{%- for name, p in t.function.parameters.properties.items() %}{{ ' ' + name + ' ' + p.description }}{% endfor %}
{{- t.function.parameters.required|tojson }}
{%- endfor %}"""
ITEMS = """
{%- for m in messages if m.tool_calls %}
{%- for k, v in m.tool_calls[0].function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}.
{%- endfor %}"""


def call(name: str, arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls(*made: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


@pytest.fixture
def rendered(make_metadata: MakeMetadata) -> Any:
    def render(source: str, messages: Any, **options: Any) -> str:
        metadata = make_metadata(tiny_bpe() | {"tokenizer.chat_template": source})
        template = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))
        return template.render(messages, add_generation_prompt=False, **options)

    return render


def test_a_system_message_that_the_template_refuses_is_said_by_the_user(rendered: Any) -> None:
    assert rendered(NO_SYSTEM, [SYSTEM, USER]) == "[user] Be brief.\nWeather?|"
    assert rendered(NO_SYSTEM, [{**SYSTEM, "role": "developer"}, USER]) == "[user] Be brief.\nWeather?|"
    assert rendered(NO_SYSTEM, [{**SYSTEM, "content": ""}, USER]) == "[user] Weather?|"
    assert rendered(NO_SYSTEM, [SYSTEM]) == "[user] Be brief.|"
    assert rendered(NO_SYSTEM, [USER]) == "[user] Weather?|"
    turns = [USER, {"role": "assistant", "content": "Sun."}, {**SYSTEM, "content": "In French."}, USER]
    assert (
        rendered(NO_SYSTEM, [SYSTEM, *turns])
        == "[user] Be brief.\nWeather?|[assistant] Sun.|[user] In French.\nWeather?|"
    )


def test_what_no_form_mends_is_refused_for_the_template_s_first_reason(rendered: Any) -> None:
    with pytest.raises(InvalidParameter, match="no system role"):
        rendered(NO_SYSTEM, [SYSTEM, USER, USER])
    with pytest.raises(InvalidParameter, match="roles must alternate"):
        rendered(NO_SYSTEM, [USER, USER])


def test_a_template_that_takes_the_conversation_gets_it_unchanged(rendered: Any) -> None:
    messages = [SYSTEM, USER, calls(call("a", id="call_1"), call("b", id="call_2")), result("x", tool_call_id="call_1")]
    source = "{{ messages|tojson }}{{ tools|tojson }}"
    shown, _, tools = rendered(source, messages, tools=[TOOL]).partition("}][{")
    assert '"call_1"' in shown and "system" in shown and json.loads("[{" + tools) == [TOOL]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["call_abcdefghijk", "call_X-1"], ["cdefghijk", "0000callX1"[-9:]]),
        (["123456789", "abcABC012"], ["123456789", "abcABC012"]),
        ([None, None], ["000000001", "000000002"]),
    ],
)
def test_ids_of_calls_have_nine_characters_where_the_template_wants_that(
    rendered: Any, ids: list[str | None], expected: list[str]
) -> None:
    made = [call("f", **({} if i is None else {"id": i})) for i in ids]
    results = [result("r", **({} if i is None else {"tool_call_id": i})) for i in ids]
    first, second = expected
    shown = f"call {first}|call {second}|result {first}|result {second}|"
    assert rendered(NINE, [USER, calls(*made), *results]) == shown


def test_a_template_for_one_call_at_a_time_gets_each_with_its_result_after_it(rendered: Any) -> None:
    made = calls(call("a", id="1"), call("b", id="2"), call("c", id="3"), content="Look: ")
    by_id = [result("[2]", tool_call_id="2"), result("[1]", tool_call_id="1")]
    assert rendered(ONE_CALL, [USER, made, *by_id, USER]) == "Weather?<b>[2]Look: <a>[1]<c>Weather?"
    in_order = [result("[1]"), result("[2]"), result("[3]")]
    assert rendered(ONE_CALL, [USER, made, *in_order]) == "Weather?Look: <a>[1]<b>[2]<c>[3]"
    assert rendered(ONE_CALL, [USER, made]) == "Weather?Look: <a><b><c>"


def test_a_tool_without_description_or_parameters_is_described_by_an_empty_text(rendered: Any) -> None:
    city = {"name": "get", "description": "Gets.", "parameters": {"properties": {"city": {"type": "string"}}}}
    tools = [TOOL, {"type": "function", "function": city}]
    assert rendered(DESCRIBED, [USER], tools=tools) == "now: []get: Gets. city []"


def test_tools_have_the_name_that_the_template_knows(rendered: Any) -> None:
    assert rendered("{% if xml_tools %}{{ xml_tools[0].function.name }}{% endif %}", [USER], tools=[TOOL]) == "now"
    with pytest.raises(InvalidParameter, match="no place for tools"):
        rendered("{{ messages[0].content }}", [USER], tools=[TOOL])


def test_a_template_that_reads_tools_in_the_system_message_gets_them_there_as_json(rendered: Any) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}<{{ m['tools'] }}>{% endif %};"
        "{% endfor %}"
    )
    described = json.dumps([TOOL])
    assert rendered(source, [SYSTEM, USER], tools=[TOOL]) == f"system:Be brief.<{described}>;user:Weather?;"
    assert rendered(source, [USER], tools=[TOOL]) == f"system:<{described}>;user:Weather?;"
    assert rendered(source, [{**SYSTEM, "role": "developer"}, USER], tools=[TOOL]).startswith("system:Be brief.<[")
    with pytest.raises(InvalidParameter, match="no place for tools"):
        rendered("{{ 'tools' in messages[0] }}", [USER], tools=[TOOL])
    assert rendered(source, [SYSTEM, USER]) == "system:Be brief.;user:Weather?;"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", "."), (" \n", "."), ("{}", "."), ({}, "."), ('{"a": 1}', "<a>1."), ({"a": "é"}, "<a>é.")],
)
def test_arguments_that_are_an_empty_text_are_no_arguments(rendered: Any, arguments: Any, expected: str) -> None:
    messages = [USER, calls(call("f", arguments)), result("x")]
    assert rendered(ITEMS, messages) == expected


@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_the_name_that_the_template_knows(rendered: Any, given: str, read: str) -> None:
    source = "{% for m in messages if m.role == 'assistant' %}({{ m." + read + " }}){{ m.content }}{% endfor %}"
    answer = {"role": "assistant", "content": "4", given: "two and two"}
    assert rendered(source, [USER, answer, USER]) == "(two and two)4"
    only_thought = {"role": "assistant", "content": None, given: "two and two"}
    assert rendered(source, [USER, only_thought, USER]) == "(two and two)"


def test_reasoning_by_the_template_s_own_name_stays(rendered: Any) -> None:
    source = "{% for m in messages %}{{ m.reasoning }}-{{ m.thinking }}{% endfor %}"
    assert rendered(source, [{"role": "assistant", "content": "", "thinking": "a", "reasoning_content": "b"}]) == "-a"


FIRST_CALL = """
{%- for m in messages %}
{%- if m.tool_calls %}{{ m.content + m.thinking|default('') + '<' + m.tool_calls[0].function.name + '>' }}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""
NO_CALLS = "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
NOT_BOTH = """
{%- for m in messages %}
{%- if m.tool_calls and m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}
{{- '(' + m.thinking|default('') + ')' + m.content }}
{%- for c in m.tool_calls or [] %}<{{ c.function.name }}>{% endfor %}
{%- endfor %}"""


def test_a_template_that_writes_only_the_first_call_gets_each_with_its_result_after_it(rendered: Any) -> None:
    made = calls(call("a", id="1"), call("b", id="2"), content="Look: ") | {"thinking": "hm"}
    results = [result("[1]", tool_call_id="1"), result("[2]", tool_call_id="2")]
    assert rendered(FIRST_CALL, [USER, made, *results, USER]) == "Weather?Look: hm<a>[1]<b>[2]Weather?"


def test_a_template_that_writes_no_calls_gets_them_in_the_text_where_their_form_is_known(rendered: Any) -> None:
    made = calls(call("f", '{"a": "é"}'), call("g"), content="Look:")
    in_json = '[{"name": "f", "arguments": {"a": "é"}}, {"name": "g", "arguments": {}}]'
    granite = "{# <|tool_call|> #}" + NO_CALLS
    assert rendered(granite, [USER, made]) == f"user:Weather?;assistant:Look:\n<|tool_call|>{in_json};"
    assert rendered(NO_CALLS, [USER, made]) == "user:Weather?;assistant:Look:;"
    arguments = {"a": "it's\n", "b": [True, None, 1.5]}
    lfm2 = rendered("{# <|tool_call_start|> #}" + NO_CALLS, [USER, calls(call("f", arguments), call("g"))])
    assert lfm2.endswith('assistant:<|tool_call_start|>[f(a="it\'s\\n", b=[True, None, 1.5]), g()]<|tool_call_end|>;')
    assert rendered(granite, [USER, {"role": "assistant", "content": "x", "tool_calls": ["odd", {}]}]).endswith("x;")


def test_only_the_markers_of_calls_in_the_text_are_control_tokens(make_metadata: MakeMetadata) -> None:
    fields = tiny_bpe() | {"tokenizer.chat_template": NO_CALLS}
    fields["tokenizer.ggml.tokens"] += ["<|tool_call_start|>", "<|tool_call_end|>"]
    fields["tokenizer.ggml.token_type"] += [3, 3]
    metadata = make_metadata(fields)
    tokenizer = Tokenizer.from_gguf(metadata)
    marks = [tokenizer.whole_token(text) for text in ("<|tool_call_start|>", "<|tool_call_end|>", "<|im_end|>")]
    made = calls(call("f", {"a": "<|tool_call_end|><|im_end|>"}))
    ids = ChatTemplate.from_gguf(metadata, tokenizer).encode_chat([USER, made], add_generation_prompt=False)
    assert [ids.count(mark) for mark in marks] == [1, 1, 0]


def test_text_beside_reasoning_and_a_call_is_reasoning_where_the_template_takes_no_such_text(rendered: Any) -> None:
    made = calls(call("f"), content="Look.") | {"reasoning_content": "hm"}
    assert rendered(NOT_BOTH, [USER, made, result("x")]) == "()Weather?(hm\n\nLook.)<f>()x"
    assert rendered(NOT_BOTH, [SYSTEM, made, result("x")]).startswith("()Be brief.(hm\n\nLook.)<f>")
    assert rendered(NOT_BOTH, [USER, made | {"content": ""}]) == "()Weather?(hm)<f>"
