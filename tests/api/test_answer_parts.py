"""Reasoning and calls of tools in answers, through the module and in OpenAI's shape, on an engine that echoes."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai.types.chat
import pytest
from gguf import TokenType
from tiny_gguf import N_BYTES, byte_tokens, write_tiny_gguf

from vkllm import LLM, AsyncLLM, Generation, InvalidParameter, ToolCall
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request

MakeLLM = Callable[..., LLM]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
XML = (
    "<tool_call><function=weather><parameter=city>\n7\n</parameter><parameter=days>7</parameter></function></tool_call>"
)
ROME = {"city": "Rome", "days": 2}
MARKERS = "{# <think></think><tool_call><function= #}{% if tools %}{% endif %}"
ECHO = MARKERS + "{{ '<|im_start|>' + messages[-1].content + '<|im_end|>' }}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model that answers what the last message says."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("echo") / "echo.gguf", template=ECHO, n_ctx=2048)
    factory = functools.partial(EngineProcess, factory="fake_engine:FakeEngine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vkllm.api.loading.EngineProcess", factory)
        with LLM(path) as made:
            yield made


@pytest.fixture
def echo(fake_llm: MakeLLM, tmp_path: Path) -> Callable[..., LLM]:
    """Makes such a model with another template."""

    def make(template: str, **fields: Any) -> LLM:
        path = write_tiny_gguf(tmp_path / "echo.gguf", template=template, n_ctx=2048, fields=fields)
        return fake_llm(model=path)

    return make


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def parts(answer: Generation) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    return answer.reasoning, answer.text, [(call.name, call.arguments) for call in answer.tool_calls]


def test_an_answer_has_its_reasoning_and_calls(llm: LLM) -> None:
    answer = llm.chat(said(f"<think>\nHm.\n</think>\n\nLook:\n{CALL}\n{XML}"), tools=TOOLS)
    assert parts(answer) == ("Hm.", "Look:", [("weather", ROME), ("weather", {"city": "7", "days": 7})])
    assert answer.finish_reason == "stop"
    first, second = answer.tool_calls
    assert isinstance(first, ToolCall) and first.id != second.id
    function = {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}
    assert answer.message["tool_calls"][0] == {"id": first.id, "type": "function", "function": function}
    assert answer.message["reasoning_content"] == "Hm." and answer.message["content"] == "Look:"
    assert llm.chat(said("Hi"), tools=TOOLS).message == {"role": "assistant", "content": "Hi"}


def test_a_stream_has_the_same_parts_as_they_come(llm: LLM) -> None:
    stream = llm.chat(said(f"<think>Hm.</think>Look: {CALL}"), tools=TOOLS, stream=True)
    pieces = list(stream)
    assert "".join(piece.reasoning for piece in pieces) == stream.result().reasoning == "Hm."
    assert "".join(pieces) == stream.result().text == "Look:"
    assert [call for piece in pieces for call in piece.tool_calls] == stream.result().tool_calls
    assert [token for piece in pieces for token in piece.token_ids] == stream.result().token_ids[:-1]
    assert all(piece or piece.reasoning or piece.tool_calls for piece in pieces)


def test_an_answer_for_asyncio_has_the_same_parts(llm: LLM) -> None:

    async def main() -> tuple[Generation, list[str]]:
        shared = AsyncLLM(llm)
        messages = said(f"<think>Hm.</think>Look: {CALL}")
        stream = shared.chat(messages, tools=TOOLS, stream=True)
        return await shared.chat(messages, tools=TOOLS), [piece.reasoning + piece async for piece in stream]

    answer, pieces = asyncio.run(main())
    assert parts(answer) == ("Hm.", "Look:", [("weather", ROME)]) and "".join(pieces) == "Hm.Look:"


def test_without_tools_calls_are_text_and_raw_prompts_are_all_text(llm: LLM) -> None:
    assert parts(llm.chat(said(f"<think>Hm.</think>{CALL}"))) == ("Hm.", CALL, [])
    assert parts(llm.generate(f"<|im_start|><think>Hm.</think>{CALL}<|im_end|>")) == (
        "",
        f"<think>Hm.</think>{CALL}",
        [],
    )


def test_a_call_that_the_limit_cuts_is_text(llm: LLM) -> None:
    answer = llm.chat(said(f"Look: {CALL}"), tools=TOOLS, max_tokens=30)
    assert parts(answer) == ("", f"Look: {CALL}"[:30], []) and answer.finish_reason == "length"


def test_an_answer_with_a_grammar_is_all_text(echo: MakeLLM) -> None:
    opened = echo(ECHO.replace("'<|im_end|>'", "'<|im_end|><think>'"))
    assert parts(opened.chat(said("[7]"), json_schema=True)) == ("", "[7]", [])


def test_a_prompt_that_opens_the_reasoning_begins_within_it(echo: MakeLLM) -> None:
    llm = echo(ECHO.replace("'<|im_end|>'", "'<|im_end|>\n<think>\n'"))
    assert parts(llm.chat(said("Hm.\n</think>\n\nFour."))) == ("Hm.", "Four.", [])
    assert parts(llm.chat(said("Hm."))) == ("Hm.", "", [])


def test_markers_that_are_control_tokens_are_seen(echo: MakeLLM) -> None:
    tokens = [*byte_tokens(), "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]"]
    types = [TokenType.NORMAL] * N_BYTES + [TokenType.CONTROL] * 3
    fields = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": ["a b"],
    }
    for template in (ECHO, "{# [TOOL_CALLS] #}" + ECHO):  # the vocabulary shows it, whatever the template says
        llm = echo(template.replace("'<|im_start|>'", "'<|im_start|>[TOOL_CALLS]'"), **fields)
        assert parts(llm.chat(said('weather{"city": "Rome", "days": 2}'), tools=TOOLS)) == ("", "", [("weather", ROME)])
        assert parts(llm.chat(said("weather{}}"), tools=TOOLS)) == ("", "}", [("weather", {})])
        assert parts(llm.chat(said("weather{"), tools=TOOLS)) == ("", "[TOOL_CALLS]weather{", [])
        assert llm.chat(said("x")).text == "[TOOL_CALLS]x"
        llm.close()


def test_stop_strings_end_an_answer_where_it_was_written(llm: LLM) -> None:
    answer = llm.chat(said(f"<think>Hm.</think>Look: {CALL} more"), tools=TOOLS, stop="</tool_call>")
    assert parts(answer) == ("Hm.", "Look:", [("weather", ROME)])
    assert parts(llm.chat(said("<think>Hm. So.</think>A"), stop=" So")) == ("Hm.", "", [])


def test_openais_shape_of_a_message(llm: LLM) -> None:
    made = llm.chat.completions.create(messages=said(f"<think>Hm.</think>{CALL}"), tools=TOOLS)
    choice = made.choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.reasoning_content) == (
        "tool_calls",
        None,
        "Hm.",
    )
    theirs = openai.types.chat.ChatCompletion.model_validate(made.model_dump()).choices[0]
    assert theirs.message.tool_calls is not None and theirs.finish_reason == "tool_calls"
    (call,) = theirs.message.tool_calls
    assert call.type == "function" and call.function.name == "weather" and call.id
    assert json.loads(call.function.arguments) == ROME


def test_openais_shape_of_chunks(llm: LLM) -> None:
    messages = said(f"<think>Hm.</think>Look: {CALL}{CALL}")
    chunks = list(llm.chat.completions.create(messages=messages, tools=TOOLS, stream=True))
    for chunk in chunks:
        openai.types.chat.ChatCompletionChunk.model_validate(chunk.model_dump())
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.reasoning_content or "" for delta in deltas) == "Hm."
    assert "".join(delta.content or "" for delta in deltas) == "Look:"
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1] and calls[0].id != calls[1].id
    assert [json.loads(call.function.arguments) for call in calls] == [ROME, ROME]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]


def test_openais_reason_of_an_answer_without_or_with_cut_calls(llm: LLM) -> None:
    create = llm.chat.completions.create
    plain = create(messages=said("Hi"), tools=TOOLS).choices[0]
    assert (plain.finish_reason, plain.message.content, plain.message.tool_calls) == ("stop", "Hi", None)
    cut = create(messages=said(CALL), tools=TOOLS, max_tokens=20).choices[0]
    assert (cut.finish_reason, cut.message.content, cut.message.tool_calls) == ("length", CALL[:20], None)
    none = create(messages=said(CALL), tools=TOOLS, tool_choice="none").choices[0]
    assert (none.finish_reason, none.message.content) == ("stop", CALL)


def test_an_answer_that_must_be_a_call_is_one_in_json(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Request] = []
    submit = llm._engine.submit
    monkeypatch.setattr(llm._engine, "submit", lambda request: sent.append(request) or submit(request))
    call = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
    other = {"type": "function", "function": {"name": "other"}}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = llm.chat(said(call), tools=[*TOOLS, other], tool_choice=choice)
        assert parts(answer) == ("", "", [("weather", ROME)])
        assert sent[-1].grammar is not None
    both, one = sent[0].params.json_schema or "", sent[1].params.json_schema or ""
    assert '"other"' in both and '"other"' not in one
    cut = llm.chat(said(call), tools=TOOLS, tool_choice="required", max_tokens=9)
    assert parts(cut) == ("", call[:9], []) and cut.cut_call is None  # it has no name yet


FORCED = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'


@pytest.mark.parametrize(
    ("n", "written", "arguments"),
    [
        (FORCED.index(",") + 5, "", {}),
        (FORCED.index("{", 1), "", {}),
        (FORCED.index("city") + 2, '{"ci', {}),
        (FORCED.index("Rome") + 2, '{"city": "Ro', {"city": "Ro"}),
        (FORCED.index("days"), '{"city": "Rome", "', {"city": "Rome"}),
        (len(FORCED) - 1, '{"city": "Rome", "days": 2}', ROME),
    ],
)
def test_a_call_that_had_to_come_and_was_cut_is_told(llm: LLM, n: int, written: str, arguments: dict[str, Any]) -> None:
    options: dict[str, Any] = {"messages": said(FORCED), "tools": TOOLS, "tool_choice": "required", "max_tokens": n}
    answer = llm.chat(**options)
    assert parts(answer) == ("", FORCED[:n], []) and answer.finish_reason == "length"
    assert answer.cut_call is not None
    assert (answer.cut_call.name, answer.cut_call.arguments) == ("weather", arguments)
    choice = llm.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "length" and choice.message.content is None
    assert [call.function.arguments for call in choice.message.tool_calls or ()] == [written]
    chunks = list(llm.chat.completions.create(**options, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == ""
    called = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert [(function.name, function.arguments) for function in called] == [("weather", written)]
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_call_that_had_to_come_and_was_stopped_otherwise_is_text(llm: LLM) -> None:
    stopped = llm.chat(said(FORCED), tools=TOOLS, tool_choice="required", stop="Ro")
    assert parts(stopped) == ("", FORCED[: FORCED.index("Ro")], []) and stopped.cut_call is None


def test_without_parallel_calls_an_answer_ends_after_the_first(llm: LLM) -> None:
    create = functools.partial(llm.chat.completions.create, messages=said(f"{CALL}{CALL}"), tools=TOOLS)
    assert len(create().choices[0].message.tool_calls or ()) == 2
    one = create(parallel_tool_calls=False).choices[0]
    assert len(one.message.tool_calls or ()) == 1 and one.finish_reason == "tool_calls"
    chunks = list(create(parallel_tool_calls=False, stream=True))
    assert sum(len(chunk.choices[0].delta.tool_calls or ()) for chunk in chunks) == 1
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_template_gets_its_variables(echo: MakeLLM) -> None:
    llm = echo("{{ '<|im_start|>' }}{{ enable_thinking }} {{ reasoning_effort }} {{ more }}{{ '<|im_end|>' }}")
    create = functools.partial(llm.chat.completions.create, messages=said("Hi"))

    def text(**options: Any) -> str | None:
        return create(**options).choices[0].message.content

    assert text() == "  "
    assert text(reasoning_effort="high", chat_template_kwargs={"more": [1]}) == " high [1]"
    assert text(reasoning_effort="none") == "False  "
    assert text(enable_thinking=True) == "True  "
    with pytest.raises(InvalidParameter, match="chat_template_kwargs must map names"):
        text(chat_template_kwargs=[1])


def test_a_message_goes_back_into_the_conversation(echo: MakeLLM) -> None:
    llm = echo(
        ECHO
        + "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{% endfor %}"
    )
    answer = llm.chat(said(CALL), tools=TOOLS)
    whole = llm.chat.completions.create(messages=said(CALL), tools=TOOLS).choices[0].message
    for message in (answer.message, whole):
        result = {"role": "tool", "content": "sunny", "tool_call_id": answer.tool_calls[0].id}
        assert llm.chat([*said(CALL), message, result], tools=TOOLS).text == "sunny"


def test_tools_that_are_no_tools_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidParameter, match="tool 0"):
        llm.chat(said("Hi"), tools=["weather"])  # type: ignore[list-item]


def test_a_template_gets_the_variables_of_a_request(echo: Callable[..., LLM]) -> None:
    template = "<|im_start|>{{ enable_thinking }}{{ messages[-1].content }}<|im_end|>"
    llm = echo(template)
    hi = [{"role": "user", "content": "Hi"}]
    assert llm.chat(hi, variables={"enable_thinking": False}).text == "FalseHi"
    assert llm.count_tokens(hi, variables={"enable_thinking": False}) == llm.count_tokens(hi) + len("False")
    for wrong in ({"messages": []}, {1: 2}, ["enable_thinking"]):
        with pytest.raises(InvalidParameter, match="variable"):
            llm.chat(hi, variables=wrong)


def test_an_answer_says_which_stop_string_ended_it(llm: LLM) -> None:
    hi = [{"role": "user", "content": "Hello there"}]
    assert llm.chat(hi, stop=["x", "the"]).stop_string == "the"
    assert llm.chat(hi, stop=["x"]).stop_string is None
