"""Chat templates: what users' templates expect, and what strangers' templates must not do."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import pytest
from tiny_vocabularies import CONTROL, MakeMetadata, tiny_bpe

from vkllm.errors import InvalidParameter, ModelFileError
from vkllm.formats.gguf import Metadata
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in <a city> & around it",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>\\nToday Date: " + date_string + "\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot|>" }}
    {%- else %}
        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

PRINTS_TEXT = (
    "{% for message in messages %}{% for call in message.tool_calls or [] %}"
    "{{ call['function']['name'] + call['function']['arguments'] }}{% endfor %}{% endfor %}"
)
PRINTS_AS_IS = PRINTS_TEXT.replace("call['function']['name'] + ", "")
PRINTS_XML = PRINTS_TEXT.replace(
    "{{ call['function']['name'] + call['function']['arguments'] }}",
    "{% for name, value in call.function.arguments.items() %}<{{ name }}>{{ value }}</{{ name }}>{% endfor %}",
)

PRINTS_CITY = "{% for call in messages[-1].tool_calls %}in {{ call.function.arguments.city }}{% endfor %}"


def template_of(make_metadata: MakeMetadata, source: str | None, **fields: Any) -> ChatTemplate:
    sources = {} if source is None else {"tokenizer.chat_template": source}
    metadata = make_metadata(tiny_bpe() | sources | fields)
    return ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))


def tool_call(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.weights
def test_smollm2_s_own_template_adds_its_system_message_only_where_there_is_none(smollm2: Metadata) -> None:
    tokenizer = Tokenizer.from_gguf(smollm2)
    template = ChatTemplate.from_gguf(smollm2, tokenizer)
    assert not template.is_fallback
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    body = "<|im_start|>user\nhello<|im_end|>\n"
    assert template.render(HELLO) == f"<|im_start|>system\n{default}<|im_end|>\n{body}<|im_start|>assistant\n"
    system = {"role": "system", "content": "Be brief."}
    assert template.render([system, *HELLO], add_generation_prompt=False) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{body}"
    )
    ids = template.encode_chat(HELLO)
    assert ids[:2] == [1, tokenizer.encode("system")[0]]
    assert ids.count(1) == 3
    assert tokenizer.decode(ids, skip_special=False) == template.render(HELLO)


def test_a_llama_3_style_template_shows_date_tools_and_system_message(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, LLAMA3)
    system = {"role": "system", "content": " Be <brief>. "}
    text = template.render([system, *HELLO], tools=[WEATHER], date_string="26 Jul 2024")
    tools = json.dumps(WEATHER, indent=4)
    assert "Weather in <a city> & around it" in tools
    assert text == (
        f"<|im_start|><|system|>\nToday Date: 26 Jul 2024\n{tools}Be <brief>.<|eot|><|user|>hello<|eot|><|assistant|>"
    )
    assert template.render(HELLO, tools=[]) == template.render(HELLO)
    assert "description" not in template.render(HELLO)


def test_strftime_now_gives_today(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, "{{ strftime_now('%Y-%m-%d') }}")
    before = datetime.now().strftime("%Y-%m-%d")
    assert before <= template.render(HELLO) <= datetime.now().strftime("%Y-%m-%d")


def test_templates_with_names_for_today_get_it(make_metadata: MakeMetadata) -> None:
    source = "{{ date_string if date_string is defined else '26 Jul 2024' }}, {{ datetime }}"
    template, form = template_of(make_metadata, source), "%d %b %Y, %b %d %Y"
    before = datetime.now().strftime(form)
    assert template.render(HELLO) in (before, datetime.now().strftime(form))
    assert template.render(HELLO, date_string="1 May", datetime="then") == "1 May, then"


def test_a_template_with_a_name_for_the_json_text_of_tools_gets_it(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, "{{ 'Functions: ' + functions }}")
    assert template.takes_tools and template.render(HELLO) == "Functions: "
    assert json.loads(template.render(HELLO, tools=[WEATHER]).removeprefix("Functions: ")) == [WEATHER]


def test_variables_are_for_chats_that_do_not_give_them(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, "{{ enable_thinking }} {{ '<|im_end|>' }} {{ more }}")
    template.variables = {"enable_thinking": True, "more": "<|im_end|>"}
    assert template.render(HELLO) == "True <|im_end|> <|im_end|>"
    assert template.render(HELLO, enable_thinking=False, more="") == "False <|im_end|> "
    (end_id,) = template_of(make_metadata, "<|im_end|>").encode_chat(HELLO)
    assert template.encode_chat(HELLO).count(end_id) == 1  # the other is text


def test_a_template_s_own_refusal_reaches_the_user_in_its_words(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, MISTRAL)
    assert template.render([*HELLO, {"role": "assistant", "content": "yes"}]) == (
        "<|im_start|>[INST] hello [/INST]yes<|im_end|>"
    )
    with pytest.raises(InvalidParameter, match=r"Conversation roles must alternate user/assistant"):
        template.render([*HELLO, *HELLO])


@pytest.mark.parametrize("given", [{"city": "Köln & <Bonn>"}, '{"city": "Köln & <Bonn>"}'], ids=["mapping", "text"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (LLAMA3, '{"name": "weather", "parameters": {"city": "Köln & <Bonn>"}}<|eot|>'),
        (PRINTS_TEXT, 'weather{"city": "Köln & <Bonn>"}'),
        (PRINTS_AS_IS, '{"city": "Köln & <Bonn>"}'),
        (PRINTS_XML, "<city>Köln & <Bonn></city>"),
        (PRINTS_CITY, "in Köln & <Bonn>"),
    ],
    ids=["tojson", "joined", "as it is", "xml", "one name"],
)
def test_each_template_gets_tool_arguments_in_the_form_that_it_prints_rightly(
    make_metadata: MakeMetadata, source: str, expected: str, given: Any
) -> None:
    messages = tool_call(given)
    original = json.dumps(messages)
    assert expected in template_of(make_metadata, source).render(messages)
    assert json.dumps(messages) == original


def test_tool_calls_that_are_not_in_the_usual_shape_go_to_the_template_as_they_are(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, "{% for call in messages[0].tool_calls %}{{ call | tojson }}{% endfor %}")
    calls = [{"name": "f", "arguments": "{}"}, "text", {"function": {"name": "f", "arguments": "not JSON"}}]
    assert template.render([{"role": "assistant", "tool_calls": calls}]) == "".join(map(json.dumps, calls))


def test_with_tools_the_template_named_tool_use_is_taken(make_metadata: MakeMetadata) -> None:
    source = "with {{ tools[0].function.name }}"
    template = template_of(make_metadata, "plain", **{"tokenizer.chat_template.tool_use": source})
    assert (template.render(HELLO), template.render(HELLO, tools=[WEATHER])) == ("plain", "with weather")


@pytest.mark.parametrize("source", [None, "{{ messages[0].content }}", "{% set tools = 1 %}hello"])
def test_tools_that_the_template_has_no_place_for_are_refused(make_metadata: MakeMetadata, source: str | None) -> None:
    template = template_of(make_metadata, source)
    with pytest.raises(InvalidParameter, match="no place for tools"):
        template.render(HELLO, tools=[WEATHER])
    assert template.render(HELLO, tools=[]) == template.render(HELLO, tools=None) == template.render(HELLO)


def test_a_developer_s_message_is_the_system_s_unless_the_template_knows_developers(
    make_metadata: MakeMetadata,
) -> None:
    messages = [{"role": "developer", "content": "Be brief."}]
    source = "{{ messages[0].role }}"
    assert template_of(make_metadata, source).render(messages) == "system"
    for known in ("{{ 'developer' in [] }}", "{% if role == 'developer' %}{% endif %}"):
        assert template_of(make_metadata, source + known).render(messages).startswith("developer")
    for unknown in ("{# developer #}", "{{ '<|developer_start|>' }}"):
        assert template_of(make_metadata, source + unknown).render(messages).startswith("system")


def test_a_file_without_a_template_gets_chatml(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, None)
    assert template.is_fallback
    assert template.render(HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        (
            ["<start_of_turn>", "<end_of_turn>"],
            "<start_of_turn>user\nBe brief.\nhello<end_of_turn>\n<start_of_turn>model\nHi<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (["<start_of_turn>"], None),
        (["<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"], None),
    ],
)
def test_a_file_without_a_template_gets_the_form_of_the_marks_in_its_vocabulary(
    make_metadata: MakeMetadata, marks: list[str], expected: str | None
) -> None:
    fields = tiny_bpe()
    fields["tokenizer.ggml.tokens"] = [t.replace("<|im_", "<|xm_") for t in fields["tokenizer.ggml.tokens"]] + marks
    fields["tokenizer.ggml.token_type"] += [CONTROL] * len(marks)
    metadata = make_metadata(fields)
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi"}]
    text = template.render([*turns, {"role": "user", "content": "Bye"}])
    assert template.is_fallback
    if expected is None:
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    else:
        assert text == "<|xm_start|>" + expected
        assert set(template.encode_chat(HELLO)) >= {tokenizer.encode(mark)[0] for mark in marks}


def test_blocks_leave_no_lines_loops_can_break_and_the_generation_tag_shows_its_content(
    make_metadata: MakeMetadata,
) -> None:
    template = template_of(
        make_metadata,
        "{% for word in words %}\n  {% if word == 'stop' %}\n    {% break %}\n  {% endif %}\n"
        "{% generation %}\n{{ word }}{% endgeneration %}\n{% endfor %}\n{{ documents }}",
    )
    assert template.render(HELLO, words=["a", "b", "stop", "c"]) == "abNone"


def test_tojson_writes_json_as_models_have_seen_it(make_metadata: MakeMetadata) -> None:
    template = template_of(make_metadata, "{{ x | tojson }} {{ x | tojson(sort_keys=true, separators=(',', ':')) }}")
    assert template.render(HELLO, x={"b": "ü<&>'", "a": None}) == """{"b": "ü<&>'", "a": null} {"a":null,"b":"ü<&>'"}"""


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_reaches_out_of_the_sandbox_or_runs_away_is_stopped(
    make_metadata: MakeMetadata, source: str
) -> None:
    with pytest.raises(ModelFileError, match="do not trust this file"):
        template_of(make_metadata, source).render(HELLO)


@pytest.mark.parametrize("field", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
@pytest.mark.parametrize("source", ["\n{% if %}", "\n{{ x | no_such_filter }}", "\n{% unknown %}", "\n{{ 1 if }}"])
def test_a_template_that_is_no_jinja_is_a_model_file_error_with_its_line(
    make_metadata: MakeMetadata, field: str, source: str
) -> None:
    with pytest.raises(ModelFileError, match=r"vocabulary\.gguf.*line 2"):
        template_of(make_metadata, None, **{field: source})


def test_a_template_too_deep_to_compile_is_a_model_file_error(make_metadata: MakeMetadata) -> None:
    for source in ["{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% for a in b %}" * 300 + "{% endfor %}" * 300]:
        with pytest.raises(ModelFileError, match=r"vocabulary\.gguf"):
            template_of(make_metadata, source)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        (["hello"], "message 0 is of type str"),
        ([{"role": "user"}], "message 0 has neither content nor tool_calls"),
        ([*HELLO, {"role": "user", "content": 3}], "message 1 has content of type int"),
    ],
)
def test_messages_that_a_template_cannot_render_are_the_caller_s_mistake(
    make_metadata: MakeMetadata, messages: list[Any], named: str
) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(named)):
        template_of(make_metadata, MISTRAL).render(messages)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("source", ["{{ bos_token }}hello", "hello"], ids=["writes BOS", "writes none"])
def test_an_encoded_chat_begins_with_bos_once_and_gets_no_eos(
    make_metadata: MakeMetadata, source: str, adds_bos: bool
) -> None:
    fields = {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.ggml.add_eos_token": True}
    metadata = make_metadata(tiny_bpe() | fields | {"tokenizer.chat_template": source})
    tokenizer = Tokenizer.from_gguf(metadata)
    hello = tokenizer.encode("hello", add_special=False)
    has_bos = adds_bos or "bos" in source
    ids = ChatTemplate.from_gguf(metadata, tokenizer).encode_chat(HELLO)
    assert ids == ([tokenizer.bos_id] if has_bos else []) + hello


def test_a_vocabulary_without_bos_and_eos_has_empty_ones(make_metadata: MakeMetadata) -> None:
    metadata = make_metadata(
        {key: value for key, value in tiny_bpe().items() if not key.endswith("_token_id")}
        | {"tokenizer.chat_template": "[{{ bos_token }}{{ eos_token }}]"}
    )
    assert ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata)).render(HELLO) == "[]"
