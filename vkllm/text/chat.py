"""Turns chat messages into the text that a model was trained on, by the Jinja template in its GGUF.

Templates are programs from strangers: they run within limits of time and memory, see only the messages and the
variables given, and every failure ends in an error of vkllm. What messages say is content: it never becomes a control
token, even if it looks like one. How a model answers is answers/'s, which the template's text chooses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.exceptions import SecurityError

from vkllm.errors import InvalidParameter, ModelFileError
from vkllm.text.answers.choice import answer_form
from vkllm.text.message_forms import calls_in_content, forms, one_call_at_a_time
from vkllm.text.messages import (
    REASONING,
    Messages,
    arguments_as_json,
    arguments_as_mapping,
    plain_messages,
    plain_tools,
    plain_value,
    with_arguments,
    with_reasoning,
    with_tools_in_system,
)
from vkllm.text.named_templates import NAMED_TEMPLATES
from vkllm.text.templates import marked
from vkllm.text.templates.limits import Budget, TemplateLimit
from vkllm.text.templates.program import Program

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata
    from vkllm.text.tokenizer import Tokenizer

# For files without a template: by the marks of turns in the vocabulary, else ChatML, as llama.cpp does.
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TOOLS_NAMES = ("tools", "xml_tools")
"""What templates call the tools that they describe to the model; the second is SmolLM3's."""

_FUNCTIONS = "functions"
"""What Firefunction's template has for them: their JSON text."""

_PROBE = "probe_argument"  # see _prints_arguments_of


_PLAIN_ROLE = re.compile("[A-Za-z0-9_-]+")


class ChatTemplate:
    """Renders chat messages. `is_fallback`: the file has no template, so one is guessed, which may not fit.

    source: its Jinja. answers: the form in which the model writes reasoning and calls of tools. variables: what the
    template is given in every chat that does not give it itself.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, tool_source: str | None = None, *, is_fallback: bool) -> None:
        """Parses the template, and the one to use when tools are given; raises jinja2.TemplateSyntaxError."""
        self._tokenizer = tokenizer
        self.source = source
        self._program = Program(source)
        self._tool_program = self._program if tool_source is None else Program(tool_source)
        self.answers = answer_form(source + (tool_source or ""), lambda text: tokenizer.whole_token(text) is not None)
        self._special = {
            name: "" if token_id is None else tokenizer.token_text(token_id)
            for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
        }
        self.is_fallback = is_fallback
        self.variables: Mapping[str, Any] = {}

    @classmethod
    def from_gguf(cls, metadata: Metadata, tokenizer: Tokenizer) -> ChatTemplate:
        """The template in tokenizer.chat_template, with tools the one in tokenizer.chat_template.tool_use if there is.

        A file without one gets Gemma's or Llama 3's form if its vocabulary has their marks, else ChatML. Raises
        ModelFileError for a template that is not valid Jinja.
        """
        source = metadata.string("tokenizer.chat_template", None)
        tool_source = metadata.string("tokenizer.chat_template.tool_use", None)
        try:
            return cls(tokenizer, source or _guessed(tokenizer), tool_source, is_fallback=not source)
        except Exception as error:  # also RecursionError and TemplateLimit
            line = f" at line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            reason = error.message if isinstance(error, jinja2.TemplateSyntaxError) else error
            raise ModelFileError(
                f"{metadata.path}: the chat template is not valid Jinja{line} ({_short(reason)}); get the model again."
            ) from None

    @classmethod
    def of_text(cls, source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A template that a user gives in place of the file's: Jinja, or the name of one of llama.cpp's. Raises
        InvalidParameter for what is not valid Jinja or shows nothing of a chat."""
        source = NAMED_TEMPLATES.get(source.strip(), source)
        try:
            made = cls(tokenizer, source, is_fallback=False)
        except Exception as error:  # also RecursionError and TemplateLimit
            raise InvalidParameter(f"chat_template is not valid Jinja ({_short(error)})") from None
        if "{{" not in source:
            raise InvalidParameter(
                f"chat_template must be Jinja that shows messages in {{{{ }}}}, but {source!r:.60} shows none, and is "
                f"no name of a template; these are {', '.join(NAMED_TEMPLATES)}"
            )
        return made

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        program = self._tool_program
        return any(name in program.reads for name in (*_TOOLS_NAMES, _FUNCTIONS)) or "tools" in program.names

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continues_last: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a chat, up to where the model's answer begins if `add_generation_prompt`.

        continues_last: the answer goes on where the last message, of the assistant, ends.

        Messages are mappings with `role`, `content`, perhaps `tool_calls`, in any form that `plain_messages` takes;
        other `variables` go to the template too. Arguments of tool calls may be mappings or JSON text: each template
        gets the form that it prints correctly. To get the tokens use `encode_chat`, which distinguishes the template's
        text from the messages'; the text alone does not. Raises InvalidParameter for messages that the template refuses
        or cannot render and for tools that it has no place for, ModelFileError for a template that exceeds its limits
        of time and memory or accesses something that no template may.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        return str(self._rendered(messages, tools, variables, continues_last=continues_last))

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continues_last: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a rendered chat: begins with BOS once if the model wants it, and never ends with an added EOS.

        Control tokens come only from the template; a message that looks like one is plain text. Parameters and errors
        as for `render`.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        text = self._rendered(messages, tools, variables, continues_last=continues_last)
        ids = self._tokenizer.encode(str(text), add_special=False, content=marked.spans_of(text))
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.adds_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        return ids

    def _rendered(
        self, messages: Messages, tools: Any, variables: dict[str, Any], *, continues_last: bool = False
    ) -> str:
        """The text of a chat, with marks where it comes from the messages."""
        plain: Messages = plain_messages(messages)
        if continues_last:
            return self._continued(plain, tools, variables)
        described = plain_tools(tools)
        program = self._tool_program if described else self._program
        tools_name = next((name for name in _TOOLS_NAMES if name in program.reads), None)
        tools_text = ""
        functions = json.dumps(described, ensure_ascii=False, indent=2) if described else ""
        if described and tools_name is None and _FUNCTIONS not in program.reads:
            if "tools" not in program.names:
                raise _no_place_for_tools()
            tools_text = json.dumps(described, ensure_ascii=False)
            plain, described = with_tools_in_system(plain, tools_text), []
        if "developer" not in program.names:
            plain = [{**m, "role": "system"} if m["role"] == "developer" else m for m in plain]
        plain = with_reasoning(plain, program.names)
        if any(message.get("tool_calls") for message in plain):
            plain = self._arguments_as_printed(program, self._calls_as_printed(program, plain))
        given = plain_value(variables, "a variable")
        refusal: InvalidParameter | None = None
        for form, tools_in_form in forms(plain, described):
            try:
                tools_given = {_FUNCTIONS: functions, tools_name or "tools": tools_in_form or None}
                text = self._run(program, form, {**given, **tools_given})
            except InvalidParameter as error:
                refusal = refusal or error
                continue
            if tools_text not in str(text):
                raise _no_place_for_tools()
            return text
        assert refusal is not None  # the first form is the one that was given
        raise refusal

    def _continued(self, messages: Messages, tools: Any, variables: dict[str, Any]) -> str:
        """The text of a chat up to where the last message ends, which is the beginning of the answer."""
        if len(messages) < 2 or (last := messages[-1])["role"] != "assistant" or last.get("tool_calls"):
            raise InvalidParameter(
                "only a last message of the assistant that calls no tools can be continued, after at least one other"
            )
        before = self._rendered(messages[:-1], tools, {**variables, "add_generation_prompt": True})
        reasoning = next((said for name in REASONING if isinstance(said := last.get(name), str)), "")
        parts, tags = [before], self.answers.tags
        if tags is not None and self.answers.begins_in_reasoning(str(before)):
            parts += [marked.content(reasoning), f"\n{tags.close}\n\n"]
        elif self.answers.is_harmony:
            parts.append("<|channel|>final<|message|>")
        elif tags is not None and reasoning:
            parts += [tags.open, marked.content(f"\n{reasoning}\n"), f"{tags.close}\n\n"]
        return marked.join([*parts, marked.content(last["content"])])

    def _run(self, program: Program, messages: Messages, variables: dict[str, Any]) -> str:
        values = {
            "documents": None,
            **_dates(),
            **{name: _as_content(value) for name, value in {**self.variables, **variables}.items()},
            **self._special,
            "messages": [_message_as_content(message) for message in messages],
        }
        try:
            return program.run(values, Budget(len(messages), _n_characters(values)))
        except InvalidParameter:  # the template's own raise_exception
            raise
        except TemplateLimit as error:
            raise ModelFileError(
                f"The model's chat template exceeds its limits of time and memory: {error}; do not trust this file."
            ) from None
        except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
            raise ModelFileError(
                f"The model's chat template does what no template may ({_short(error)}); do not trust this file."
            ) from None
        except Exception as error:  # any Python error can come out of a template's expressions
            raise InvalidParameter(
                f"The model's chat template cannot render these messages ({type(error).__name__}: {_short(error)}); "
                "check their roles and contents."
            ) from None

    def _calls_as_printed(self, program: Program, messages: Messages) -> Messages:
        """The messages; calls that the template leaves out are in messages of their own, or in the text."""
        calls = [
            {"id": f"00000000{n}", "type": "function", "function": {"name": f"{_PROBE}_{n}", "arguments": {}}}
            for n in (1, 2)
        ]
        user = {"role": "user", "content": "x"}
        probe: Messages = [user, {"role": "assistant", "content": "", "tool_calls": calls}]
        for each in (probe, with_arguments(probe, arguments_as_json)):
            try:
                text = self._run(program, each, {"tools": None, "add_generation_prompt": False})
            except (InvalidParameter, ModelFileError):
                continue
            match [f"{_PROBE}_1" in text, f"{_PROBE}_2" in text]:
                case [True, False]:
                    return one_call_at_a_time(messages)
                case [False, False] if self.answers.writer is not None:
                    return calls_in_content(messages, self.answers.writer)
            return messages
        return messages

    def _prints_arguments_of(self, program: Program, arguments: Mapping[str, str] | str) -> bool | None:
        """Whether a tool call with these arguments, {_PROBE: ...} or its JSON text, comes out as JSON or as XML.

        None if the template fails on them. A mapping that is printed directly comes out as Python, with single quotes;
        JSON text that is converted once more comes out with backslashes.
        """
        call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": arguments}}
        user = {"role": "user", "content": "x"}
        messages: Messages = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            text = self._run(program, messages, {"tools": None, "add_generation_prompt": False})
        except (InvalidParameter, ModelFileError):
            return None
        return f'"{_PROBE}"' in text or (_PROBE in text and f"'{_PROBE}'" not in text and f'\\"{_PROBE}' not in text)

    def _arguments_as_printed(self, program: Program, messages: Messages) -> Messages:
        """The messages; arguments of tool calls are mappings or JSON text, whichever the template prints correctly."""
        arguments = {_PROBE: "x"}
        prints_mappings = self._prints_arguments_of(program, arguments)
        if not prints_mappings and self._prints_arguments_of(program, json.dumps(arguments)):
            return with_arguments(messages, arguments_as_json)
        # Mappings too where only arguments of certain names come out.
        return messages if prints_mappings is None else with_arguments(messages, arguments_as_mapping)


def _guessed(tokenizer: Tokenizer) -> str:
    """The template that fits the marks of turns in a vocabulary."""

    def has(*marks: str) -> bool:
        return all(len(tokenizer.encode(mark, add_special=False)) == 1 for mark in marks)

    if has("<|im_start|>", "<|im_end|>"):
        return _CHATML
    if has("<start_of_turn>", "<end_of_turn>"):
        return _GEMMA
    return _LLAMA_3 if has("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>") else _CHATML


def _dates() -> dict[str, str]:
    """Today, under the names that Llama's and Firefunction's templates have for it; without it they take an old day."""
    now = datetime.now()
    return {"date_string": f"{now:%d %b %Y}", "datetime": f"{now:%b %d %Y}"}


def _no_place_for_tools() -> InvalidParameter:
    return InvalidParameter(
        "the model's chat template has no place for tools, so the model would not see them; leave tools out, or "
        "describe them in the system message"
    )


def _as_content(value: Any) -> Any:
    """A plain value whose texts are marked as content, unless they are marked already."""
    if isinstance(value, str):
        return value if isinstance(value, marked.Marked) else marked.content(value)
    if isinstance(value, Mapping):
        return {_as_content(key): _as_content(item) for key, item in value.items()}
    return [_as_content(item) for item in value] if isinstance(value, list) else value


def _message_as_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose texts are marked as content, but for its role: templates write their own marks for it."""
    role = message["role"]
    return {**_as_content(message), "role": role if _PLAIN_ROLE.fullmatch(role) else marked.content(role)}


def _short(reason: object) -> str:
    """The reason of an error on one line: templates write reasons too."""
    return " ".join(str(reason).split())[:500]


def _n_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_n_characters(key) + _n_characters(item) for key, item in value.items())
    return sum(map(_n_characters, value)) if isinstance(value, list) else 0
